"""Reports that were given up on, sent again: their journal is read, and nothing is written.

A DROP is final for the controller, which tries that report no more; whoever sends it later
need not own the run directory. Ids stay what they are, so consumers know what they have seen.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from tamiyo_jax.contracts import FieldReport, Priority, Secret, encode_report
from tamiyo_jax.runtime.bus import Bus, seal
from tamiyo_jax.runtime.publishing import FIELD_REPORTS
from tamiyo_jax.storage import Entry, PublicationRecord, RecordType, StepRecord

__all__ = ["Dropped", "dropped_reports", "republish"]


@dataclass(frozen=True, slots=True)
class Dropped:
    """Reports that were dropped and not acknowledged since.

    Attributes:
      reports: those that the journal still has, in its order.
      lost: ids of those that it has no more: retention or damage took them.
    """

    reports: tuple[FieldReport, ...]
    lost: tuple[str, ...]


def dropped_reports(entries: Iterable[Entry]) -> Dropped:
    """What `read_entries` holds of reports whose last word is a DROP."""
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
        reports=tuple(reports[one] for one in reports if one in dropped),
        lost=tuple(one for one in dropped if one not in reports),
    )


def republish(reports: Iterable[FieldReport], bus: Bus, secret: Secret) -> Iterator[str]:
    """Publish reports one by one; gives the id of each when the bus has taken it.

    Raises:
      PublishError: the bus refused the next one; those whose ids were given it has.
    """
    for report in reports:
        envelope = seal(FIELD_REPORTS, encode_report(report), secret)
        bus.publish(FIELD_REPORTS, envelope, Priority.NORMAL)
        yield report.report_id
