"""Field reports: the effect of a decision."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum

from tamiyo_jax.errors import InvalidReportError

__all__ = ["FieldReport", "MitigationAction", "ReportOutcome", "validate_report"]


class ReportOutcome(IntEnum):
    """Outcome of a decision (Leyline ``FieldReportOutcome``)."""

    UNSPECIFIED = 0
    SUCCESS = 1
    NEUTRAL = 2
    REGRESSION = 3
    ABORTED = 4


@dataclass(frozen=True, slots=True)
class MitigationAction:
    """A follow-up that a report recommends."""

    action_type: str
    rationale: str = ""


@dataclass(frozen=True, slots=True)
class FieldReport:
    """The report of a decision, also for WAIT and for a failed step.

    Attributes:
      report_id: unique for the life of a run directory.
      command_id: id of the command, empty if there was none.
      training_run_id: id of the training run.
      seed_id: the seed that the command acts on, empty if none.
      blueprint_id: the active blueprint of the decision.
      outcome: the outcome of the decision.
      metrics: numbers by name.
      observation_window_epochs: number of decision steps that the report covers.
      issued_at_ns: nanoseconds since the epoch; required.
      tamiyo_policy_version: version of the policy that decided.
      follow_up_actions: recommended follow-ups.
      notes: a text for display.
    """

    report_id: str
    command_id: str
    training_run_id: str
    seed_id: str
    blueprint_id: str
    outcome: ReportOutcome
    issued_at_ns: int | None
    metrics: Mapping[str, float] = field(default_factory=dict[str, float])
    observation_window_epochs: int = 1
    tamiyo_policy_version: str = ""
    follow_up_actions: tuple[MitigationAction, ...] = ()
    notes: str = ""


def validate_report(report: FieldReport) -> None:
    """Check a report before it is appended, and after it is loaded.

    Raises:
      InvalidReportError: the report has no id or no time of issue.
    """
    if not report.report_id:
        raise InvalidReportError(
            "report_id is empty; give every report a unique id",
            field="report_id",
            value=report.report_id,
        )
    if report.issued_at_ns is None or report.issued_at_ns <= 0:
        raise InvalidReportError(
            f"issued_at_ns of report {report.report_id} is {report.issued_at_ns}; "
            "a report without its time of issue could never age out",
            field="issued_at_ns",
            value=report.issued_at_ns,
        )
