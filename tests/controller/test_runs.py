"""One controller, many training runs: each has its own memory."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from making import Clock, make_blueprint, make_config, make_packet, open_tamiyo, story

from tamiyo_jax.contracts import SystemStatePacket
from tamiyo_jax.controller import (
    Mode,
    Outcome,
    TamiyoState,
    ask,
    conclude,
    initial_state,
    observe,
    select_run,
    state_from_json,
    state_to_json,
)
from tamiyo_jax.errors import InvalidPacketError
from tamiyo_jax.policy import HeuristicPolicy
from tamiyo_jax.telemetry import MemorySink

CONFIG = make_config(
    storage={"observation_window_epochs": 3}, risk={"pause_budget": 3, "calm_steps": 2}
)
POLICY = HeuristicPolicy(CONFIG.heuristic, CONFIG.policy)
NODES = tuple(make_blueprint(name) for name in ("host", "grow-a", "grow-b"))
OTHERS = 100


def decide(
    state: TamiyoState[Any], packet: SystemStatePacket, mode: Mode, config: Any = CONFIG
) -> tuple[TamiyoState[Any], Outcome]:
    state = select_run(state, packet.training_run_id, POLICY, max_runs=config.storage.max_runs)
    situation = observe(config, state, packet, NODES[0], NODES[1:])
    answer = None
    if mode is not Mode.GUARD:
        answer = ask(POLICY, {}, state.policy_state, situation.observation)
    return conclude(
        config,
        state,
        situation,
        answer,
        mode=mode,
        policy_version="heuristic",
        now_ns=1,
        command_id=f"{packet.training_run_id}/{packet.packet_id}",
        report_id=f"report {packet.training_run_id}/{packet.packet_id}",
    )


def fresh() -> TamiyoState[Any]:
    return initial_state(POLICY.initial_state())


def of_run(run_id: str, packets: list[SystemStatePacket]) -> list[SystemStatePacket]:
    return [replace(packet, training_run_id=run_id) for packet in packets]


def summarise(outcome: Outcome) -> tuple[Any, ...]:
    return (
        outcome.command,
        outcome.verdict.reason,
        outcome.events,
        outcome.escalate,
        outcome.loss_delta,
        outcome.closed_windows,
    )


def decide_all(packets: list[SystemStatePacket], mode: Mode) -> dict[str, list[tuple[Any, ...]]]:
    state, decisions = fresh(), dict[str, list[tuple[Any, ...]]]()
    for packet in packets:
        state, outcome = decide(state, packet, mode)
        decisions.setdefault(packet.training_run_id, []).append(summarise(outcome))
    return decisions


LOSSES = st.lists(st.floats(0.1, 3.0) | st.just(float("nan")), min_size=1, max_size=12)


@settings(max_examples=10, deadline=None)
@given(
    runs=st.lists(LOSSES, min_size=2, max_size=4),
    shuffle=st.randoms(use_true_random=False),
    mode=st.sampled_from([Mode.ACT, Mode.GUARD]),
)
def test_decisions_of_a_run_are_the_same_alone_and_among_others_in_any_order(
    runs: list[list[float]], shuffle: Any, mode: Mode
) -> None:
    packets = {
        f"run {index}": of_run(
            f"run {index}",
            [
                replace(packet, validation_loss=loss)
                for packet, loss in zip(story(len(losses)), losses, strict=True)
            ],
        )
        for index, losses in enumerate(runs)
    }
    turns = [run_id for run_id, steps in packets.items() for _ in steps]
    shuffle.shuffle(turns)
    waiting = {run_id: iter(steps) for run_id, steps in packets.items()}
    mixed = decide_all([next(waiting[run_id]) for run_id in turns], mode)
    assert mixed == {run_id: decide_all(own, mode)[run_id] for run_id, own in packets.items()}


@pytest.mark.slow
def test_a_run_among_a_hundred_decides_as_it_does_alone() -> None:
    own = of_run("own", story(6))
    others = [make_packet(0, training_run_id=f"other {i}") for i in range(OTHERS)]
    mixed = [packet for step in own for packet in (step, *others)]
    assert decide_all(mixed, Mode.GUARD)["own"] == decide_all(own, Mode.GUARD)["own"]


def test_two_healthy_runs_with_different_losses_are_not_paused_in_turns() -> None:
    packets = [
        make_packet(step, training_run_id=run_id, validation_loss=loss)
        for step in range(4)
        for run_id, loss in (("low", 0.5), ("high", 2.0))
    ]
    decisions = decide_all(packets, Mode.GUARD)
    assert {reason for own in decisions.values() for _, reason, *_ in own} == {"guard:wait"}


def test_the_text_form_brings_every_run_back() -> None:
    state = fresh()
    for packet in (*of_run("a", story(5)), *of_run("b", story(3)), *of_run("a", story(6)[5:])):
        state, _ = decide(state, packet, Mode.ACT)
    restored = state_from_json(state_to_json(state), POLICY.initial_state())
    assert restored == state
    assert list(restored.runs) == ["b", "a"]


def test_a_state_that_was_written_for_one_run_goes_on_with_the_run_that_comes_next() -> None:
    state = fresh()
    for packet in of_run("a", story(4)):
        state, _ = decide(state, packet, Mode.ACT)
    fields = json.loads(state_to_json(state))
    new = ("run", "run_steps", "idle_runs", "policy_per_run", "conservative_all")
    old = {name: value for name, value in fields.items() if name not in new}
    restored = state_from_json(json.dumps(old), POLICY.initial_state())
    nxt = of_run("a", story(5))[4]
    (after, outcome), (wanted, expected) = (
        decide(start, nxt, Mode.ACT) for start in (restored, state)
    )
    assert summarise(outcome) == summarise(expected)
    assert after == wanted


def test_the_run_that_is_idle_longest_is_forgotten_with_an_event(tmp_path: Path) -> None:
    sink = MemorySink(100)
    config = make_config(storage={"max_runs": 2})
    with open_tamiyo(tmp_path, config=config, mode="guard", sinks=[sink]) as tamiyo:
        for run_id in ("a", "b", "a", "c"):
            tamiyo.step(make_packet(training_run_id=run_id))
        assert list(tamiyo.state.runs) == ["a", "c"]
    events = [event for packet in sink.packets for event in packet.events]
    (forgotten,) = [event for event in events if event.name == "run_forgotten"]
    assert forgotten.attributes == {"training_run_id": "b", "max_runs": "2"}


@pytest.mark.parametrize("restarted", [False, True])
def test_a_journal_brings_every_run_back(tmp_path: Path, restarted: bool) -> None:
    config = make_config(storage={"max_runs": 3})
    clock = Clock()
    order = ("a", "b", "a", "c", "d", "b", "a", "a")
    tamiyo = open_tamiyo(tmp_path, config=config, clock=clock)
    for step, run_id in enumerate(order):
        tamiyo.step(make_packet(step, training_run_id=run_id, validation_loss=1.0 + step / 50))
        if step == 4:
            tamiyo.set_conservative(True, "maintenance", "b")
        if step == 6:
            tamiyo.set_conservative(True, "all of them")
            with pytest.raises(InvalidPacketError):
                tamiyo.step(make_packet(step, training_run_id="", blueprint_id="host"))
        if restarted:
            state = tamiyo.state
            tamiyo.close()
            tamiyo = open_tamiyo(tmp_path, config=config, clock=clock)
            assert tamiyo.state == state
    state = tamiyo.state
    tamiyo.close()
    with open_tamiyo(tmp_path, config=config, clock=clock) as tamiyo:
        assert tamiyo.state == state
        assert list(tamiyo.state.runs) == ["d", "b", "a"]


def test_operators_set_one_run_or_all_of_them_and_those_that_begin_later(tmp_path: Path) -> None:
    def act(run_id: str) -> str:
        return tamiyo.step(make_packet(training_run_id=run_id)).action

    with open_tamiyo(tmp_path, mode="guard") as tamiyo:
        assert [act(run_id) for run_id in ("a", "b")] == ["WAIT", "WAIT"]
        tamiyo.set_conservative(True, "only this run", "a")
        assert [act(run_id) for run_id in ("a", "b")] == ["PAUSE", "WAIT"]
        tamiyo.set_conservative(True, "maintenance")
        assert [act(run_id) for run_id in ("a", "b", "later")] == ["PAUSE"] * 3
        tamiyo.set_conservative(False, "done", "b")
        assert [act(run_id) for run_id in ("a", "b", "later")] == ["PAUSE", "WAIT", "PAUSE"]
        tamiyo.set_conservative(False, "done")
        assert [act(run_id) for run_id in ("a", "b", "new")] == ["WAIT"] * 3
