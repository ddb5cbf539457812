"""Outcome of a step's report, priority and health."""

from __future__ import annotations

import pytest

from tamiyo_jax.contracts import (
    CommandType,
    Event,
    HealthStatus,
    Priority,
    ReportOutcome,
    TelemetryLevel,
)
from tamiyo_jax.risk import RULES, Verdict, health, priority, report_outcome

REGRESSIONS = {
    "bp_quarantine",
    "loss_spike",
    "nonfinite_loss",
    "isolation_violation",
    "hook_budget",
}


def verdict(
    command_type: CommandType | None, reason: str, level: Priority = Priority.NORMAL
) -> Verdict:
    return Verdict(command_type, reason, "", (), level, None)


def events(*levels: TelemetryLevel) -> list[Event]:
    return [Event("something", level) for level in levels]


def test_a_failed_step_is_aborted():
    assert report_outcome(None) is ReportOutcome.ABORTED


@pytest.mark.parametrize("reason", sorted({rule.reason for rule in RULES}))
def test_a_pause_is_a_regression_for_the_reasons_that_hurt_the_run(reason: str):
    outcome = report_outcome(verdict(CommandType.PAUSE, reason))
    if reason in REGRESSIONS:
        assert outcome is ReportOutcome.REGRESSION
    elif reason == "conservative_mode":
        assert outcome is ReportOutcome.NEUTRAL
    else:
        assert outcome is ReportOutcome.SUCCESS


@pytest.mark.parametrize(
    ("command_type", "outcome"),
    [
        (None, ReportOutcome.NEUTRAL),
        (CommandType.PAUSE, ReportOutcome.NEUTRAL),
        (CommandType.SEED, ReportOutcome.SUCCESS),
        (CommandType.OPTIMIZER, ReportOutcome.SUCCESS),
    ],
)
def test_what_the_policy_wanted_is_neutral_only_where_it_did_nothing(command_type, outcome):
    assert report_outcome(verdict(command_type, "mine:plateau")) is outcome


@pytest.mark.parametrize(
    ("levels", "command_type", "status"),
    [
        ((), None, HealthStatus.HEALTHY),
        ((TelemetryLevel.INFO,), CommandType.SEED, HealthStatus.HEALTHY),
        ((), CommandType.PAUSE, HealthStatus.DEGRADED),
        ((TelemetryLevel.INFO, TelemetryLevel.WARNING), None, HealthStatus.DEGRADED),
        ((TelemetryLevel.CRITICAL, TelemetryLevel.INFO), None, HealthStatus.CRITICAL),
    ],
)
def test_health_follows_the_worst_event_and_a_pause(levels, command_type, status):
    answer = health(events(*levels), command_type, "because")
    assert (answer.status, answer.summary) == (status, "because")


def test_a_critical_event_from_anywhere_makes_the_priority_critical():
    calm = verdict(None, "mine:plateau", Priority.HIGH)
    assert priority(events(TelemetryLevel.CRITICAL), calm) is Priority.CRITICAL
    assert priority(events(TelemetryLevel.WARNING), calm) is Priority.HIGH
    assert priority([], None) is Priority.NORMAL
