"""Decisions on many packets in one pass: the same as one after another."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from making import make_blueprint, make_config, make_library, make_packet, open_tamiyo, story

from tamiyo_jax.decision import Decision
from tamiyo_jax.errors import (
    DeadlineExceededError,
    InvalidPacketError,
    NonFiniteOutputError,
    TamiyoError,
    UnknownBlueprintError,
)
from tamiyo_jax.policy import Action, init_params
from tamiyo_jax.risk import RiskState
from tamiyo_jax.service import Tamiyo

CONFIG = make_config()


def params_fond_of(*actions: Action, scale: float = 1.0) -> Any:
    """Parameters of a network that decides one way or another, and likes some actions."""
    params = init_params(CONFIG.policy, jax.random.key(0))
    head = params["policy_logits"]
    bias = np.zeros(head["bias"].shape, np.float32)
    bias[list(actions)] = 4.0
    kernel = scale * jax.random.normal(jax.random.key(1), head["kernel"].shape)
    return {**params, "policy_logits": {"kernel": kernel, "bias": bias}}


def graph(directory: Path, **arguments: Any) -> Tamiyo:
    defaults = {"config": CONFIG, "policy": "graph", "params": params_fond_of()}
    return open_tamiyo(directory, **{**defaults, **arguments})


def summarise(result: Decision | TamiyoError) -> tuple[Any, ...]:
    """A decision without ids, times and rounding, or the error."""
    if isinstance(result, TamiyoError):
        return type(result), str(result)
    command = result.command
    return (
        result.action,
        result.reason,
        None if command is None else (command.command_type, command.target_seed_id),
        [(event.name, event.level) for event in result.events],
        result.coverage,
    )


def timeless(risk: RiskState) -> RiskState:
    """Without the time at which the breaker opened: many steps read the clock less often."""
    return replace(risk, inference=replace(risk.inference, opened_at_ns=0))


def step_each(tamiyo: Tamiyo, packets: list) -> list[Decision | TamiyoError]:
    results: list[Decision | TamiyoError] = []
    for packet in packets:
        try:
            results.append(tamiyo.step(packet))
        except TamiyoError as error:
            results.append(error)
    return results


def decide_both_ways(
    tmp_path: Path, packets: list, **arguments: Any
) -> list[Decision | TamiyoError]:
    """What came of the packets in one call, shown to be what comes of them one by one."""
    with graph(tmp_path / "many", **arguments) as tamiyo:
        together, state = tamiyo.step_many(packets), tamiyo.state
    with graph(tmp_path / "one", **arguments) as tamiyo:
        alone, expected = step_each(tamiyo, packets), tamiyo.state
    assert [summarise(decision) for decision in together] == [
        summarise(decision) for decision in alone
    ]
    for batched, single in zip(together, alone, strict=True):
        if isinstance(batched, Decision) and isinstance(single, Decision):
            assert batched.value == pytest.approx(single.value, abs=1e-5)
            assert batched.risk_score == pytest.approx(single.risk_score, abs=1e-5)
    for moved, wanted in zip(state.policy_state, expected.policy_state, strict=True):
        np.testing.assert_allclose(moved, wanted, rtol=1e-5, atol=1e-6)
    assert state.registries == expected.registries
    assert (state.steps, state.failures) == (expected.steps, expected.failures)
    assert timeless(state.risk) == timeless(expected.risk)
    assert state.host_breaker == expected.host_breaker
    return together


@pytest.mark.parametrize("count", [1, 2, 7])
@pytest.mark.slow
def test_many_decisions_are_those_of_single_steps(tmp_path: Path, count: int) -> None:
    results = decide_both_ways(tmp_path, story(count))
    assert len(results) == count
    assert len({result.decision_id for result in results if isinstance(result, Decision)}) == count


@pytest.mark.slow
def test_a_worker_process_answers_many_like_this_one(tmp_path: Path) -> None:
    packets = story(6)
    with graph(tmp_path / "process", isolation="process") as tamiyo:
        together = tamiyo.step_many(packets)
        again = tamiyo.step_many(packets[:5])
    with graph(tmp_path / "inline") as tamiyo:
        assert [summarise(decision) for decision in together] == [
            summarise(decision) for decision in tamiyo.step_many(packets)
        ]
        assert [summarise(decision) for decision in again] == [
            summarise(decision) for decision in tamiyo.step_many(packets[:5])
        ]


@pytest.mark.slow
def test_packets_that_fail_do_not_touch_their_neighbours(tmp_path: Path) -> None:
    packets = story(6)
    packets[1] = make_packet(1, current_epoch=-1)
    packets[4] = make_packet(4, blueprint_id="nowhere")
    results = decide_both_ways(tmp_path, packets)
    assert [type(result) for result in results] == [
        *(Decision, InvalidPacketError, Decision),
        *(Decision, UnknownBlueprintError, Decision),
    ]


@pytest.mark.slow
def test_packets_of_different_layouts_may_be_mixed(tmp_path: Path) -> None:
    def library() -> Any:
        made = make_library()
        layers = make_blueprint().layers[:1]
        made.put(make_blueprint("other", layers=layers, activations=()))
        return made

    packets = story(6)
    for index in (2, 3, 5):
        packets[index] = make_packet(index, blueprint_id="other")
    results = decide_both_ways(tmp_path, packets, library=library())
    assert all(isinstance(result, Decision) for result in results)


def test_a_breaker_that_a_command_moves_is_seen_by_the_packets_behind_it(tmp_path: Path) -> None:
    params = params_fond_of(Action.BREAKER_OPEN, Action.BREAKER_CLOSE, scale=0.01)
    results = decide_both_ways(tmp_path, story(5), params=params)
    actions = [result.action for result in results if isinstance(result, Decision)]
    assert {"BREAKER_OPEN", "BREAKER_CLOSE"} <= set(actions)
    assert all(earlier != later for earlier, later in itertools.pairwise(actions))


def test_outputs_that_are_not_finite_fail_each_packet_as_a_single_step(tmp_path: Path) -> None:
    params = params_fond_of()
    params["value"] = jax.tree.map(
        lambda leaf: np.full(leaf.shape, math.nan, np.float32), params["value"]
    )
    results = decide_both_ways(tmp_path, story(3), params=params)
    assert [type(result) for result in results] == [NonFiniteOutputError] * 3


@pytest.mark.parametrize("arguments", [{"policy": "heuristic", "params": None}, {"mode": "guard"}])
def test_policies_that_are_called_and_guard_take_many_too(tmp_path: Path, arguments: dict) -> None:
    packets = [*story(4), make_packet(4, validation_loss=math.nan)]
    with graph(tmp_path / "many", **arguments) as tamiyo:
        together = tamiyo.step_many(packets)
    with graph(tmp_path / "one", **arguments) as tamiyo:
        alone = step_each(tamiyo, packets)
    assert [summarise(decision) for decision in together] == [
        summarise(decision) for decision in alone
    ]


def test_a_second_batch_of_like_size_compiles_nothing(tmp_path: Path, count_compilations) -> None:
    packets = story(15)
    with graph(tmp_path) as tamiyo:
        tamiyo.step_many(packets[:7])
        with count_compilations() as compiled:
            tamiyo.step_many(packets[7:13])
    assert compiled.names == []


def test_no_packets_are_no_decisions(tmp_path: Path) -> None:
    with graph(tmp_path) as tamiyo:
        assert tamiyo.step_many([]) == []


def test_a_call_that_fails_fails_all_of_its_packets_and_counts_once(tmp_path: Path) -> None:
    packets = story(4)
    with graph(tmp_path, config=make_config(deadlines={"inference_ms": 1e-6})) as tamiyo:
        results = tamiyo.step_many(packets)
        state = tamiyo.state
    assert [type(result) for result in results] == [DeadlineExceededError] * 4
    assert state.failures == 4
    assert state.risk.inference.failures == 1
