"""Retention: removing the oldest segments of a journal, by the age of their reports or by size."""

from __future__ import annotations

from collections.abc import Callable

from tamiyo_jax.contracts import Event, TelemetryLevel
from tamiyo_jax.journal import Journal, RecordType, Recovered
from tamiyo_jax.storage._fold import newest_report_before

__all__ = ["Retention"]

_HOUR_NS = 3_600_000_000_000


class Retention:
    """The age and the size of each segment, and the removal of segments by them.

    All reports of a segment are older than a time if the newest report before the next segment
    is, because the segments before it have been removed by then.

    Args:
      hours: age at which a segment is removed; None for any age.
      max_bytes: size of the journal above which its oldest segments are removed; None for any.
      journal: the journal to remove segments from.
      recovered: the journal as it was read at opening.
      emit: called with the event of a removal.
    """

    def __init__(
        self,
        hours: float | None,
        max_bytes: int | None,
        journal: Journal,
        recovered: Recovered,
        emit: Callable[[tuple[Event, ...]], None],
    ) -> None:
        self._hours = hours
        self._max_bytes = max_bytes
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
        """Remove what is too old or too much, after a new segment was begun.

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
        limit = first_pending or current
        cuts = {
            "retention_hours": self._find_cut_by_age(now_ns, limit),
            "retention_bytes": self._find_cut_by_size(bases, limit),
        }
        setting, cut = max(cuts.items(), key=lambda named: named[1])
        if cut <= first:
            return
        self._journal.retire(cut)
        kept = self._journal.bases[0]
        self._newest_before = {b: n for b, n in self._newest_before.items() if b >= kept}
        facts = {"first_sequence": str(first), "last_sequence": str(kept - 1), "setting": setting}
        self._emit((Event("journal_retention", TelemetryLevel.INFO, facts),))

    def _find_cut_by_age(self, now_ns: int, limit: int) -> int:
        """The base, at most `limit`, before which all reports are too old; 0 if there is none."""
        if self._hours is None:
            return 0
        oldest_ns = now_ns - int(self._hours * _HOUR_NS)
        expired = (base for base, newest_ns in self._newest_before.items() if newest_ns < oldest_ns)
        return max((base for base in expired if base <= limit), default=0)

    def _find_cut_by_size(self, bases: tuple[int, ...], limit: int) -> int:
        """The base, at most `limit`, from which on the segments are small enough together.

        The segment that is appended to stays whatever its size.
        """
        if self._max_bytes is None:
            return 0
        fitting, size = bases[-1], 0
        for base in reversed(bases):
            size += self._journal.measure_segment(base)
            if size > self._max_bytes:
                break
            fitting = base
        limit = min(limit, fitting)
        return max((base for base in self._newest_before if base <= limit), default=0)
