"""Publish dropped reports again, from the journal, which is only read.

A DROP is final for the controller, which does not try that report again; the process that sends
it later need not own the run directory. Ids do not change, so consumers recognise a report.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from tamiyo_jax.bus._memory import Bus, seal
from tamiyo_jax.bus._reading import FIELD_REPORTS
from tamiyo_jax.contracts import FieldReport, Priority, Secret, encode_report
from tamiyo_jax.journal import RecordType
from tamiyo_jax.storage import Entry, PublicationRecord, StepRecord

__all__ = ["Dropped", "dropped_reports", "republish"]


@dataclass(frozen=True, slots=True)
class Dropped:
    """Reports that were dropped and not acknowledged since.

    Attributes:
      reports: the reports that the journal still holds, in its order.
      lost: ids of the reports that retention or damage has removed.
    """

    reports: tuple[FieldReport, ...]
    lost: tuple[str, ...]


def dropped_reports(entries: Iterable[Entry]) -> Dropped:
    """Collect the reports whose last record is a DROP."""
    reports: dict[str, FieldReport] = {}
    dropped: dict[str, None] = {}
    for entry in entries:
        match entry.content:
            case StepRecord() as step:
                reports.update((report.report_id, report) for report in step.reports)
            case PublicationRecord(report_id) if entry.record.type is RecordType.DROP:
                dropped[report_id] = None
            case PublicationRecord(report_id) if entry.record.type is RecordType.ACK:
                dropped.pop(report_id, None)
            case _:
                pass
    return Dropped(
        reports=tuple(report for report_id, report in reports.items() if report_id in dropped),
        lost=tuple(report_id for report_id in dropped if report_id not in reports),
    )


def republish(reports: Iterable[FieldReport], bus: Bus, secret: Secret) -> Iterator[str]:
    """Publish reports in turn; yields the id of each once the bus has accepted it.

    Raises:
      PublishError: the bus refused the next report; it has those whose ids were yielded.
    """
    for report in reports:
        envelope = seal(FIELD_REPORTS, encode_report(report), secret)
        bus.publish(FIELD_REPORTS, envelope, Priority.NORMAL)
        yield report.report_id
