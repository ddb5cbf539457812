"""Decode the records of a journal without owning its directory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from tamiyo_jax.errors import TamiyoError
from tamiyo_jax.journal import Record, Recovered
from tamiyo_jax.storage._records import Content, StepRecord, decode_record

__all__ = ["Entry", "Unreadable", "read_entries"]


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A valid frame whose payload this build cannot decode, with the reason."""

    reason: str


@dataclass(frozen=True, slots=True)
class Entry:
    """A record and its decoded content."""

    record: Record
    content: Content | Unreadable


def read_entries(recovered: Recovered, *, since_ns: int = 0) -> Iterator[Entry]:
    """Decode the records that `read_journal` found, one at a time, by ascending sequence.

    A step whose report has no time of issue is `Unreadable`, and so is a malformed payload:
    the others are read nevertheless.

    Args:
      recovered: what `read_journal` returned; it needs no lock and changes nothing.
      since_ns: leave out steps all of whose reports were issued before, nanoseconds since
        the epoch.
    """
    for record in recovered.records:
        try:
            content = decode_record(record)
        except TamiyoError as error:
            yield Entry(record, Unreadable(str(error)))
            continue
        if isinstance(content, StepRecord) and not _has_report_since(content, since_ns):
            continue
        yield Entry(record, content)


def _has_report_since(step: StepRecord, since_ns: int) -> bool:
    return any((report.issued_at_ns or 0) >= since_ns for report in step.reports)
