"""Retention: removing the segments of a journal whose reports are all too old."""

from __future__ import annotations

from collections.abc import Callable

from tamiyo_jax.contracts import Event, TelemetryLevel
from tamiyo_jax.journal import Journal, RecordType, Recovered
from tamiyo_jax.storage._fold import newest_report_before

__all__ = ["Retention"]

_HOUR_NS = 3_600_000_000_000


class Retention:
    """The age of each segment's reports, and the removal of segments by it.

    All reports of a segment are older than a time if the newest report before the next segment
    is, because the segments before it have been removed by then.

    Args:
      hours: age at which a segment is removed; None keeps all.
      journal: the journal to remove segments from.
      recovered: the journal as it was read at opening.
      emit: called with the event of a removal.
    """

    def __init__(
        self,
        hours: float | None,
        journal: Journal,
        recovered: Recovered,
        emit: Callable[[tuple[Event, ...]], None],
    ) -> None:
        self._hours = hours
        self._journal = journal
        self._emit = emit
        heads = {base: recovered.find(base) for base in journal.bases}
        # The newest report before each segment whose SNAPSHOT is readable, by base.
        self._newest_before = {
            base: newest_report_before(head)
            for base, head in heads.items()
            if head is not None and head.type is RecordType.SNAPSHOT
        }

    def apply(self, newest_report_ns: int, first_pending: int | None, now_ns: int) -> None:
        """Remove what is too old, after a new segment was begun.

        A segment with a pending report stays, and so do all after it.

        Args:
          newest_report_ns: time of the newest report before the new segment.
          first_pending: sequence of the first record with a pending report; None without one.
          now_ns: the time, nanoseconds since the epoch.

        Raises:
          PersistenceError: the disk failed, and the journal is sealed.
        """
        bases = self._journal.bases
        first, current = bases[0], bases[-1]
        self._newest_before[current] = newest_report_ns
        if self._hours is None:
            return
        oldest_ns = now_ns - int(self._hours * _HOUR_NS)
        limit = first_pending or current
        expired = [
            base
            for base, newest_ns in self._newest_before.items()
            if newest_ns < oldest_ns and base <= limit
        ]
        if expired and expired[-1] > first:
            self._journal.retire(expired[-1])
            kept = self._journal.bases[0]
            self._newest_before = {b: n for b, n in self._newest_before.items() if b >= kept}
            facts = {"first_sequence": str(first), "last_sequence": str(kept - 1)}
            self._emit((Event("journal_retention", TelemetryLevel.INFO, facts),))
