"""The real file system, except for operations that are set to fail."""

from __future__ import annotations

import os
from pathlib import Path

from tamiyo_jax.journal import PosixFileSystem
from tamiyo_jax.journal._files import AppendFile


class Faults:
    """What fails from now on, and how often each operation was called.

    Attributes:
      errors: operations that fail each time, by name, with their errno.
      counts: how often each operation was called.
      fail_at: the number, from 0, of the one operation that fails once with `code`.
      half_written: whether a failing write leaves half of its data.
    """

    def __init__(self, fail_at: int = -1, code: int = 0) -> None:
        self.errors: dict[str, int] = {}
        self.counts: dict[str, int] = {}
        self.fail_at, self.code = fail_at, code
        self.half_written = False

    @property
    def total(self) -> int:
        return sum(self.counts.values())

    def fails(self, operation: str) -> int:
        """The errno that the operation fails with now, 0 if it does not."""
        number = self.total
        self.counts[operation] = self.counts.get(operation, 0) + 1
        return self.code if number == self.fail_at else self.errors.get(operation, 0)

    def check(self, operation: str) -> None:
        if code := self.fails(operation):
            raise OSError(code, os.strerror(code))


class FaultyFile:
    def __init__(self, file: AppendFile, faults: Faults) -> None:
        self._file = file
        self._faults = faults

    def write(self, data: bytes) -> None:
        if code := self._faults.fails("write"):
            if self._faults.half_written:
                self._file.write(data[: len(data) // 2])
            raise OSError(code, os.strerror(code))
        self._file.write(data)

    def fdatasync(self) -> None:
        self._faults.check("fdatasync")
        self._file.fdatasync()

    def is_at(self, path: Path) -> bool:
        return self._file.is_at(path)

    def close(self) -> None:
        self._file.close()


class FaultyFileSystem(PosixFileSystem):
    """The real file system, except for the operations in `faults`."""

    def __init__(self, faults: Faults | None = None) -> None:
        super().__init__()
        self.faults = Faults() if faults is None else faults

    def list(self, directory: Path) -> list[str]:
        self.faults.check("list")
        return super().list(directory)

    def read(self, path: Path) -> bytes:
        self.faults.check("read")
        return super().read(path)

    def create(self, path: Path) -> AppendFile:
        self.faults.check("create")
        return FaultyFile(super().create(path), self.faults)

    def overwrite(self, path: Path, data: bytes) -> None:
        self.faults.check("overwrite")
        super().overwrite(path, data)

    def rename(self, source: Path, target: Path) -> None:
        self.faults.check("rename")
        super().rename(source, target)

    def unlink(self, path: Path) -> None:
        self.faults.check("unlink")
        super().unlink(path)

    def mkdir(self, directory: Path) -> None:
        self.faults.check("mkdir")
        super().mkdir(directory)

    def fsync_dir(self, directory: Path) -> None:
        self.faults.check("fsync_dir")
        super().fsync_dir(directory)
