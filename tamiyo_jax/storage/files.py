"""The one door between the journal and the disk.

Everything the journal does to a file system is an operation of `FileSystem`. Tests put
an implementation in its place that fails, stops or forgets at any operation.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["AppendFile", "FileSystem", "PosixAppendFile", "PosixFileSystem"]


class AppendFile(Protocol):
    """A file open for appending. Every operation raises `OSError` when it fails."""

    def write(self, data: bytes) -> None:
        """Append all of `data`; when it raises, any prefix of it may be in the file."""
        ...

    def fdatasync(self) -> None:
        """Return when everything written is on disk."""
        ...

    def close(self) -> None:
        """Release the file; closing promises nothing about the disk."""
        ...


class FileSystem(Protocol):
    """What the journal needs of a file system. Every operation may raise `OSError`."""

    def list(self, directory: Path) -> list[str]:
        """Names of the entries of `directory`, in no particular order."""
        ...

    def read(self, path: Path) -> bytes:
        """The whole content of a file."""
        ...

    def create(self, path: Path) -> AppendFile:
        """Create a file that must not exist yet, and open it for appending."""
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

    def close(self) -> None:
        """Release the descriptor."""
        os.close(self._descriptor)


class PosixFileSystem:
    """The `FileSystem` of the operating system."""

    __slots__ = ()

    def list(self, directory: Path) -> list[str]:
        """Names of the entries of `directory`, in no particular order."""
        return os.listdir(directory)

    def read(self, path: Path) -> bytes:
        """The whole content of a file."""
        return path.read_bytes()

    def create(self, path: Path) -> AppendFile:
        """Create a file that must not exist yet, and open it for appending."""
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        return PosixAppendFile(os.open(path, flags, 0o644))

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
        """Return when the names in `directory` are on disk."""
        with contextlib.ExitStack() as stack:
            descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            stack.callback(os.close, descriptor)
            os.fsync(descriptor)
