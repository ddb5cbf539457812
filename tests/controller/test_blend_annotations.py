"""The annotations of SEED commands that say how a seed is blended into the host."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from making import make_blueprint, make_config, make_packet, make_seed

from tamiyo_jax.contracts import (
    AdaptationCommand,
    Blueprint,
    CommandType,
    ParameterSpec,
    SeedStage,
    decode_command,
    encode_command,
)
from tamiyo_jax.controller import initial_state, step
from tamiyo_jax.policy import HeuristicPolicy

GATE = {"gate_k": 4.0, "gate_tau": 0.25, "alpha_lo": 0.1, "alpha_hi": 0.9}
GATE_TEXT = {"gate_k": "4", "gate_tau": "0.25", "alpha_lo": "0.1", "alpha_hi": "0.9"}
CHANNELS = {"alpha_vec/0": 0.5, "alpha_vec/1": 0.25, "alpha_vec/2": 1.0}


def parameters(numbers: dict[str, float]) -> tuple[ParameterSpec, ...]:
    return tuple(ParameterSpec(name, 0.0, 10.0, default=value) for name, value in numbers.items())


def command_for(
    annotated: str, metrics: dict[str, float], blueprint: Blueprint | None = None, **fields: Any
) -> AdaptationCommand:
    """The command for one seed that has germinated, which the heuristic advances at once."""
    config = make_config(policy={"blend_annotations": annotated})
    policy = HeuristicPolicy(config.heuristic, config.policy)
    seed = make_seed("s0", SeedStage.GERMINATED, metrics=metrics)
    host = blueprint or make_blueprint()
    _, outcome = step(
        config,
        policy,
        {},
        initial_state(policy.initial_state()),
        make_packet(seeds=(make_seed("other"), seed), candidate_blueprint_ids=(), **fields),
        host,
        (host,),
        policy_version="a version",
        now_ns=1_700_000_000_000_000_000,
        command_id="a command",
        report_id="a report",
    )
    assert outcome.command is not None
    return outcome.command


def read_annotations(command: AdaptationCommand) -> dict[str, str]:
    names = ("blend_mode", "blend_mode_source", "alpha_vec", "alpha_vec_len", *GATE)
    return {name: command.annotations[name] for name in names if name in command.annotations}


def test_by_default_commands_say_nothing_about_it() -> None:
    assert read_annotations(command_for("off", {**GATE, **CHANNELS})) == {}


@pytest.mark.parametrize("mode", ["CONVEX", "RESIDUAL"])
def test_a_plain_seed_joins_in_the_configured_mode(mode: str) -> None:
    command = command_for(mode, {"alpha": 0.5})
    assert command.target_seed_id == "s0"
    assert read_annotations(command) == {"blend_mode": mode, "blend_mode_source": "configuration"}


def test_a_seed_with_a_gate_is_blended_by_confidence() -> None:
    expected = {"blend_mode": "CONFIDENCE", "blend_mode_source": "seed", **GATE_TEXT}
    assert read_annotations(command_for("CONVEX", GATE)) == expected


def test_a_seed_with_shares_of_its_own_is_blended_by_channel() -> None:
    found = read_annotations(command_for("CONVEX", {**GATE, **CHANNELS}))
    assert json.loads(found.pop("alpha_vec")) == [0.5, 0.25, 1.0]
    assert found == {"blend_mode": "CHANNEL", "blend_mode_source": "seed", "alpha_vec_len": "3"}


@pytest.mark.parametrize(("numbers", "mode"), [(GATE, "CONFIDENCE"), (CHANNELS, "CHANNEL")])
def test_what_the_seed_leaves_open_the_blueprint_may_say(
    numbers: dict[str, float], mode: str
) -> None:
    blueprint = make_blueprint(parameters=parameters(numbers))
    found = read_annotations(command_for("RESIDUAL", {}, blueprint))
    assert (found["blend_mode"], found["blend_mode_source"]) == (mode, "blueprint")


def test_the_seed_goes_before_the_blueprint() -> None:
    blueprint = make_blueprint(parameters=parameters({**CHANNELS, "gate_k": 9.0}))
    expected = {"blend_mode": "CONFIDENCE", "blend_mode_source": "seed", **GATE_TEXT}
    assert read_annotations(command_for("CONVEX", GATE, blueprint)) == expected


@pytest.mark.parametrize("lacking", GATE)
@pytest.mark.parametrize("instead", [{}, math.nan, math.inf])
def test_a_gate_that_lacks_a_number_is_no_gate(lacking: str, instead: Any) -> None:
    metrics = {name: value for name, value in GATE.items() if name != lacking}
    if instead != {}:
        metrics[lacking] = instead
    assert read_annotations(command_for("CONVEX", metrics))["blend_mode"] == "CONVEX"


def test_commands_that_act_on_no_seed_say_nothing_about_it() -> None:
    command = command_for("CONVEX", GATE, validation_loss=math.nan)
    assert command.command_type is CommandType.PAUSE
    assert read_annotations(command) == {}


def test_the_annotations_survive_the_wire() -> None:
    command = command_for("CONVEX", CHANNELS)
    assert decode_command(encode_command(command)) == command
