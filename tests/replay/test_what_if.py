"""What others would have answered: what they do answer, when they are really asked."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import pytest
from making import make_blueprint, make_config, make_library, open_tamiyo, story

from tamiyo_jax.config import TamiyoConfig
from tamiyo_jax.contracts import decode_packet, encode_packet
from tamiyo_jax.controller import Mode
from tamiyo_jax.errors import PolicyFailureError, UnknownBlueprintError
from tamiyo_jax.inference import choose_policy
from tamiyo_jax.library import MemoryBlueprintLibrary
from tamiyo_jax.policy import init_params
from tamiyo_jax.replay import Comparison, read_history, what_if

CONFIG = make_config()
BOLD = make_config(risk={"loss_spike": 0.9})
# Measurements of a device are f32, and so is the wire.
PACKETS = [decode_packet(encode_packet(packet)) for packet in story(36)]


def graph_arguments() -> dict[str, Any]:
    params = init_params(CONFIG.policy, jax.random.key(0))
    kernel = params["policy_logits"]["kernel"]
    decided = jax.random.normal(jax.random.key(1), kernel.shape)  # untrained ones are all zero
    head = {**params["policy_logits"], "kernel": decided}
    return {"policy": "graph", "params": {**params, "policy_logits": head}}


def record(directory: Path, config: TamiyoConfig = CONFIG, **arguments: Any) -> None:
    with open_tamiyo(directory, config=config, **arguments) as tamiyo:
        for packet in PACKETS:
            tamiyo.step(packet)


def compare(
    directory: Path,
    config: TamiyoConfig = CONFIG,
    *,
    policy: str = "heuristic",
    params: object = None,
    mode: Mode | None = None,
    library: MemoryBlueprintLibrary | None = None,
) -> list[Comparison]:
    choice = choose_policy(config, policy, params, Mode.ACT)
    found = make_library() if library is None else library
    return list(what_if(config, read_history(directory), found, choice, mode=mode))


@pytest.mark.parametrize("mode", ["act", "shadow", "guard"])
def test_the_same_controller_makes_the_same_decisions(tmp_path: Path, mode: str) -> None:
    record(tmp_path, mode=mode)
    compared = compare(tmp_path)
    assert len(compared) == len(PACKETS)
    assert all(comparison.agrees for comparison in compared)
    assert [comparison.instead for comparison in compared] == [
        comparison.recorded for comparison in compared
    ]
    assert len({comparison.instead.action for comparison in compared}) > 1
    assert not any(comparison.revised for comparison in compared)


@pytest.mark.slow
def test_the_same_network_makes_the_same_decisions(tmp_path: Path) -> None:
    arguments = graph_arguments()
    record(tmp_path, **arguments)
    compared = compare(tmp_path, **arguments)
    assert [comparison.instead for comparison in compared] == [
        comparison.recorded for comparison in compared
    ]
    assert not all(
        comparison.agrees for comparison in compare(tmp_path)
    )  # the heuristic is another


@pytest.mark.parametrize(
    ("config", "asked"),
    [
        pytest.param(BOLD, {}, id="configuration"),
        pytest.param(CONFIG, {"mode": Mode.GUARD}, id="mode"),
        pytest.param(CONFIG, graph_arguments(), id="policy", marks=pytest.mark.slow),
    ],
)
def test_another_controller_is_said_to_answer_what_it_answers_when_it_is_there(
    tmp_path: Path, config: TamiyoConfig, asked: dict[str, Any]
) -> None:
    record(tmp_path / "run")
    record(tmp_path / "other", config, **asked)
    instead = [comparison.instead for comparison in compare(tmp_path / "run", config, **asked)]
    assert instead == [comparison.recorded for comparison in compare(tmp_path / "other", config)]
    assert not all(comparison.agrees for comparison in compare(tmp_path / "run", config, **asked))


def test_what_was_done_by_hand_counts_and_a_switched_mode_is_followed(tmp_path: Path) -> None:
    with open_tamiyo(tmp_path, config=CONFIG) as tamiyo:
        for step, packet in enumerate(PACKETS):
            if step == 8:
                tamiyo.set_conservative(True, "maintenance")
            if step == 14:
                tamiyo.set_conservative(False, "over")
            if step == 20:
                tamiyo.set_mode("guard")
            tamiyo.step(packet)
    compared = compare(tmp_path)
    assert [comparison.instead for comparison in compared] == [
        comparison.recorded for comparison in compared
    ]
    assert {comparison.instead.action for comparison in compared[8:14]} == {"PAUSE"}


def test_failed_steps_are_left_out(tmp_path: Path) -> None:
    with open_tamiyo(tmp_path, config=CONFIG) as tamiyo:
        tamiyo.step(PACKETS[0])
        with pytest.raises(UnknownBlueprintError):
            tamiyo.step(replace(PACKETS[1], blueprint_id="nowhere"))
        tamiyo.step(PACKETS[1])
    compared = compare(tmp_path)
    assert [comparison.packet for comparison in compared] == PACKETS[:2]
    assert all(comparison.agrees for comparison in compared)


class Broken:
    """A policy that breaks on one packet."""

    def __init__(self, config: TamiyoConfig) -> None:
        self._inner = choose_policy(config, "heuristic", None, Mode.ACT).policy

    def initial_state(self) -> Any:
        return self._inner.initial_state()

    def decide(self, params: Any, policy_state: Any, observation: Any) -> Any:
        if observation.packet.packet_id == "packet-2":
            raise RuntimeError("broken here")
        return self._inner.decide(params, policy_state, observation)


def test_where_the_other_controller_raises_its_reply_is_the_error(tmp_path: Path) -> None:
    record(tmp_path)
    compared = compare(tmp_path, policy=f"{__name__}:Broken")
    assert compared[2].instead.action == PolicyFailureError.__name__
    assert "broken here" in compared[2].instead.reason
    assert not compared[2].agrees
    assert compared[1].agrees
    assert compared[3].instead.action != PolicyFailureError.__name__


def test_a_library_without_the_blueprints_is_an_error_and_a_newer_one_is_noticed(
    tmp_path: Path,
) -> None:
    record(tmp_path)
    with pytest.raises(UnknownBlueprintError, match="library of that run"):
        compare(tmp_path, library=MemoryBlueprintLibrary())
    library = make_library()
    library.put(make_blueprint("host", risk=0.3))
    assert all(comparison.revised for comparison in compare(tmp_path, library=library))


def test_asking_changes_nothing_on_disk(tmp_path: Path) -> None:
    record(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    compare(tmp_path, BOLD)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
