"""The file-system interface of the journal.

The journal accesses files through `FileSystem` only. Tests substitute implementations that
fail, stop or lose unsynced data at any operation.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from pathlib import Path
from typing import Protocol

from tamiyo_jax.errors import PersistenceError

__all__ = ["AppendFile", "FileSystem", "PosixAppendFile", "PosixFileSystem", "is_file_at"]

LARGEST_FILE_BYTES = 4 * 2**30
"""Limit of a file that is read, far above any segment; a sparse file can be larger than memory."""


class AppendFile(Protocol):
    """A file open for appending. Every operation raises `OSError` when it fails."""

    def write(self, data: bytes) -> None:
        """Append all of `data`; when it raises, any prefix of it may be in the file."""
        ...

    def fdatasync(self) -> None:
        """Return when everything written is on disk."""
        ...

    def is_at(self, path: Path) -> bool:
        """Whether `path` still names this file."""
        ...

    def close(self) -> None:
        """Release the file without syncing it."""
        ...


class FileSystem(Protocol):
    """The file-system operations of the journal. Every operation may raise `OSError`."""

    def list(self, directory: Path) -> list[str]:
        """Names of the entries of `directory`, in no particular order."""
        ...

    def size(self, path: Path) -> int:
        """The size of a file in bytes."""
        ...

    def read(self, path: Path) -> bytes:
        """The whole content of a file."""
        ...

    def create(self, path: Path) -> AppendFile:
        """Create a file that must not exist yet, and open it for appending."""
        ...

    def overwrite(self, path: Path, data: bytes) -> None:
        """Replace the content of a small file, always of one length; not synced."""
        ...

    def rename(self, source: Path, target: Path) -> None:
        """Give a file another name, atomically."""
        ...

    def unlink(self, path: Path) -> None:
        """Remove a file."""
        ...

    def mkdir(self, directory: Path) -> None:
        """Create a directory, unless it exists."""
        ...

    def fsync_dir(self, directory: Path) -> None:
        """Return when the names in `directory` are on disk."""
        ...


class PosixAppendFile:
    """An `AppendFile` over a file descriptor, which it owns."""

    __slots__ = ("_descriptor",)

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def write(self, data: bytes) -> None:
        """Append all of `data`, completing short writes.

        The interpreter repeats calls that a signal interrupts (PEP 475), here and below.
        """
        written = os.write(self._descriptor, data)
        while written < len(data):
            written += os.write(self._descriptor, memoryview(data)[written:])

    def fdatasync(self) -> None:
        """Return when everything written is on disk."""
        os.fdatasync(self._descriptor)

    def is_at(self, path: Path) -> bool:
        """Whether `path` still names this file."""
        return is_file_at(self._descriptor, path)

    def close(self) -> None:
        """Release the descriptor."""
        os.close(self._descriptor)


class PosixFileSystem:
    """The `FileSystem` of the operating system.

    Args:
      sync_directories: False skips `fsync_dir`, for file systems that refuse it. Files that
        were created, renamed or removed just before a loss of power may then be lost.
    """

    _sync_directories = True

    def __init__(self, sync_directories: bool = True) -> None:
        self._sync_directories = sync_directories

    def list(self, directory: Path) -> list[str]:
        """Names of the entries of `directory`, in no particular order."""
        return os.listdir(directory)

    def size(self, path: Path) -> int:
        """The size of a file in bytes."""
        return path.stat().st_size

    def read(self, path: Path) -> bytes:
        """The whole content of a file."""
        facts = path.stat()
        if not stat.S_ISREG(facts.st_mode):  # reading a FIFO would wait for ever
            raise OSError(errno.EINVAL, f"{path.name} is not a regular file", str(path))
        if facts.st_size > LARGEST_FILE_BYTES:
            raise OSError(errno.EFBIG, f"{path.name} has {facts.st_size} bytes", str(path))
        return path.read_bytes()

    def create(self, path: Path) -> AppendFile:
        """Create a file that must not exist yet, and open it for appending."""
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        return PosixAppendFile(os.open(path, flags, 0o644))

    def overwrite(self, path: Path, data: bytes) -> None:
        """Replace the content of a small file, always of one length; not synced."""
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            os.pwrite(descriptor, data, 0)
        finally:
            os.close(descriptor)

    def rename(self, source: Path, target: Path) -> None:
        """Give a file another name, atomically."""
        source.rename(target)

    def unlink(self, path: Path) -> None:
        """Remove a file."""
        path.unlink()

    def mkdir(self, directory: Path) -> None:
        """Create a directory, unless it exists."""
        directory.mkdir(exist_ok=True)

    def fsync_dir(self, directory: Path) -> None:
        """Return when the names in `directory` are on disk.

        Raises:
          PersistenceError: the file system does not support it.
        """
        if not self._sync_directories:
            return
        with contextlib.ExitStack() as stack:
            descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            stack.callback(os.close, descriptor)
            try:
                os.fsync(descriptor)
            except OSError as error:
                if error.errno not in _UNSUPPORTED:
                    raise
                raise PersistenceError(
                    f"fsync of directory {directory} failed with"
                    f" {errno.errorcode[error.errno]}: its file system"
                    f" ({_file_system_of(directory)}) cannot sync directories. Use a directory on"
                    " another file system, or set storage.sync_directories to false: a loss of"
                    " power can then take whole new segments of the journal",
                    path=str(directory),
                    errno=error.errno,
                    action="fsync of a directory",
                ) from error


_UNSUPPORTED = frozenset({errno.EINVAL, errno.ENOTSUP, errno.ENOSYS})


def is_file_at(descriptor: int, path: Path) -> bool:
    """Whether `path` names the file of an open descriptor."""
    try:
        named = path.stat()
    except OSError:
        return False
    return os.path.samestat(os.fstat(descriptor), named)


def _file_system_of(directory: Path) -> str:
    """Type and mount point of the file system that holds a directory, for messages."""
    try:
        mounts = [line.split(" ") for line in Path("/proc/mounts").read_text().splitlines()]
    except OSError:
        return "of unknown type"
    inside = [entry for entry in mounts if directory.absolute().is_relative_to(entry[1])]
    _, mount, kind, *_ = max(inside, key=lambda entry: len(entry[1]))
    return f"{kind} mounted at {mount}"
