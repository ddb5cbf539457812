"""The ladder: rollbacks lead further back, brake, and end; sound states alone are kept."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from making import make_packet

from tamiyo_jax.config import GuardConfig
from tamiyo_jax.contracts import CommandType, Priority, SystemStatePacket
from tamiyo_jax.risk import Ladder, Rung, Verdict, climb

CONFIG = GuardConfig(rollback_budget=4, rollback_calm_steps=6)
CALM = Verdict(None, "policy", "", (), Priority.NORMAL, None)
NAN = Verdict(
    CommandType.ROLLBACK, "nonfinite_loss", "a loss is NaN", (), Priority.CRITICAL, "nonfinite_loss"
)
RISE = Verdict(CommandType.ROLLBACK, "sustained_rise", "the loss rose", (), Priority.HIGH, None)
PAUSED = Verdict(
    CommandType.PAUSE, "conservative_mode", "the mode is on", (), Priority.NORMAL, None
)


def packet(step: int, loss: float = 1.0) -> SystemStatePacket:
    kept = {f"restorable/step-{each:03d}": float(each) for each in (10, 20, step)}
    return make_packet(
        global_step=step, training_loss=loss, training_metrics={"loss": loss, **kept}
    )


def take(*verdicts: Verdict, seedless: bool = True) -> list[Rung]:
    ladder, rungs = Ladder(), []
    for index, verdict in enumerate(verdicts):
        options = {"guards": True, "seedless": seedless, "may_brake": True}
        ladder, rung = climb(ladder, verdict, packet(30 + index), CONFIG, **options)
        rungs.append(rung)
    return rungs


def test_a_fault_that_comes_back_goes_further_back_then_brakes_then_escalates():
    rungs = take(*[NAN] * 6)
    assert [rung.checkpoint for rung in rungs] == ["step-020", *["step-010"] * 3, None, None]
    assert [rung.skip_data for rung in rungs[:4]] == [False, True, True, True]
    assert [rung.lr_delta for rung in rungs[:2]] == [None, None]
    assert rungs[3].lr_delta < rungs[2].lr_delta < 0
    assert [rung.escalate for rung in rungs] == [False] * 4 + [True] * 2
    assert {rung.verdict.command_type for rung in rungs[4:]} == {None}
    assert {rung.events[0].name for rung in rungs[4:]} == {"rollback_budget_exhausted"}


def test_a_rise_brakes_from_the_first_rollback_on():
    (rung,) = take(RISE)
    assert rung.checkpoint == "step-020"  # and not the packet's own, which has risen
    assert rung.lr_delta == pytest.approx(-CONFIG.brake)


def test_after_calm_the_ladder_starts_from_its_first_rung():
    *_, last = take(NAN, NAN, *[CALM] * CONFIG.rollback_calm_steps, NAN)
    assert last.checkpoint == "step-020"
    *_, last = take(NAN, NAN, *[CALM] * (CONFIG.rollback_calm_steps - 1), NAN)
    assert last.lr_delta is not None


def test_nothing_is_paused_where_nothing_can_be():
    assert [rung.verdict.command_type for rung in take(PAUSED)] == [None]
    (rung,) = take(PAUSED, seedless=False)
    assert rung.verdict.command_type is CommandType.PAUSE


@given(
    losses=st.lists(st.floats(0.98, 1.02), min_size=6, max_size=30),
    spike=st.sampled_from([1.5, 10.0, 1e30, math.inf, math.nan]),
)
def test_a_state_whose_loss_is_unlike_those_before_is_not_kept(losses: list[float], spike: float):
    ladder = Ladder()
    options = {"guards": True, "seedless": True, "may_brake": True}
    for step, loss in enumerate(losses):
        ladder, rung = climb(ladder, CALM, packet(30 + step, loss), CONFIG, **options)
        assert rung.restorable
    ladder, rung = climb(ladder, CALM, packet(99, spike), CONFIG, **options)
    assert not rung.restorable
    _, rung = climb(ladder, CALM, packet(100, losses[-1]), CONFIG, **options)
    assert rung.restorable


def test_updates_that_are_too_large_are_first_undone_then_braked_by_as_much():
    large = Verdict(
        CommandType.ROLLBACK, "update_outlier", "too large", (), Priority.CRITICAL, None
    )
    ladder, rungs = Ladder(), []
    for index in range(3):
        given = packet(30 + index)
        jumped = replace(given, training_metrics={**given.training_metrics, "update_jump": 3.0})
        options = {"guards": True, "seedless": True, "may_brake": True}
        ladder, rung = climb(ladder, large, jumped, CONFIG, **options)
        rungs.append(rung)
    assert [rung.checkpoint for rung in rungs] == ["step-020", "step-020", "step-010"]
    assert [rung.skip_data for rung in rungs] == [False, False, True]
    assert [rung.lr_delta for rung in rungs] == [None, *[pytest.approx(math.exp(-3) - 1)] * 2]


@pytest.mark.parametrize(("update_rise", "released"), [(0.0, True), (-2.0, True), (0.5, False)])
def test_a_brake_stays_where_updates_without_it_would_be_larger_than_ever(
    update_rise: float, released: bool
):
    ladder, rungs = Ladder(), []
    for index in range(CONFIG.release_steps):
        given = packet(30 + index)
        metrics = {**given.training_metrics, "update_rise": update_rise, "lr_multiplier": 0.7}
        options = {"guards": True, "seedless": True, "may_brake": True}
        sent = replace(given, training_metrics=metrics)
        ladder, rung = climb(ladder, CALM, sent, CONFIG, **options)
        rungs.append(rung)
    assert (rungs[-1].lr_delta is not None) is released


def test_a_state_before_which_an_update_was_too_large_is_not_kept():
    given = packet(30)
    high = replace(given, training_metrics={**given.training_metrics, "high_updates": 1.0})
    _, rung = climb(Ladder(), CALM, high, CONFIG, guards=True, seedless=True, may_brake=True)
    assert not rung.restorable
