"""The ladder: rollbacks lead further back, brake, and end; sound states alone are kept."""

from __future__ import annotations

import math

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
