"""Recording: every change of a run's state, as a record that is written and folded in at once.

Both happen in one critical section, so that state and facts, and the snapshot of a new segment,
are always those after the last record.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

from tamiyo_jax.controller import AppliedPolicy, TamiyoState
from tamiyo_jax.errors import PersistenceError
from tamiyo_jax.journal import Journal, OwnerProcess, RecordType, Ticket
from tamiyo_jax.storage._facts import Facts, Ledger
from tamiyo_jax.storage._records import (
    StepRecord,
    encode_operator,
    encode_policy_update,
    encode_publication,
    encode_restore,
    encode_snapshot,
    encode_step,
)
from tamiyo_jax.storage._retention import Retention

__all__ = ["Recorder"]

PolicyState = TypeVar("PolicyState")
T = TypeVar("T")


class Recorder(Generic[PolicyState]):
    """The state of a run, its facts, and the journal that they are folded from.

    Call `start` with the state to continue from, then append. Safe to share between threads.

    Args:
      journal: an open journal.
      state: the recovered state; None in a directory that was never started.
      ledger: the recovered facts.
      retention: decides which segments are removed.
      segment_bytes: size at which the next segment begins.
      clock: nanoseconds since the epoch.
      note_stop: called with the reason why the journal takes no further record.
    """

    def __init__(
        self,
        journal: Journal,
        *,
        state: TamiyoState[PolicyState] | None,
        ledger: Ledger,
        retention: Retention,
        segment_bytes: int,
        clock: Callable[[], int],
        note_stop: Callable[[str], None],
    ) -> None:
        self._journal = journal
        self._state = state
        self._ledger = ledger
        self._retention = retention
        self._segment_bytes = segment_bytes
        self._clock = clock
        self._note_stop = note_stop
        self._lock = threading.Lock()
        self._process = OwnerProcess()

    @property
    def state(self) -> TamiyoState[PolicyState] | None:
        """The state after the last record; None in a directory that was never started."""
        with self._lock:
            return self._state

    @property
    def facts(self) -> Facts:
        """The facts after the last record; immutable, safe to keep."""
        with self._lock:
            return self._ledger.facts

    @property
    def last_sequence(self) -> int:
        """The sequence of the last record."""
        return self._journal.last_sequence

    def start(self, state: TamiyoState[PolicyState]) -> None:
        """Begin a segment with a SNAPSHOT of `state` and the facts, and apply retention.

        Raises:
          PersistenceError: the disk failed, and the journal is sealed; or it was started before.
        """

        def change() -> None:
            self._journal.start(encode_snapshot(state, self._ledger.facts))
            self._state = state
            self._apply_retention()

        self._make(change)

    def append_step(
        self, step: StepRecord, state: TamiyoState[PolicyState], packet: bytes | None = None
    ) -> Ticket:
        """Record a step, decided or failed, and the state after it.

        This and the other recording methods return once the record is written, with
        durability ``"always"`` once it is on disk.

        Args:
          step: the step to record.
          state: the state after the step.
          packet: the step's packet in wire format, if it was encoded already.

        Raises:
          InvalidReportError: a report has no id or no time of issue; nothing was written.
          PersistenceError: the disk failed, and the journal is sealed; or the record is too
            large, which changes nothing.
          JournalSealedError: an earlier write or fsync failed.
        """
        payload = encode_step(step, packet)

        def change() -> Ticket:
            ticket = self._append(RecordType.STEP, payload)
            self._state = state
            self._ledger.add_reports(ticket.sequence, step.reports)
            return ticket

        return self._make(change)

    def append_operator(self, action: str, detail: str, state: TamiyoState[PolicyState]) -> Ticket:
        """Record an operator's action and the state after it; see `append_step`."""
        payload = encode_operator(action, detail, state)

        def change() -> Ticket:
            ticket = self._append(RecordType.OPERATOR, payload)
            self._state = state
            return ticket

        return self._make(change)

    def append_restore(self, state: TamiyoState[PolicyState], origin: str) -> Ticket:
        """Record that the state was replaced by one from `origin`; the facts do not change."""

        def change() -> Ticket:
            payload = encode_restore(state, origin, self._ledger.facts)
            ticket = self._append(RecordType.RESTORE, payload)
            self._state = state
            return ticket

        return self._make(change)

    def append_policy_update(
        self, policy_id: str, digest: str, version: str, state: TamiyoState[PolicyState]
    ) -> Ticket:
        """Record that a policy was applied, after `store_parameters` returned its `digest`."""
        policy = AppliedPolicy(policy_id, digest, version)
        payload = encode_policy_update(policy, state)

        def change() -> Ticket:
            ticket = self._append(RecordType.POLICY_UPDATE, payload)
            self._state = state
            self._ledger.add_policy(policy)
            return ticket

        return self._make(change)

    def acknowledge(self, report_id: str) -> Ticket:
        """Record that the bus has accepted a report.

        Raises:
          PersistenceError: the report is not pending; or as `append_step`.
        """
        return self._settle(RecordType.ACK, report_id)

    def drop(self, report_id: str) -> Ticket:
        """Record that a report is not published again; raises as `acknowledge`.

        The report stays in the journal.
        """
        return self._settle(RecordType.DROP, report_id)

    def retry(self, report_id: str, attempts: int, not_before_ns: int) -> Ticket:
        """Record that publishing has failed `attempts` times, and when to try next.

        Raises:
          PersistenceError: the report is not pending; or as `append_step`.
        """
        payload = encode_publication(report_id, attempts, not_before_ns)

        def change() -> Ticket:
            self._ledger.require_pending(report_id)
            ticket = self._append(RecordType.RETRY, payload)
            self._ledger.reschedule(report_id, attempts, not_before_ns)
            return ticket

        return self._make(change)

    def compact(self) -> None:
        """Begin a new segment now, and remove the segments that retention allows to remove.

        Raises:
          PersistenceError: the disk failed, and the journal is sealed; or not started yet.
        """
        self._make(self._rotate)

    def flush(self) -> None:
        """Wait until every record is on disk.

        Raises:
          PersistenceError: the journal was sealed before that.
        """
        self._journal.flush()

    def _make(self, change: Callable[[], T]) -> T:
        """Make a change in the critical section: a record and its fold, or the journal is sealed.

        No context manager holds the lock but the lock itself: one written in Python can be entered
        and, after a signal, never left.
        """
        self._process.check()
        with self._lock:
            before = self._journal.last_sequence
            try:
                return change()
            except PersistenceError:
                self._note_if_sealed()
                raise  # nothing was written, or the journal is sealed
            except BaseException:
                if self._journal.last_sequence != before:
                    self._journal.seal(PersistenceError("recording a step was interrupted"))
                self._note_if_sealed()
                raise

    def _note_if_sealed(self) -> None:
        """Leave the reason where readers find it; the journal itself cannot take it."""
        if self._journal.failure is not None:
            self._note_stop(str(self._journal.failure))

    def _settle(self, record_type: RecordType, report_id: str) -> Ticket:
        payload = encode_publication(report_id)

        def change() -> Ticket:
            self._ledger.require_pending(report_id)
            ticket = self._append(record_type, payload)
            self._ledger.settle(report_id)
            return ticket

        return self._make(change)

    def _append(self, record_type: RecordType, payload: bytes) -> Ticket:
        if not self._journal.has_room(payload, self._segment_bytes):
            self._rotate()
        return self._journal.append(record_type, payload)

    def _rotate(self) -> None:
        if self._state is None:
            raise PersistenceError("the journal has no segment yet; call start first")
        self._journal.rotate(encode_snapshot(self._state, self._ledger.facts))
        self._apply_retention()

    def _apply_retention(self) -> None:
        facts = self._ledger
        self._retention.apply(facts.newest_report_ns, facts.first_pending, self._clock())
