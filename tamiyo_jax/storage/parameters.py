"""Parameters of policies, in files that are named by their digest."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from tamiyo_jax.errors import PersistenceError
from tamiyo_jax.storage.files import FileSystem
from tamiyo_jax.storage.segments import discard_unfinished, reporting, write_durably

__all__ = ["ParameterFiles"]

_DIGEST = re.compile(r"[0-9a-f]{64}")


class ParameterFiles:
    """The directory ``policies/`` of a run.

    Args:
      directory: the run directory.
      files: the file system.

    Raises:
      OSError: the directory cannot be made.
    """

    def __init__(self, directory: Path, files: FileSystem) -> None:
        self._home = directory / "policies"
        self._files = files
        files.mkdir(self._home)
        files.fsync_dir(directory)
        discard_unfinished(self._home, files)

    def store(self, data: bytes) -> str:
        """Put parameters on disk, and return their SHA-256, hexadecimal.

        Raises:
          PersistenceError: the disk failed.
        """
        digest = hashlib.sha256(data).hexdigest()
        path = self._path(digest)
        with reporting("storing a policy's parameters", path):
            if path.name in self._files.list(self._home):
                if self._files.read(path) == data:
                    return digest
                self._files.unlink(path)
            discard_unfinished(self._home, self._files)  # of one that was interrupted
            write_durably(path, data, self._files).close()
        return digest

    def load(self, digest: str) -> bytes:
        """Read parameters that `store` put on disk.

        Raises:
          PersistenceError: there are none of this digest, or what is there has another one.
        """
        path = self._path(digest)
        with reporting("loading a policy's parameters", path):
            data = self._files.read(path)
        found = hashlib.sha256(data).hexdigest()
        if found != digest:
            raise PersistenceError(
                f"{path} holds bytes of digest {found}; the file was damaged, send the policy"
                " update again",
                digest=digest,
                found=found,
            )
        return data

    def _path(self, digest: str) -> Path:
        if not _DIGEST.fullmatch(digest):
            raise PersistenceError(
                f"{digest!r} is no SHA-256 of parameters; give its 64 lower hexadecimal digits",
                digest=digest,
            )
        return self._home / f"{digest}.safetensors"
