"""What a step amounts to: the outcome of its report, its priority and the controller's health."""

from __future__ import annotations

from collections.abc import Iterable

from tamiyo_jax.contracts import (
    CommandType,
    Event,
    HealthStatus,
    Priority,
    ReportOutcome,
    SystemHealth,
    TelemetryLevel,
)
from tamiyo_jax.risk._gate import Verdict
from tamiyo_jax.risk._rules import RULES

__all__ = ["health", "priority", "report_outcome"]

_REGRESSIONS = frozenset(
    {"bp_quarantine", "loss_spike", "nonfinite_loss", "isolation_violation", "hook_budget"}
)
# A pause of one of these rows is a success; one of conservative mode or of the policy is neutral.
_PAUSING_RULES = frozenset(rule.reason for rule in RULES) - {"conservative_mode"}


def report_outcome(verdict: Verdict | None) -> ReportOutcome:
    """Outcome of a step's own report; None is a step that failed before a verdict."""
    if verdict is None:
        return ReportOutcome.ABORTED
    if verdict.reason in _REGRESSIONS:
        return ReportOutcome.REGRESSION
    waits = verdict.command_type is None
    pauses = verdict.command_type is CommandType.PAUSE and verdict.reason not in _PAUSING_RULES
    return ReportOutcome.NEUTRAL if waits or pauses else ReportOutcome.SUCCESS


def priority(events: Iterable[Event], verdict: Verdict | None) -> Priority:
    """CRITICAL if any of the step's events is, else what the verdict says, else NORMAL."""
    if _worst(events) >= TelemetryLevel.CRITICAL:
        return Priority.CRITICAL
    return Priority.NORMAL if verdict is None else verdict.priority


def health(events: Iterable[Event], command_type: CommandType | None, reason: str) -> SystemHealth:
    """Health after a step, by its worst event; a pause is DEGRADED. The summary is the reason."""
    worst = _worst(events)
    if worst >= TelemetryLevel.CRITICAL:
        status = HealthStatus.CRITICAL
    elif worst >= TelemetryLevel.WARNING or command_type is CommandType.PAUSE:
        status = HealthStatus.DEGRADED
    else:
        status = HealthStatus.HEALTHY
    return SystemHealth(status, reason)


def _worst(events: Iterable[Event]) -> TelemetryLevel:
    return max((event.level for event in events), default=TelemetryLevel.UNSPECIFIED)
