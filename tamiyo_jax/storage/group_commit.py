"""Group commit: what is written reaches the disk in as few fsyncs as there are moments to wait.

A thread that waits does the fdatasync itself, for all that is written by then, while others
that wait let it, and then one of them goes on. So one that waits alone pays for the fdatasync
and for nothing else, and many share one. What nobody waits for is left to a flusher thread.
"""

from __future__ import annotations

import threading
import time
from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tamiyo_jax.errors import PersistenceError
from tamiyo_jax.storage.segments import explained, reporting

if TYPE_CHECKING:
    from pathlib import Path

    from tamiyo_jax.storage.files import AppendFile

__all__ = ["GroupCommit", "Ticket"]


class GroupCommit:
    """The end of a log, between its writer and the disk.

    Attributes:
      lock: held by whoever changes one of the following, and while a record is written.
      file: what is written to; None before the first segment.
      written: the highest sequence written.
      synced: the highest sequence known to be on disk.
      failure: what sealed the log; nothing is written or synced after it.
      closing: whether no more will be written.

    Args:
      directory: of the log, for errors to name.
      last_sequence: the highest sequence so far; it is on disk.
      flush_ms: how long a record may wait for its fsync to begin when nobody waits for it.
    """

    def __init__(self, directory: Path, last_sequence: int, flush_ms: float) -> None:
        self.lock = threading.Lock()
        self.file: AppendFile | None = None
        self.written = self.synced = self._wanted = last_sequence
        self.failure: PersistenceError | None = None
        self.closing = False
        self._directory = directory
        self._flush_seconds = flush_ms / 1e3
        self._next_flush = 0.0
        self._syncing = False
        self._work = threading.Condition(self.lock)  # the flusher waits here
        self._news = threading.Condition(self.lock)  # all others wait here
        self._flusher: threading.Thread | None = None

    def start_flusher(self) -> None:
        """Bring records to disk also if nobody waits for them."""
        self._flusher = threading.Thread(target=self._flush, name="journal", daemon=True)
        self._flusher.start()

    def wrote(self, sequence: int) -> None:
        """Say that a record was written to the file; the lock is held."""
        if self.written == self.synced:
            self._work.notify()
        self.written = sequence

    def go_on_in(self, file: AppendFile, sequence: int) -> None:
        """Change to a file that is on disk up to `sequence`, as everything before it is.

        The lock is held.
        """
        self.file = file
        self.written = self.synced = self._wanted = sequence

    def fail(self, cause: PersistenceError) -> None:
        """Seal the log, because of what failed first; the lock is held."""
        self.failure = self.failure or cause
        self._work.notify()
        self._news.notify_all()

    def wait(self, sequence: int, timeout: float | None = None) -> bool:
        """Wait until a sequence that was written is on disk; see `Ticket.wait`."""
        with self.lock:
            if timeout is None:
                while self._is_pending(sequence):
                    self._sync()
            elif self._is_pending(sequence):
                # An fdatasync takes the time it takes, so the flusher has to do it.
                self._wanted = max(self._wanted, sequence)
                self._work.notify()
                self._news.wait_for(lambda: not self._is_pending(sequence), timeout)
            if self.synced >= sequence:
                return True
            if self.failure is None:
                return False
            raise PersistenceError(
                f"outcome unknown: whether record {sequence} is on disk shows when the journal is"
                f" opened again; {self.failure}",
                **(self.failure.context | {"sequence": sequence}),
            ) from self.failure

    def close(self) -> None:
        """Wait until all that is written is on disk and release the file; see `Journal.close`."""
        with self.lock:
            if self.closing:
                return
            self.closing = True
            self._work.notify()
        if self._flusher is not None:
            self._flusher.join()
        if self.file is not None:
            with reporting("closing the journal", self._directory), closing(self.file):
                self._settle()

    def _settle(self) -> None:
        """Wait until all that is written is on disk, and in any case for an fsync under way."""
        try:
            self.wait(self.written)
        finally:
            with self.lock:
                self._news.wait_for(lambda: not self._syncing)

    def _is_pending(self, sequence: int) -> bool:
        return self.synced < sequence and self.failure is None

    def _sync(self) -> None:
        """Bring to disk what is written, or wait while another thread does; the lock is held."""
        if self._syncing or self.file is None:  # without a file there is nothing to wait for
            self._news.wait()
            return
        target, file = self.written, self.file
        cause: PersistenceError | None = PersistenceError("an fsync was interrupted")
        self._next_flush = time.monotonic() + self._flush_seconds
        self._syncing = True
        self.lock.release()
        try:
            file.fdatasync()
            cause = None
        except OSError as error:
            cause = explained(error, "fsync of a segment", self._directory)
        finally:
            self.lock.acquire()
            self._syncing = False
            if cause is None:
                self.synced = target
                self._news.notify_all()
            else:
                self.fail(cause)

    def _flush(self) -> None:
        """Body of the flusher: sync as soon as there is something to, once in `flush_ms`.

        It does not wait out that time if somebody waits for it.
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
