"""Group commit: one fdatasync for all records written before it.

A waiting thread performs the fdatasync itself, for everything written by then; other waiting
threads share it. A single waiter therefore pays for the fdatasync only, without a thread switch.
Records that no thread waits for are synced by a flusher thread.
"""

from __future__ import annotations

import threading
import time
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tamiyo_jax.errors import JournalSealedError, PersistenceError
from tamiyo_jax.journal._process import OwnerProcess
from tamiyo_jax.journal._segments import explain_error, translate_errors

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from pathlib import Path

    from tamiyo_jax.journal._files import AppendFile

__all__ = ["GroupCommit", "Ticket"]


class GroupCommit:
    """The unsynced end of a log: what is written, what is on disk, and what sealed it.

    Attributes:
      process: the process that may write.
      lock: held while a record is written or an attribute below changes.
      file: what is written to; None before the first segment.
      written: the highest sequence written.
      synced: the highest sequence known to be on disk.
      failure: the error that sealed the log; nothing is written or synced after it.
      closing: whether `close` was called; no record is accepted after that.

    Args:
      directory: the directory of the log, named in errors.
      confirm: called with a sequence after everything up to it was synced, before a waiting
        thread is notified; an error that it raises seals the log.
      last_sequence: the highest sequence so far; it is on disk.
      flush_ms: milliseconds between two fsyncs when no thread waits.
    """

    def __init__(
        self,
        directory: Path,
        last_sequence: int,
        flush_ms: float,
        confirm: Callable[[int], None],
    ) -> None:
        self.process = OwnerProcess()
        self.lock = threading.Lock()
        self.file: AppendFile | None = None
        self.written = self.synced = self._wanted = last_sequence
        self.failure: PersistenceError | None = None
        self.closing = False
        self._directory = directory
        self._confirm = confirm
        self._flush_seconds = flush_ms / 1e3
        self._next_flush = 0.0
        self._syncing = False
        self._work = threading.Condition(self.lock)  # the flusher waits here
        self._news = threading.Condition(self.lock)  # all others wait here
        self._flusher: threading.Thread | None = None

    def start_flusher(self) -> None:
        """Start the thread that syncs records which no thread waits for."""
        self._flusher = threading.Thread(target=self._flush, name="journal", daemon=True)
        self._flusher.start()

    def note_written(self, sequence: int) -> None:
        """Note that a record was written to the file; the lock is held."""
        if self.written == self.synced:
            self._work.notify()
        self.written = sequence

    def continue_in(self, file: AppendFile, sequence: int) -> None:
        """Continue in another file, which is on disk up to `sequence` with everything before it.

        The lock is held.
        """
        self._confirm(sequence)
        self.file = file
        self.written = self.synced = self._wanted = sequence

    def fail(self, cause: PersistenceError) -> None:
        """Seal the log; the first failure is kept as the cause. The lock is held."""
        self.failure = self.failure or cause
        self._work.notify()
        self._news.notify_all()

    def require_open(self) -> AppendFile:
        """Return the file to append to; the lock is held.

        Raises:
          PersistenceError: the log is sealed, closed or not started.
        """
        if self.file is None or self.failure is not None or self.closing:
            raise self.make_refusal()
        return self.file

    def make_refusal(self) -> PersistenceError:
        """Make the error for a record that cannot be appended."""
        if self.failure is not None:
            return JournalSealedError(
                "the journal is sealed and accepts no further record; remove the cause and open it"
                f" again: {self.failure}",
                **self.failure.context,
            )
        if self.closing:
            return PersistenceError("the journal is closed; open it again to append")
        if self.file is None:
            return PersistenceError("the journal has no segment yet; call start first")
        return PersistenceError("the journal was started before; call start once")

    @contextmanager
    def seal_on_failure(self, action: str) -> Generator[None]:
        """Seal the log, whose lock is held, if the block raises."""
        try:
            yield
        except BaseException as error:
            self.seal_after(error, action)
            raise

    def seal_after(self, error: BaseException, action: str) -> None:
        """Seal the log, whose lock is held, because an action ended in `error`.

        That may be the exception of a signal handler: a frame may be half written.

        Raises:
          PersistenceError: in place of an `OSError`.
        """
        match error:
            case OSError():
                cause = explain_error(error, action, self._directory)
                self.fail(cause)
                raise cause from error
            case PersistenceError():
                self.fail(error)
            case _:
                interruption = f"{action} in {self._directory} was interrupted"
                self.fail(PersistenceError(interruption))

    def wait(self, sequence: int, timeout: float | None = None) -> bool:
        """Wait until a sequence that was written is on disk; see `Ticket.wait`."""
        self.process.check()
        with self.lock:
            if timeout is None:
                while self._is_pending(sequence):
                    self._sync()
            elif self._is_pending(sequence):
                # An fdatasync cannot be given a time limit, so the flusher performs it.
                self._wanted = max(self._wanted, sequence)
                self._work.notify()
                self._news.wait_for(lambda: not self._is_pending(sequence), timeout)
            if self.synced >= sequence:
                return True
            if self.failure is None:
                return False
            raise PersistenceError(
                f"outcome unknown: record {sequence} may or may not be on disk; reopen the journal"
                f" to find out. Cause: {self.failure}",
                **(self.failure.context | {"sequence": sequence}),
            ) from self.failure

    def close(self) -> None:
        """Sync everything that was written and release the file; see `Journal.close`."""
        if not self.process.is_current:
            return  # the file, and what is to be synced of it, are the parent's
        with self.lock:
            if self.closing:
                return
            self.closing = True
            self._work.notify()
        if self._flusher is not None:
            self._flusher.join()
        if self.file is not None:
            with translate_errors("closing the journal", self._directory), closing(self.file):
                self._settle()

    def _settle(self) -> None:
        """Sync everything that was written; even after a failure, wait for an fsync in progress."""
        try:
            self.wait(self.written)
        finally:
            with self.lock:
                self._news.wait_for(lambda: not self._syncing)

    def _is_pending(self, sequence: int) -> bool:
        return self.synced < sequence and self.failure is None

    def _sync(self) -> None:
        """Sync what is written, or wait while another thread syncs; the lock is held."""
        if self._syncing or self.file is None:  # no segment was begun yet
            self._news.wait()
            return
        target, file = self.written, self.file
        cause: PersistenceError | None = PersistenceError("an fsync was interrupted")
        self._next_flush = time.monotonic() + self._flush_seconds
        self._syncing = True
        self.lock.release()
        try:
            file.fdatasync()
            self._confirm(target)
            cause = None
        except PersistenceError as error:
            cause = error
        except OSError as error:
            cause = explain_error(error, "fsync of a segment", self._directory)
        finally:
            self.lock.acquire()
            self._syncing = False
            if cause is None:
                self.synced = target
                self._news.notify_all()
            else:
                self.fail(cause)

    def _flush(self) -> None:
        """Body of the flusher: sync unsynced records at most once in `flush_ms`.

        It syncs at once if a thread waits.
        """
        with self.lock:
            while not self._is_over():
                self._work.wait_for(lambda: self.written > self.synced or self._is_over())
                rest = self._next_flush - time.monotonic()
                self._work.wait_for(lambda: self._wanted > self.synced or self._is_over(), rest)
                if self._is_pending(self.written) and not self.closing:
                    self._sync()

    def _is_over(self) -> bool:
        return self.closing or self.failure is not None


@dataclass(frozen=True, slots=True)
class Ticket:
    """The durability of one record."""

    sequence: int
    _commit: GroupCommit = field(repr=False)

    @property
    def done(self) -> bool:
        """Whether the record is known to be on disk."""
        return self._commit.synced >= self.sequence

    def wait(self, timeout: float | None = None) -> bool:
        """Wait for the record to be on disk; False if `timeout` seconds were not enough.

        Raises:
          PersistenceError: the journal was sealed first; whether the record is on disk is
            unknown until the journal is opened again.
        """
        return self._commit.wait(self.sequence, timeout)
