"""`StorageManager`: the owner of a run directory and of everything persisted in it."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Self, TypeVar

from tamiyo_jax.config import StorageConfig
from tamiyo_jax.contracts import Event
from tamiyo_jax.controller import TamiyoState
from tamiyo_jax.errors import PersistenceError
from tamiyo_jax.journal import (
    FileSystem,
    Journal,
    PosixFileSystem,
    Recovered,
    translate_errors,
)
from tamiyo_jax.storage._facts import Ledger
from tamiyo_jax.storage._fold import recover_facts, recover_state
from tamiyo_jax.storage._lock import DirectoryLock
from tamiyo_jax.storage._parameters import ParameterFiles
from tamiyo_jax.storage._recorder import Recorder
from tamiyo_jax.storage._retention import Retention

__all__ = ["StorageManager"]

PolicyState = TypeVar("PolicyState")


class StorageManager(Recorder[PolicyState]):
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
        super().__init__(
            journal,
            state=state,
            ledger=ledger,
            retention=Retention(
                config.retention_hours, config.retention_bytes, journal, recovered, emit
            ),
            segment_bytes=config.segment_bytes,
            clock=clock,
            note_stop=lock.note_stop,
        )
        self._directory = directory
        self._directory_lock = lock
        self._recovered = recovered
        self._parameters = parameters

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


def _make_private(directory: Path) -> None:
    directory.mkdir(mode=0o700, exist_ok=True)
    directory.chmod(0o700)
