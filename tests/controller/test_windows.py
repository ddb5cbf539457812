"""What became of the training after a command: one report for each window, restarts or not."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st
from making import make_blueprint, make_config, make_packet

from tamiyo_jax.config import StorageConfig, TamiyoConfig
from tamiyo_jax.contracts import (
    FieldReport,
    ReportOutcome,
    SystemStatePacket,
    decode_report,
    encode_report,
    validate_report,
)
from tamiyo_jax.controller import (
    GUARD_POLICY,
    Mode,
    Outcome,
    TamiyoState,
    conclude,
    fail,
    initial_state,
    observe,
    state_from_json,
    state_to_json,
)
from tamiyo_jax.controller._windows import watch
from tamiyo_jax.errors import InvalidPacketError
from tamiyo_jax.policy import HeuristicPolicy

LENGTH = 5
CONFIG = make_config(storage={"observation_window_epochs": LENGTH})
HOST = make_blueprint("host")
START_NS = 1_700_000_000_000_000_000

# In guard mode each of these makes a command: a PAUSE, and the second one a CRITICAL event too.
SLOW_HOOK = {"hook_latency_ms": 60.0}
BROKEN = {"auxiliary_loss": math.nan}


def start() -> TamiyoState:
    return initial_state(HeuristicPolicy(CONFIG.heuristic, CONFIG.policy).initial_state())


def packet(step: int, loss: float, **metrics: float) -> SystemStatePacket:
    plain = make_packet(step, validation_loss=loss, candidate_blueprint_ids=())
    return replace(plain, training_metrics={**plain.training_metrics, **metrics})


def decide(
    state: TamiyoState,
    shown: SystemStatePacket,
    *,
    config: TamiyoConfig = CONFIG,
    mode: Mode = Mode.GUARD,
) -> tuple[TamiyoState, Outcome]:
    return conclude(
        config,
        state,
        observe(config, state, shown, HOST, (HOST,)),
        None,
        mode=mode,
        policy_version=GUARD_POLICY,
        now_ns=START_NS + shown.current_epoch,
        command_id=f"command-{shown.current_epoch}",
        report_id=f"report-{shown.current_epoch}",
    )


def run(
    packets: list[SystemStatePacket], state: TamiyoState | None = None
) -> tuple[TamiyoState, list[FieldReport]]:
    state = start() if state is None else state
    reports: list[FieldReport] = []
    for shown in packets:
        state, outcome = decide(state, shown)
        reports += outcome.closed_windows
    return state, reports


def restart(state: TamiyoState, *, registries: bool = True) -> TamiyoState:
    """The state as a new process reads it back."""
    text = state_to_json(state, registries=registries)
    kept = None if registries else state.registries
    return state_from_json(text, start().policy_state, registries=kept)


def test_a_window_reports_what_followed_its_command_and_leaves_the_command_s_own_step_out() -> None:
    losses = [1.0, 0.9, 0.95, 0.7, 0.7, 0.6, 0.5]
    latencies = [60.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
    packets = [
        packet(epoch, loss, hook_latency_ms=latency)
        for epoch, (loss, latency) in enumerate(zip(losses, latencies, strict=True))
    ]
    state, reports = run(packets)
    (report,) = reports
    command = decide(start(), packets[0])[1].report
    assert report == FieldReport(
        report_id="fr-synth-command-0-0+5",
        command_id="command-0",
        training_run_id=command.training_run_id,
        seed_id=command.seed_id,
        blueprint_id=command.blueprint_id,
        outcome=ReportOutcome.SUCCESS,
        issued_at_ns=START_NS + LENGTH,
        metrics={
            "loss_delta_total": pytest.approx(-0.4),
            "loss_delta_min": pytest.approx(-0.25),
            "loss_delta_max": pytest.approx(0.05),
            "avg_hook_latency_ms": pytest.approx(3.0),
        },
        observation_window_epochs=LENGTH,
        tamiyo_policy_version=GUARD_POLICY,
    )
    assert state.windows == ()


@pytest.mark.parametrize(
    ("losses", "critical", "outcome"),
    [
        ([0.9, 0.8], False, ReportOutcome.SUCCESS),
        ([1.1, 1.01], False, ReportOutcome.REGRESSION),
        ([1.0, 1.0], False, ReportOutcome.NEUTRAL),
        ([0.9, 0.8], True, ReportOutcome.REGRESSION),
        ([1.0, 1.0], True, ReportOutcome.REGRESSION),
    ],
)
def test_a_falling_loss_without_alarm_is_success_and_a_rise_or_an_alarm_is_regression(
    losses: list[float], critical: bool, outcome: ReportOutcome
) -> None:
    followed = [*losses, *losses[-1:] * (LENGTH - len(losses))]
    packets = [packet(0, 1.0, **SLOW_HOOK)]
    packets += [packet(epoch, loss) for epoch, loss in enumerate(followed, start=1)]
    if critical:
        packets[3] = packet(3, followed[2], **BROKEN)
    _, reports = run(packets)
    assert reports[0].report_id == "fr-synth-command-0-0+5"
    assert reports[0].outcome is outcome


@pytest.mark.parametrize("delta", [math.nan, math.inf, -math.inf, 1e300])
def test_a_loss_delta_that_no_report_can_carry_is_an_alarm(delta: float) -> None:
    state, outcome = decide(start(), packet(0, 1.0, **SLOW_HOOK))
    # Before there is a last validation loss, the packet's own delta counts.
    state = replace(state, risk=replace(state.risk, last_validation_loss=None))
    state, _ = decide(state, packet(1, 1.0, loss_delta=delta))
    _, reports = run([packet(epoch, 0.5) for epoch in range(2, 6)], state)
    report = reports[0]
    assert report.command_id == outcome.report.command_id
    assert report.outcome is ReportOutcome.REGRESSION
    assert report.metrics["loss_delta_total"] == -0.5
    assert decode_report(encode_report(report)).metrics == report.metrics


def test_an_alarm_of_the_command_s_own_step_is_not_held_against_what_followed() -> None:
    packets = [packet(0, 1.0, **BROKEN), *(packet(epoch, 0.5) for epoch in range(1, 6))]
    _, reports = run(packets)
    assert reports[0].command_id == "command-0"
    assert reports[0].outcome is ReportOutcome.SUCCESS


def test_the_hook_latency_is_averaged_over_the_steps_that_measured_it() -> None:
    def measure(epoch: int, latency: float | None) -> SystemStatePacket:
        shown = packet(epoch, 1.0)
        metrics = {k: v for k, v in shown.training_metrics.items() if k != "hook_latency_ms"}
        if latency is not None:
            metrics["hook_latency_ms"] = latency
        return replace(shown, training_metrics=metrics)

    for latencies, average in (((2.0, None, None, 4.0, math.nan), 3.0), ((None,) * 5, None)):
        followed = [measure(epoch, latency) for epoch, latency in enumerate(latencies, start=1)]
        _, reports = run([packet(0, 1.0, **SLOW_HOOK), *followed])
        assert reports[0].metrics.get("avg_hook_latency_ms") == average


def test_a_window_of_one_step_is_the_step_s_own_report_and_nothing_more() -> None:
    config = make_config(storage={"observation_window_epochs": 1})
    state = start()
    for epoch in range(4):
        state, outcome = decide(state, packet(epoch, 1.0, **SLOW_HOOK), config=config)
        assert outcome.command is not None
        assert outcome.closed_windows == state.windows == ()


def test_what_shadow_mode_would_have_done_is_not_watched_but_open_windows_go_on() -> None:
    state, outcome = decide(start(), packet(0, 1.0, **SLOW_HOOK), mode=Mode.SHADOW)
    assert outcome.command is not None
    assert state.windows == ()
    state, _ = decide(state, packet(1, 1.0, **SLOW_HOOK))
    closed: list[FieldReport] = []
    for epoch in range(2, 7):
        shown = packet(epoch, 1.0, **SLOW_HOOK)
        state, outcome = decide(state, shown, mode=Mode.SHADOW)
        closed += outcome.closed_windows
    assert [report.command_id for report in closed] == ["command-1"]
    assert state.windows == ()


def test_a_step_that_failed_is_no_step_of_any_window() -> None:
    state, _ = decide(start(), packet(0, 1.0, **SLOW_HOOK))
    state, _ = decide(state, packet(1, 0.9))
    after, _ = fail(
        CONFIG,
        state,
        packet(2, 1.0),
        InvalidPacketError("current_epoch is -1", field="current_epoch", value=-1),
        stage="inference",
        policy_version=GUARD_POLICY,
        now_ns=START_NS,
        report_id="a report",
    )
    assert after.windows == state.windows
    assert after.windows[0].steps == 1


def test_one_window_too_many_closes_the_oldest_as_neutral_and_says_so() -> None:
    config = make_config(storage={"observation_window_epochs": LENGTH, "max_windows": 2})
    state, closed = start(), []
    for epoch, loss in enumerate([1.0, 1.5, 2.0, 1.0, 1.0]):
        state, outcome = decide(state, packet(epoch, loss, **SLOW_HOOK), config=config)
        closed += outcome.closed_windows
        assert len(state.windows) <= 2
    assert [report.command_id for report in closed] == ["command-0", "command-1", "command-2"]
    first = closed[0]
    assert first.report_id == "fr-synth-command-0-0+5"
    assert first.outcome is ReportOutcome.NEUTRAL
    assert first.observation_window_epochs == 2
    assert first.metrics["loss_delta_total"] == 1.0
    assert first.issued_at_ns == START_NS + 2
    assert "after 2 of 5 steps" in first.notes
    assert "storage.max_windows is 2" in first.notes
    assert [window.command_id for window in state.windows] == ["command-3", "command-4"]


def test_a_window_keeps_the_length_it_was_opened_with() -> None:
    state, _ = decide(start(), packet(0, 1.0, **SLOW_HOOK))
    other = make_config(storage={"observation_window_epochs": 2})
    closed: list[FieldReport] = []
    for epoch in range(1, 7):
        slow = SLOW_HOOK if epoch == 1 else {}
        state, outcome = decide(state, packet(epoch, 1.0, **slow), config=other)
        closed += outcome.closed_windows
    assert [report.report_id for report in closed] == [
        "fr-synth-command-1-1+2",
        "fr-synth-command-0-0+5",
    ]


@pytest.mark.parametrize("registries", [True, False])
@pytest.mark.parametrize("middle", range(1, LENGTH + 1))
def test_a_restart_in_the_middle_of_a_window_of_five_gives_exactly_one_report(
    middle: int, registries: bool
) -> None:
    losses = [1.0, 0.9, 0.7, 0.1, 0.3, 0.2, 0.1]
    packets = [packet(epoch, loss) for epoch, loss in enumerate(losses)]
    packets[0] = packet(0, 1.0, **SLOW_HOOK)
    unbroken, (whole,) = run(packets)
    state, before = run(packets[:middle])
    state, after = run(packets[middle:], restart(state, registries=registries))
    assert [*before, *after] == [whole]
    assert state_to_json(state) == state_to_json(unbroken)


def test_open_windows_are_part_of_the_small_state_as_plain_json() -> None:
    state, _ = run([packet(0, 1.0, **SLOW_HOOK), packet(1, 0.1 + 0.2)])
    small = json.loads(state_to_json(state, registries=False), parse_constant=pytest.fail)
    assert small["windows"][0]["command_id"] == "command-0"
    assert small["windows"][0]["loss_delta_total"] == (0.1 + 0.2) - 1.0
    assert restart(state).windows == restart(state, registries=False).windows == state.windows


class Step(NamedTuple):
    """One decided step as the windows see it."""

    delta: float | None
    latency: float | None
    critical: bool
    commanded: bool


FINITE = st.floats(width=32, allow_nan=False, allow_infinity=False)
STEPS = st.lists(
    st.builds(Step, st.none() | FINITE, st.none() | FINITE, st.booleans(), st.booleans()),
    max_size=30,
)


def step_report_of(index: int, step: Step) -> FieldReport:
    numbers = {"loss_delta": step.delta, "hook_latency_ms": step.latency}
    return FieldReport(
        report_id=f"report-{index}",
        command_id=f"command-{index}" if step.commanded else "",
        training_run_id="run",
        seed_id="",
        blueprint_id="host",
        outcome=ReportOutcome.SUCCESS,
        issued_at_ns=START_NS + index,
        metrics={name: number for name, number in numbers.items() if number is not None},
    )


def run_windows(
    steps: list[Step], config: StorageConfig, cuts: frozenset[int] = frozenset()
) -> tuple[TamiyoState, list[FieldReport]]:
    """Show the steps to the windows of a state that is stored and read back at each cut."""
    state, reports = start(), []
    for index, step in enumerate(steps):
        if index in cuts:
            state = restart(state, registries=index % 2 == 0)
        windows, closed = watch(
            state.windows,
            step_report_of(index, step),
            epoch=index,
            critical=step.critical,
            carried_out=step.commanded,
            config=config,
        )
        state = replace(state, windows=windows)
        reports += closed
    return state, reports


def total_of(numbers: list[float]) -> float:
    total = 0.0
    for number in numbers:
        total += number
    return total


@given(steps=STEPS, length=st.integers(2, 7))
def test_every_window_says_what_its_steps_say_together(steps: list[Step], length: int) -> None:
    state, reports = run_windows(steps, StorageConfig(observation_window_epochs=length))
    commanded = [index for index, step in enumerate(steps) if step.commanded]
    complete = [index for index in commanded if index + length < len(steps)]
    assert [report.command_id for report in reports] == [f"command-{number}" for number in complete]
    assert [window.command_id for window in state.windows] == [
        f"command-{index}" for index in commanded if index not in complete
    ]
    for index, report in zip(complete, reports, strict=True):
        seen = steps[index + 1 : index + 1 + length]
        deltas = [step.delta for step in seen if step.delta is not None]
        latencies = [step.latency for step in seen if step.latency is not None]
        total = total_of(deltas)
        expected = {"loss_delta_total": total}
        if deltas:
            expected |= {"loss_delta_min": min(deltas), "loss_delta_max": max(deltas)}
        if latencies:
            expected["avg_hook_latency_ms"] = total_of(latencies) / len(latencies)
        beyond = abs(total) > 3.4028234663852886e38
        assert report.metrics == {
            name: value
            for name, value in expected.items()
            if not (beyond and name.endswith("total"))
        }
        alarmed = any(step.critical or step.delta is None for step in seen)
        assert (report.outcome is ReportOutcome.REGRESSION) == (alarmed or total > 0)
        assert (report.outcome is ReportOutcome.SUCCESS) == (not alarmed and total < 0)
        validate_report(report)
        encode_report(report)


@given(
    steps=STEPS,
    length=st.integers(1, 7),
    limit=st.integers(1, 6),
    cuts=st.frozensets(st.integers(0, 29)),
)
def test_any_split_of_a_run_into_restarts_gives_the_same_reports_once_each(
    steps: list[Step], length: int, limit: int, cuts: frozenset[int]
) -> None:
    config = StorageConfig(observation_window_epochs=length, max_windows=limit)
    unbroken, whole = run_windows(steps, config)
    state, reports = run_windows(steps, config, cuts)
    assert reports == whole
    assert state_to_json(state) == state_to_json(unbroken)
    assert len({report.report_id for report in reports}) == len(reports)
    assert len(state.windows) <= limit
