"""Breakers as a state machine against an independent model."""

from __future__ import annotations

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tamiyo_jax.config import BreakerConfig
from tamiyo_jax.contracts import CircuitBreakerState, TelemetryLevel
from tamiyo_jax.errors import CircuitOpenError
from tamiyo_jax.risk import BreakerState
from tamiyo_jax.risk._breaker import admit, fail, succeed

CONFIG = BreakerConfig(failures=3, cooldown_ms=1_000, max_cooldown_ms=6_000)
MS = 1_000_000
CLOSED, OPEN, HALF_OPEN = (
    CircuitBreakerState.CLOSED,
    CircuitBreakerState.OPEN,
    CircuitBreakerState.HALF_OPEN,
)


class BreakerMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.breaker = BreakerState()
        self.now = 10**18
        self.failures = 0
        self.trials_failed = 0
        self.open_until: int | None = None

    @rule(ms=st.integers(0, 3_000))
    def time_passes(self, ms: int) -> None:
        self.now += ms * MS

    @rule()
    def a_call_is_refused_exactly_while_the_cool_down_lasts(self) -> None:
        if self.open_until is not None and self.now < self.open_until:
            with pytest.raises(CircuitOpenError) as refusal:
                admit(self.breaker, self.now, "inference")
            assert refusal.value.context["stage"] == "inference"
            retry_ns = refusal.value.context["retry_ms"] * MS
            assert retry_ns == pytest.approx(self.open_until - self.now)
        else:
            expected = CLOSED if self.open_until is None else HALF_OPEN
            assert admit(self.breaker, self.now, "inference").state is expected

    def may_call(self) -> bool:
        return self.open_until is None or self.now >= self.open_until

    @precondition(may_call)
    @rule()
    def a_call_succeeds(self) -> None:
        admitted = admit(self.breaker, self.now, "inference")
        self.breaker, events = succeed(admitted, "inference")
        levels = [] if self.open_until is None else [TelemetryLevel.INFO]
        assert [event.level for event in events] == levels
        assert self.breaker == BreakerState()
        self.failures, self.trials_failed, self.open_until = 0, 0, None

    @precondition(may_call)
    @rule()
    def a_call_fails(self) -> None:
        admitted = admit(self.breaker, self.now, "inference")
        self.breaker, (event,) = fail(admitted, self.now, "inference", CONFIG)
        self.failures += 1
        if self.open_until is not None:
            self.trials_failed += 1
        opens = self.failures >= 3
        if opens:
            cooldown_ms = min(1_000 * 2**self.trials_failed, 6_000)
            self.open_until = self.now + cooldown_ms * MS
            assert event.attributes["cooldown_ms"] == str(cooldown_ms)
        assert event.name == "breaker_event"
        assert event.level is (TelemetryLevel.CRITICAL if opens else TelemetryLevel.WARNING)
        assert event.attributes["failures"] == str(self.failures)
        assert event.attributes["state"] == ("OPEN" if opens else "CLOSED")

    @invariant()
    def state_follows_the_model(self) -> None:
        assert self.breaker.state is (CLOSED if self.open_until is None else OPEN)
        assert self.breaker.failures == self.failures


TestBreaker = BreakerMachine.TestCase


def open_at() -> BreakerState:
    breaker = BreakerState()
    for _ in range(3):
        breaker, _ = fail(breaker, 100 * MS, "metadata", CONFIG)
    return breaker


def test_a_clock_that_was_set_back_admits_a_trial():
    assert admit(open_at(), 99 * MS, "metadata").state is HALF_OPEN


def test_a_trial_that_was_never_started_leaves_the_next_call_a_trial():
    breaker = open_at()
    trial = admit(breaker, 1_100 * MS, "metadata")
    assert trial.state is HALF_OPEN
    assert admit(trial, 1_100 * MS, "metadata") == trial
    assert breaker.state is OPEN


def test_a_refusal_says_when_the_next_trial_is():
    with pytest.raises(CircuitOpenError, match=r"metadata breaker is open .* in 900 ms"):
        admit(open_at(), 200 * MS, "metadata")
