"""`StorageManager`: the owner of a run directory and of everything persisted in it.

It writes a record and folds it in one critical section, so that its state and facts, and the
snapshot of a new segment, are always those after the last record.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Generic, Self, TypeVar

from tamiyo_jax.config import StorageConfig
from tamiyo_jax.contracts import Event
from tamiyo_jax.controller import AppliedPolicy, TamiyoState
from tamiyo_jax.errors import PersistenceError
from tamiyo_jax.journal import (
    FileSystem,
    Journal,
    OwnerProcess,
    PosixFileSystem,
    RecordType,
    Recovered,
    Ticket,
    translate_errors,
)
from tamiyo_jax.storage._facts import Facts, Ledger
from tamiyo_jax.storage._fold import recover_facts, recover_state
from tamiyo_jax.storage._lock import DirectoryLock
from tamiyo_jax.storage._parameters import ParameterFiles
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

__all__ = ["StorageManager"]

PolicyState = TypeVar("PolicyState")


class StorageManager(Generic[PolicyState]):
    """Lock, journal, parameters and caches of a run directory; created by `open`.

    Open it, call `start` with the state to continue from, then append. Safe to share between
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
        emit: Callable[[tuple[Event, ...]], None],
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
        self._retention = Retention(config.retention_hours, journal, recovered, emit)
        self._lock = threading.Lock()
        self._process = OwnerProcess()

    @classmethod
    def open(
        cls,
        directory: Path,
        config: StorageConfig,
        policy_state: PolicyState,
        *,
        clock: Callable[[], int],
        publishing: bool = False,
        settings: str | None = None,
        files: FileSystem | None = None,
        salt_source: Callable[[int], bytes] = os.urandom,
        emit: Callable[[tuple[Event, ...]], None] = lambda events: None,
    ) -> Self:
        """Lock a run directory and recover what it holds.

        Args:
          directory: the run directory; created if missing.
          config: durability, retention and recovery.
          policy_state: any state of the same policy, for structure, shapes and dtypes.
          clock: nanoseconds since the epoch.
          publishing: whether there is a bus. Without a bus no report is pending, and those
            that were pending before stay in the journal only.
          settings: the controller's configuration as JSON, for readers of the journal; None keeps
            the recorded one.
          files: the file system, by default that of the operating system.
          salt_source: random bytes for the salts of new segments.
          emit: takes the event of every removal by retention.

        Raises:
          DirectoryLockedError: another process owns the directory.
          PersistenceError: as `Journal.open`, or a record cannot be read.
          CheckpointMismatchError: the recovered state is of another policy.
        """
        directory = Path(directory).absolute()
        real_files = PosixFileSystem(config.sync_directories)
        files = real_files if files is None else files
        with ExitStack() as unless_open:
            lock = DirectoryLock(directory, real_files)
            unless_open.callback(lock.release)
            journal, recovered = Journal.open(
                directory,
                durability=config.durability,
                flush_ms=config.flush_ms,
                recovery=config.recovery,
                files=files,
                salt_source=salt_source,
                check_owner=lock.check,
            )
            state = recover_state(recovered.replay, policy_state)
            ledger = Ledger(recover_facts(recovered))
            ledger.connect(publishing)
            if settings is not None:
                ledger.set_settings(settings)
            with translate_errors("opening the run directory", directory):
                parameters = ParameterFiles(directory, files)
                _make_private(directory / "cache")
                _make_private(directory / "cache" / "xla")
                _make_private(directory / "workers")
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
                emit=emit,
            )
            unless_open.pop_all()
        return manager

    @property
    def directory(self) -> Path:
        """The run directory."""
        return self._directory

    @property
    def cache_directory(self) -> Path:
        """The cache of compiled programs, mode 0700."""
        return self._directory / "cache" / "xla"

    @property
    def log_directory(self) -> Path:
        """Directory of the workers' output, mode 0700."""
        return self._directory / "workers"

    @property
    def recovered(self) -> Recovered:
        """The journal as read at opening, with its damage."""
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
        with self._critical_section():
            self._journal.start(encode_snapshot(state, self._ledger.facts))
            self._state = state
            self._apply_retention()

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
        with self._critical_section():
            ticket = self._append(RecordType.STEP, payload)
            self._state = state
            self._ledger.add_reports(ticket.sequence, step.reports)
        return ticket

    def append_operator(self, action: str, detail: str, state: TamiyoState[PolicyState]) -> Ticket:
        """Record an operator's action and the state after it; see `append_step`."""
        payload = encode_operator(action, detail, state)
        with self._critical_section():
            ticket = self._append(RecordType.OPERATOR, payload)
            self._state = state
        return ticket

    def append_restore(self, state: TamiyoState[PolicyState], origin: str) -> Ticket:
        """Record that the state was replaced by one from `origin`; the facts do not change."""
        with self._critical_section():
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
        with self._critical_section():
            ticket = self._append(RecordType.POLICY_UPDATE, payload)
            self._state = state
            self._ledger.add_policy(policy)
        return ticket

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
        with self._critical_section():
            self._ledger.require_pending(report_id)
            ticket = self._append(RecordType.RETRY, payload)
            self._ledger.reschedule(report_id, attempts, not_before_ns)
        return ticket

    def compact(self) -> None:
        """Begin a new segment now, and remove the segments that retention allows to remove.

        Raises:
          PersistenceError: the disk failed, and the journal is sealed; or not started yet.
        """
        with self._critical_section():
            self._rotate()

    def store_parameters(self, data: bytes) -> str:
        """Write a policy's parameters to disk, and return their SHA-256, hexadecimal.

        Raises:
          PersistenceError: the disk failed, and the journal is sealed.
        """
        self._process.check()
        try:
            return self._parameters.store(data)
        except PersistenceError as error:
            self._journal.seal(error)
            raise

    def load_parameters(self, digest: str) -> bytes:
        """Read parameters that `store_parameters` wrote.

        Raises:
          PersistenceError: there is no file of this digest, or its content has another digest.
        """
        return self._parameters.load(digest)

    def flush(self) -> None:
        """Wait until every record is on disk.

        Raises:
          PersistenceError: the journal was sealed before that.
        """
        self._journal.flush()

    def close(self) -> None:
        """Sync everything to disk and release the directory; closing twice is harmless.

        Raises:
          PersistenceError: the journal was sealed with records of unknown outcome.
        """
        if not self._process.is_current:
            return  # everything here is the parent's
        try:
            self._journal.close()
        finally:
            self._note_if_sealed()
            self._directory_lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextmanager
    def _critical_section(self) -> Generator[None]:
        """The critical section: a record and its fold happen together, or the journal is sealed."""
        self._process.check()
        with self._lock:
            before = self._journal.last_sequence
            try:
                yield
            except PersistenceError:
                self._note_if_sealed()
                raise  # nothing was written, or the journal is sealed
            except BaseException:
                if self._journal.last_sequence != before:
                    self._journal.seal(PersistenceError("recording a step was interrupted"))
                raise

    def _note_if_sealed(self) -> None:
        """Leave the reason where readers find it; the journal itself cannot take it."""
        if self._journal.failure is not None:
            self._directory_lock.note_stop(str(self._journal.failure))

    def _settle(self, record_type: RecordType, report_id: str) -> Ticket:
        payload = encode_publication(report_id)
        with self._critical_section():
            self._ledger.require_pending(report_id)
            ticket = self._append(record_type, payload)
            self._ledger.settle(report_id)
        return ticket

    def _append(self, record_type: RecordType, payload: bytes) -> Ticket:
        if not self._journal.has_room(payload, self._config.segment_bytes):
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


def _make_private(directory: Path) -> None:
    directory.mkdir(mode=0o700, exist_ok=True)
    directory.chmod(0o700)
