"""`StorageManager`: the one owner of a run directory and of everything persisted in it.

It writes a record and folds it in one critical section, so that the state and the facts that
it holds, and that a new segment begins with, are always those after the last record.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Generic, Self, TypeVar

from tamiyo_jax.config import StorageConfig
from tamiyo_jax.controller import AppliedPolicy, TamiyoState
from tamiyo_jax.errors import PersistenceError
from tamiyo_jax.storage.facts import Facts, Ledger
from tamiyo_jax.storage.files import FileSystem, PosixFileSystem
from tamiyo_jax.storage.fold import newest_report_before, recover_facts, recover_state
from tamiyo_jax.storage.frames import RecordType
from tamiyo_jax.storage.journal import Journal, Ticket
from tamiyo_jax.storage.lock import DirectoryLock
from tamiyo_jax.storage.parameters import ParameterFiles
from tamiyo_jax.storage.records import (
    StepRecord,
    encode_operator,
    encode_policy_update,
    encode_publication,
    encode_restore,
    encode_snapshot,
    encode_step,
)
from tamiyo_jax.storage.recovery import Recovered
from tamiyo_jax.storage.segments import reporting

__all__ = ["StorageManager"]

PolicyState = TypeVar("PolicyState")

_HOUR_NS = 3_600_000_000_000


class StorageManager(Generic[PolicyState]):
    """Lock, journal, parameters and caches of one run directory; made by `open`.

    Opened, then started with the state to go on from, then appended to. Safe to share between
    threads. A context manager.
    """

    def __init__(
        self,
        directory: Path,
        config: StorageConfig,
        *,
        lock: DirectoryLock,
        journal: Journal,
        recovered: Recovered,
        state: TamiyoState[PolicyState] | None,
        ledger: Ledger,
        clock: Callable[[], int],
        parameters: ParameterFiles,
    ) -> None:
        self._directory = directory
        self._config = config
        self._directory_lock = lock
        self._journal = journal
        self._recovered = recovered
        self._state = state
        self._ledger = ledger
        self._clock = clock
        self._parameters = parameters
        self._newest_before = _newest_by_base(journal, recovered)
        self._lock = threading.Lock()

    @classmethod
    def open(
        cls,
        directory: Path,
        config: StorageConfig,
        policy_state: PolicyState,
        *,
        clock: Callable[[], int],
        publishing: bool = False,
        files: FileSystem | None = None,
        salt_source: Callable[[int], bytes] = os.urandom,
    ) -> Self:
        """Lock a run directory and recover what it holds.

        Args:
          directory: the run directory; made if it is not there.
          config: how to write, how long to keep, what to do about corruption.
          policy_state: any state of the same policy, for structure, shapes and dtypes.
          clock: nanoseconds since the epoch.
          publishing: whether reports have a bus to go to. Without one none is pending, and
            those that were pending before stay in the journal only.
          files: the file system, by default that of the operating system.
          salt_source: random bytes for the salts of new segments.

        Raises:
          DirectoryLockedError: another process owns the directory.
          PersistenceError: as `Journal.open`, or a record cannot be read.
          CheckpointMismatchError: the recovered state is of another policy.
        """
        files = PosixFileSystem() if files is None else files
        with ExitStack() as unless_open:
            lock = DirectoryLock(directory)
            unless_open.callback(lock.release)
            journal, recovered = Journal.open(
                directory,
                durability=config.durability,
                flush_ms=config.flush_ms,
                recovery=config.recovery,
                files=files,
                salt_source=salt_source,
            )
            state = recover_state(recovered.replay, policy_state)
            ledger = Ledger(recover_facts(recovered))
            ledger.connect(publishing)
            with reporting("opening the run directory", directory):
                parameters = ParameterFiles(directory, files)
                _make_private(directory / "cache")
                _make_private(directory / "cache" / "xla")
            manager = cls(
                directory,
                config,
                lock=lock,
                journal=journal,
                recovered=recovered,
                state=state,
                ledger=ledger,
                clock=clock,
                parameters=parameters,
            )
            unless_open.pop_all()
        return manager

    @property
    def directory(self) -> Path:
        """The run directory."""
        return self._directory

    @property
    def cache_directory(self) -> Path:
        """Where compiled programs may be cached; nobody else can write there."""
        return self._directory / "cache" / "xla"

    @property
    def recovered(self) -> Recovered:
        """The journal as it was found at opening, damage included."""
        return self._recovered

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
        with self._recording():
            self._journal.start(encode_snapshot(state, self._ledger.facts))
            self._state = state
            self._retain()

    def append_step(
        self, step: StepRecord, state: TamiyoState[PolicyState], packet: bytes | None = None
    ) -> Ticket:
        """Record a step, decided or failed, and the state after it.

        This and all that record something below return once the record is written, with
        durability ``"always"`` once it is on disk.

        Args:
          step: the step.
          state: the state after it.
          packet: as for `encode_step`.

        Raises:
          InvalidReportError: a report has no id or no time of issue; nothing was written.
          PersistenceError: the disk failed, and the journal is sealed; or the record is too
            large, which changes nothing.
          JournalSealedError: an earlier write or fsync failed.
        """
        payload = encode_step(step, packet)
        with self._recording():
            ticket = self._append(RecordType.STEP, payload)
            self._state = state
            self._ledger.reported(ticket.sequence, step.reports)
        return ticket

    def append_operator(self, action: str, detail: str, state: TamiyoState[PolicyState]) -> Ticket:
        """Record something done by hand, and the state after it; see `append_step`."""
        payload = encode_operator(action, detail, state)
        with self._recording():
            ticket = self._append(RecordType.OPERATOR, payload)
            self._state = state
        return ticket

    def append_restore(self, state: TamiyoState[PolicyState], origin: str) -> Ticket:
        """Record that a state was taken over from `origin`; the facts stay what they are."""
        with self._recording():
            payload = encode_restore(state, origin, self._ledger.facts)
            ticket = self._append(RecordType.RESTORE, payload)
            self._state = state
        return ticket

    def append_policy_update(
        self, policy_id: str, digest: str, version: str, state: TamiyoState[PolicyState]
    ) -> Ticket:
        """Record that a policy was applied, after `store_parameters` returned its `digest`."""
        policy = AppliedPolicy(policy_id, digest, version)
        payload = encode_policy_update(policy, state)
        with self._recording():
            ticket = self._append(RecordType.POLICY_UPDATE, payload)
            self._state = state
            self._ledger.applied(policy)
        return ticket

    def acknowledge(self, report_id: str) -> Ticket:
        """Record that the bus has taken a report.

        Raises:
          PersistenceError: the report is not pending; or as `append_step`.
        """
        return self._settle(RecordType.ACK, report_id)

    def drop(self, report_id: str) -> Ticket:
        """Record that a report is not tried again; it stays in the journal. As `acknowledge`."""
        return self._settle(RecordType.DROP, report_id)

    def retry(self, report_id: str, attempts: int, not_before_ns: int) -> Ticket:
        """Record that publishing has failed `attempts` times, and when to try next.

        Raises:
          PersistenceError: the report is not pending; or as `append_step`.
        """
        payload = encode_publication(report_id, attempts, not_before_ns)
        with self._recording():
            self._ledger.require_pending(report_id)
            ticket = self._append(RecordType.RETRY, payload)
            self._ledger.retried(report_id, attempts, not_before_ns)
        return ticket

    def compact(self) -> None:
        """Go on in a new segment now, and remove those that retention lets go.

        Raises:
          PersistenceError: the disk failed, and the journal is sealed; or not started yet.
        """
        with self._recording():
            self._rotate()

    def store_parameters(self, data: bytes) -> str:
        """Put a policy's parameters on disk, and return their SHA-256, hexadecimal.

        Raises:
          PersistenceError: the disk failed, and the journal is sealed.
        """
        try:
            return self._parameters.store(data)
        except PersistenceError as error:
            self._journal.seal(error)
            raise

    def load_parameters(self, digest: str) -> bytes:
        """Read parameters that `store_parameters` put on disk.

        Raises:
          PersistenceError: there are none of this digest, or what is there has another one.
        """
        return self._parameters.load(digest)

    def flush(self) -> None:
        """Wait until every record is on disk.

        Raises:
          PersistenceError: the journal was sealed before that.
        """
        self._journal.flush()

    def close(self) -> None:
        """Bring everything to disk and release the directory; closing twice is harmless.

        Raises:
          PersistenceError: the journal was sealed with records of unknown outcome.
        """
        try:
            self._journal.close()
        finally:
            self._directory_lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextmanager
    def _recording(self) -> Generator[None]:
        """The critical section: a record and its fold happen together, or the journal is sealed."""
        with self._lock:
            before = self._journal.last_sequence
            try:
                yield
            except PersistenceError:
                raise  # nothing was written, or the journal has sealed itself
            except BaseException:
                if self._journal.last_sequence != before:
                    self._journal.seal(PersistenceError("recording was interrupted half way"))
                raise

    def _settle(self, record_type: RecordType, report_id: str) -> Ticket:
        payload = encode_publication(report_id)
        with self._recording():
            self._ledger.require_pending(report_id)
            ticket = self._append(record_type, payload)
            self._ledger.settled(report_id)
        return ticket

    def _append(self, record_type: RecordType, payload: bytes) -> Ticket:
        if not self._journal.has_room(payload, self._config.segment_bytes):
            self._rotate()
        return self._journal.append(record_type, payload)

    def _rotate(self) -> None:
        if self._state is None:
            raise PersistenceError("the journal has no segment yet; call start first")
        self._journal.rotate(encode_snapshot(self._state, self._ledger.facts))
        self._retain()

    def _retain(self) -> None:
        """Remove the segments whose reports are all too old and none of them pending."""
        current = self._journal.bases[-1]
        self._newest_before[current] = self._ledger.newest_report_ns
        oldest_ns = self._clock() - int(self._config.retention_hours * _HOUR_NS)
        limit = self._ledger.first_pending or current
        expired = [
            base
            for base, newest_ns in self._newest_before.items()
            if newest_ns < oldest_ns and base <= limit
        ]
        if expired:
            self._journal.retire(expired[-1])
            kept = self._journal.bases
            self._newest_before = {b: n for b, n in self._newest_before.items() if b >= kept[0]}


def _newest_by_base(journal: Journal, recovered: Recovered) -> dict[int, int]:
    """For the segments whose SNAPSHOT is readable: the newest report before it, by base.

    All reports of a segment are older than a time if the newest before the next one is,
    because the segments before it have gone by then.
    """
    heads = {base: recovered.find(base) for base in journal.bases}
    return {
        base: newest_report_before(head)
        for base, head in heads.items()
        if head is not None and head.type is RecordType.SNAPSHOT
    }


def _make_private(directory: Path) -> None:
    directory.mkdir(mode=0o700, exist_ok=True)
    directory.chmod(0o700)
