"""Conservative mode, pause budget, loss delta and brakes over many steps."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tamiyo_jax.config import BreakerConfig, GuardConfig, RiskConfig
from tamiyo_jax.contracts import (
    CircuitBreakerState,
    CommandType,
    Priority,
    SystemStatePacket,
    TelemetryLevel,
)
from tamiyo_jax.errors import CircuitOpenError
from tamiyo_jax.risk import (
    ConservativeMode,
    RiskState,
    Signals,
    Verdict,
    admit_call,
    apply_verdict,
    call_failed,
    call_succeeded,
    enter_by_hand,
    from_json,
    guard,
    leave_by_hand,
    loss_delta,
    may_brake,
    to_json,
)

CONFIG = RiskConfig()
BREAKERS = BreakerConfig()
SECOND = 1_000_000_000


def verdict(
    command_type: CommandType | None = None, *, star: str | None = None, brakes: bool = False
) -> Verdict:
    return Verdict(
        command_type, "mine:plateau", "no improvement", (), Priority.NORMAL, star, brakes=brakes
    )


CALM, SPIKE, PAUSE = verdict(), verdict(star="loss_spike"), verdict(CommandType.PAUSE)


def step_through(state, verdicts, *, config=CONFIG, shadow=False, first=0):
    """The state after the verdicts, and the names of each step's events."""
    names, escalations = [], []
    for step, verdict in enumerate(verdicts, start=first):
        state, events, escalate = apply_verdict(state, verdict, step, shadow=shadow, config=config)
        names.append([event.name for event in events])
        escalations.append(escalate)
    return state, names, escalations


def packet(validation_loss: float | None, **metrics: float) -> SystemStatePacket:
    return SystemStatePacket(
        packet_id="p",
        training_run_id="r",
        blueprint_id="b",
        validation_loss=validation_loss,
        training_metrics=metrics,
    )


# Conservative mode


def test_a_star_row_enters_conservative_mode_and_five_calm_steps_leave_it():
    state, names, _ = step_through(RiskState(), [SPIKE, *[CALM] * 5])
    assert names == [["conservative_entered"], [], [], [], [], ["conservative_exited"]]
    assert state.conservative is None


def test_another_star_row_starts_the_count_anew():
    state, names, _ = step_through(RiskState(), [SPIKE, *[CALM] * 4, SPIKE, *[CALM] * 4])
    assert names == [["conservative_entered"], *[[]] * 9]
    assert state.conservative == ConservativeMode("loss_spike", entered_step=0, calm_steps=4)


def test_the_events_hold_the_reason_and_the_duration():
    state, (entered,), _ = apply_verdict(RiskState(), SPIKE, 7, shadow=False, config=CONFIG)
    assert (entered.level, entered.attributes) == (TelemetryLevel.WARNING, {"reason": "loss_spike"})
    config = RiskConfig(calm_steps=1)
    _, (exited,), _ = apply_verdict(state, CALM, 12, shadow=False, config=config)
    assert exited.level is TelemetryLevel.INFO
    assert exited.attributes == {"reason": "loss_spike", "steps": "5"}


@given(st.lists(st.booleans(), max_size=60), st.integers(1, 6))
def test_conservative_mode_is_never_entered_and_left_in_one_step(stars, calm_steps):
    config = RiskConfig(calm_steps=calm_steps)
    state = RiskState()
    entered, calm = None, 0
    for step, star in enumerate(stars):
        was_on = state.conservative is not None
        state, events, _ = apply_verdict(
            state, SPIKE if star else CALM, step, shadow=False, config=config
        )
        assert len(events) <= 1
        is_on = state.conservative is not None
        calm = 0 if star or not was_on else calm + 1
        if is_on and not was_on:
            entered = step
        if was_on and not is_on:
            assert step > entered
            assert calm == calm_steps
        assert is_on == (star or (was_on and calm < calm_steps))


def test_a_mode_set_by_hand_is_left_only_by_hand():
    state, (event,) = enter_by_hand(RiskState(), "maintenance", 3)
    assert event.attributes == {"reason": "maintenance"}
    state, names, _ = step_through(state, [CALM] * 50, first=4)
    assert not any(names)
    state, (event,) = leave_by_hand(state, 60)
    assert (event.name, event.attributes["steps"]) == ("conservative_exited", "57")
    assert state.conservative is None


def test_a_hand_takes_over_a_mode_that_a_rule_entered():
    state, _, _ = step_through(RiskState(), [SPIKE])
    state, events = enter_by_hand(state, "maintenance", 1)
    assert [event.name for event in events] == ["conservative_entered"]
    state, names, _ = step_through(state, [CALM] * 10, first=2)
    assert state.conservative is not None
    assert not any(names)


def test_setting_the_present_value_by_hand_emits_nothing():
    assert leave_by_hand(RiskState(), 0) == (RiskState(), ())
    state, _ = enter_by_hand(RiskState(), "maintenance", 3)
    assert enter_by_hand(state, "again", 4) == (state, ())


# Breakers and conservative mode


def fail(state: RiskState, times: int, *, stage="inference", now_ns=0):
    events = ()
    for _ in range(times):
        state, events = call_failed(state, stage, now_ns, 9, BREAKERS)
    return state, [event.name for event in events]


