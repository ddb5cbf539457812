"""One owner per run directory."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from weakref import WeakSet

from tamiyo_jax.errors import DirectoryLockedError, PersistenceError
from tamiyo_jax.storage.files import PosixFileSystem

__all__ = ["DirectoryLock"]


class DirectoryLock:
    """An exclusive `flock` on ``LOCK``; the kernel drops it with the process.

    Args:
      directory: the run directory; made if it is not there.

    Raises:
      DirectoryLockedError: another process holds it; `pid` says which.
      PersistenceError: the directory cannot be made or written.
    """

    def __init__(self, directory: Path) -> None:
        self._fd = -1
        try:
            _make_durably(directory)
            self._fd = os.open(directory / "LOCK", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            self._take(directory)
        except OSError as error:
            self.release()
            raise PersistenceError(
                f"run directory {directory} cannot be used: {error.strerror}",
                path=str(directory),
                errno=error.errno,
            ) from error
        except DirectoryLockedError:
            self.release()
            raise
        _held.add(self)

    def _take(self, directory: Path) -> None:
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.read(self._fd, 32).decode("ascii", "replace").strip()
            raise DirectoryLockedError(
                f"run directory {directory} belongs to process {holder or 'unknown'}; wait for "
                "it to end or choose another directory",
                path=str(directory),
                pid=int(holder) if holder.isdigit() else None,
            ) from error
        os.ftruncate(self._fd, 0)
        os.write(self._fd, f"{os.getpid()}\n".encode())

    def release(self) -> None:
        """Give the directory up; releasing twice is harmless."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _make_durably(directory: Path) -> None:
    """Make a directory and its parents; a loss of power does not take them away again."""
    missing = [path for path in (directory, *directory.parents) if not path.exists()]
    directory.mkdir(parents=True, exist_ok=True)
    for path in missing:
        PosixFileSystem().fsync_dir(path.parent)


_held: WeakSet[DirectoryLock] = WeakSet()


def _release_in_child() -> None:
    for lock in tuple(_held):
        lock.release()


os.register_at_fork(after_in_child=_release_in_child)
