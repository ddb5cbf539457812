"""Reading a journal as data, without owning its directory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from tamiyo_jax.errors import TamiyoError
from tamiyo_jax.storage.frames import Record
from tamiyo_jax.storage.records import Content, StepRecord, decode_record
from tamiyo_jax.storage.recovery import Recovered

__all__ = ["Entry", "Unreadable", "read_entries"]


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A record that was stored well but says nothing this build understands, and why."""

    reason: str


@dataclass(frozen=True, slots=True)
class Entry:
    """A record and what it says."""

    record: Record
    content: Content | Unreadable


def read_entries(recovered: Recovered, *, since_ns: int = 0) -> Iterator[Entry]:
    """Decode the records that `read_journal` found, one at a time, by ascending sequence.

    A step whose report has no time of issue is `Unreadable`, and so is a malformed payload:
    the others are read all the same.

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
        if isinstance(content, StepRecord) and not _any_since(content, since_ns):
            continue
        yield Entry(record, content)


def _any_since(step: StepRecord, since_ns: int) -> bool:
    return any((report.issued_at_ns or 0) >= since_ns for report in step.reports)
