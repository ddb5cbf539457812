"""The exclusive lock of a run directory."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from weakref import WeakSet

from tamiyo_jax.errors import DirectoryLockedError, PersistenceError
from tamiyo_jax.journal import FileSystem, is_file_at

__all__ = ["DirectoryLock", "LockState", "read_lock"]

_LOCKS = Path("/proc/locks")
_SIZE = 1024  # of the lock file, taken when it is made


class DirectoryLock:
    """An exclusive `flock` on ``LOCK``; the kernel drops it with the process.

    Args:
      directory: the run directory, an absolute path; created if missing.
      files: syncs the directories that are created.

    Raises:
      DirectoryLockedError: another process holds it; `pid` is that process.
      PersistenceError: the directory cannot be created or written.
    """

    def __init__(self, directory: Path, files: FileSystem) -> None:
        self._fd = -1
        self._path = directory / "LOCK"
        try:
            _make_durably(directory, files)
            self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            self._take(directory)
        except OSError as error:
            self.release()
            raise PersistenceError(
                f"run directory {directory} cannot be used: {error.strerror}",
                path=str(directory),
                errno=error.errno,
            ) from error
        except PersistenceError:
            self.release()
            raise
        _held.add(self)

    def _take(self, directory: Path) -> None:
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder, _ = _read(self._fd)
            raise DirectoryLockedError(
                f"run directory {directory} is locked by process {holder or 'unknown'}; wait for "
                "it to end or choose another directory",
                path=str(directory),
                pid=int(holder) if holder.isdigit() else None,
            ) from error
        self._write("")

    def note_stop(self, reason: str) -> None:
        """Leave a note for readers: why the journal takes no further record.

        It is written over what the file holds already, so a disk that is full has room for it.
        """
        with suppress(OSError):  # the caller raises the reason itself
            self._write(reason)

    def _write(self, reason: str) -> None:
        text = f"{os.getpid()}\n{reason}".encode()[:_SIZE]
        os.pwrite(self._fd, text.ljust(_SIZE), 0)
        os.ftruncate(self._fd, _SIZE)

    def check(self) -> None:
        """Check that this is still the lock of the directory.

        Raises:
          PersistenceError: ``LOCK`` was moved, deleted or replaced.
        """
        if not is_file_at(self._fd, self._path):
            raise PersistenceError(
                f"{self._path} was moved, deleted or replaced while the run was using it, so"
                " another process may own the run directory. Restore it and open it again",
                path=str(self._path),
            )

    def release(self) -> None:
        """Release the directory; releasing twice is harmless."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


@dataclass(frozen=True, slots=True)
class LockState:
    """What is known of a run directory's owner.

    Attributes:
      holder: the process of this machine that holds the directory; None where none does.
      stopped: why the journal of the last owner takes no further record; empty where it does.
    """

    holder: int | None
    stopped: str


def read_lock(directory: Path) -> LockState:
    """Read who owns a run directory, without taking its lock.

    The kernel's list of locks says it. Trying the lock would turn away an owner that opens the
    directory at that moment. In another process namespace the holder is not seen.

    Args:
      directory: the run directory.
    """
    try:
        fd = os.open(directory / "LOCK", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return LockState(None, "")
    try:
        holder, stopped = _read(fd)
        inode = os.fstat(fd).st_ino
    finally:
        os.close(fd)
    held = any(_holds(line.split(), holder, inode) for line in _kernel_locks())
    return LockState(int(holder) if held else None, stopped)


def _kernel_locks() -> list[str]:
    try:
        return _LOCKS.read_text().splitlines()
    except OSError:
        return []


def _holds(line: Sequence[str], pid: str, inode: int) -> bool:
    """Whether a line is of a process that holds a lock; a process that waits has an arrow."""
    match line:
        case [_, "FLOCK", _, _, owner, file, *_]:
            return owner == pid and file.endswith(f":{inode}")
        case _:
            return False


def _read(fd: int) -> tuple[str, str]:
    """The owner that a lock file names, and its note."""
    text = os.pread(fd, _SIZE, 0).decode("utf-8", "replace")
    owner, _, note = text.partition("\n")
    return owner.strip(), note.strip()


def _make_durably(directory: Path, files: FileSystem) -> None:
    """Create a directory and its parents, and sync their names to disk."""
    missing = [path for path in (directory, *directory.parents) if not path.exists()]
    directory.mkdir(parents=True, exist_ok=True)
    for path in missing:
        files.fsync_dir(path.parent)


_held: WeakSet[DirectoryLock] = WeakSet()


def _release_in_child() -> None:
    for lock in tuple(_held):
        lock.release()


os.register_at_fork(after_in_child=_release_in_child)
