"""Field reports: what became of a decision."""

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
    """What should follow from a report."""

    action_type: str
    rationale: str = ""


@dataclass(frozen=True, slots=True)
class FieldReport:
    """One per decision, also for WAIT and for a step that failed.

    Attributes:
      report_id: unique for the life of a run directory.
      command_id: the command, empty where there was none.
      training_run_id: the run.
      seed_id: the seed acted upon, empty where none was.
      blueprint_id: the blueprint judged.
      outcome: what became of it.
      metrics: numbers by name.
      observation_window_epochs: steps that the report looks at.
      issued_at_ns: nanoseconds since the epoch; required, never "now".
      tamiyo_policy_version: the policy that decided.
      follow_up_actions: what should follow.
      notes: for people.
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
      InvalidReportError: no id, or no time of issue.
    """
    if not report.report_id:
        raise InvalidReportError(
            "report_id is empty; every report has an id of its own",
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