@pytest.mark.parametrize("stage", ["inference", "metadata"])
def test_a_breaker_that_opens_enters_conservative_mode(stage):
    state, names = fail(RiskState(), 2, stage=stage)
    assert (names, state.conservative) == (["breaker_event"], None)
    state, names = fail(state, 1, stage=stage)
    assert names == ["breaker_event", "conservative_entered"]
    assert state.conservative == ConservativeMode(f"{stage}_breaker_open", entered_step=9)
    with pytest.raises(CircuitOpenError):
        admit_call(state, stage, 1)
    other = "metadata" if stage == "inference" else "inference"
    assert admit_call(state, other, 1) == state


def test_calm_steps_count_only_while_both_breakers_are_closed():
    state, _ = fail(RiskState(), 3, stage="metadata")
    state, names, _ = step_through(state, [CALM] * 20, first=10)
    assert not any(names)
    state, events = call_succeeded(admit_call(state, "metadata", 2 * SECOND), "metadata")
    assert [event.level for event in events] == [TelemetryLevel.INFO]
    assert state.metadata.state is CircuitBreakerState.CLOSED
    state, names, _ = step_through(state, [CALM] * 5, first=30)
    assert names == [[], [], [], [], ["conservative_exited"]]


def test_a_breaker_that_opens_in_conservative_mode_starts_the_calm_count_anew():
    state, _, _ = step_through(RiskState(), [SPIKE, *[CALM] * 4])
    state, names = fail(state, 3)
    assert names == ["breaker_event"]
    assert state.conservative == ConservativeMode("loss_spike", entered_step=0)
    state, _ = call_succeeded(admit_call(state, "inference", 2 * SECOND), "inference")
    state, names, _ = step_through(state, [CALM] * 4, first=20)
    assert not any(names)


# Pause budget


def test_pauses_beyond_the_budget_are_reported_and_escalated():
    state, names, escalations = step_through(RiskState(), [PAUSE] * 102)
    assert escalations == [False] * 100 + [True] * 2
    assert names[99:] == [[], ["pause_budget_exhausted"], ["pause_budget_exhausted"]]
    assert state.pause_runs == ((0, 101),)
    _, (event,), _ = apply_verdict(state, PAUSE, 102, shadow=False, config=CONFIG)
    assert event.level is TelemetryLevel.CRITICAL
    assert event.attributes == {"pauses": "103", "pauses_limit": "100", "window_steps": "1000"}


def test_shadow_decisions_spend_no_pause_budget():
    state, names, escalations = step_through(RiskState(), [PAUSE] * 200, shadow=True)
    assert state.pause_runs == ()
    assert not any(names)
    assert not any(escalations)


@given(
    st.lists(st.tuples(st.integers(1, 4), st.booleans()), max_size=80),
    st.integers(1, 12),
    st.integers(1, 8),
)
def test_the_window_slides_over_steps(steps, window, budget):
    config = RiskConfig(pause_window_steps=window, pause_budget=budget)
    state, step, pauses = RiskState(), 0, []
    for gap, pauses_now in steps:
        step += gap
        one = PAUSE if pauses_now else CALM
        state, _, escalate = apply_verdict(state, one, step, shadow=False, config=config)
        if pauses_now:
            pauses.append(step)
        within = [pause for pause in pauses if pause > step - window]
        assert escalate == (pauses_now and len(within) > budget)
        assert len(state.pause_runs) <= window


# Loss delta


def test_a_new_validation_loss_is_compared_with_the_last():
    delta, state = loss_delta(RiskState(), packet(1.0))
    assert delta == 0.0
    delta, state = loss_delta(state, packet(1.25))
    assert delta == 0.25
    delta, state = loss_delta(state, packet(1.25))
    assert delta == 0.0
    delta, state = loss_delta(state, packet(1.0))
    assert delta == -0.25


def test_before_the_first_validation_loss_the_packet_s_own_delta_counts():
    delta, state = loss_delta(RiskState(), packet(None, loss_delta=0.3))
    assert (delta, state) == (0.3, RiskState())
    delta, state = loss_delta(state, packet(1.0, loss_delta=0.2))
    assert (delta, state.last_validation_loss) == (0.2, 1.0)
    delta, state = loss_delta(state, packet(1.0, loss_delta=0.2))
    assert delta == 0.0


@pytest.mark.parametrize("missing", [None, math.nan, math.inf, -math.inf])
def test_a_validation_loss_that_is_missing_or_not_finite_leaves_the_last_one(missing):
    state = RiskState(last_validation_loss=1.0)
    assert loss_delta(state, packet(missing, loss_delta=9.0)) == (0.0, state)


# Guard mode


def test_guard_mode_brakes_at_most_once_in_the_cooldown():
    observed = Signals(loss_delta=0.1, optimizer_id="adam")
    guard_config = GuardConfig(cooldown_steps=50)
    state, brakes = RiskState(), []
    for step in range(120):
        one = guard(observed, CONFIG, may_brake=may_brake(state, step, guard_config))
        state, _, _ = apply_verdict(state, one, step, shadow=False, config=CONFIG)
        if one.brakes:
            brakes.append(step)
    assert brakes == [0, 50, 100]


# Storage


@given(
    st.lists(
        st.sampled_from([CALM, SPIKE, PAUSE, verdict(CommandType.OPTIMIZER, brakes=True)]),
        max_size=30,
    ),
    st.integers(0, 4),
    st.none() | st.floats(allow_nan=False, allow_infinity=False),
)
def test_the_state_survives_json(verdicts, failures, loss):
    _, state = loss_delta(RiskState(), packet(loss))
    state, _, _ = step_through(state, verdicts)
    state, _ = fail(state, failures, now_ns=10**18 + 1)
    restored = from_json(json.loads(json.dumps(to_json(state))))
    assert restored == state
    assert isinstance(restored.inference.state, CircuitBreakerState)
