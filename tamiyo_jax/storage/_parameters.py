"""Policy parameters in files named by their SHA-256."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from tamiyo_jax.errors import PersistenceError
from tamiyo_jax.journal import FileSystem, discard_unfinished, translate_errors, write_durably

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
        """Write parameters to disk, and return their SHA-256, hexadecimal.

        Raises:
          PersistenceError: the disk failed.
        """
        digest = hashlib.sha256(data).hexdigest()
        path = self._path(digest)
        with translate_errors("storing a policy's parameters", path):
            if path.name in self._files.list(self._home):
                if self._files.read(path) == data:
                    return digest
                self._files.unlink(path)
            discard_unfinished(self._home, self._files)  # of an interrupted call
            write_durably(path, data, self._files).close()
        return digest

    def load(self, digest: str) -> bytes:
        """Read parameters that `store` wrote.

        Raises:
          PersistenceError: there is no file of this digest, or its content has another digest.
        """
        path = self._path(digest)
        with translate_errors("loading a policy's parameters", path):
            data = self._files.read(path)
        found = hashlib.sha256(data).hexdigest()
        if found != digest:
            raise PersistenceError(
                f"{path} has digest {found}: the file is damaged; send the policy update again",
                digest=digest,
                found=found,
            )
        return data

    def _path(self, digest: str) -> Path:
        if not _DIGEST.fullmatch(digest):
            raise PersistenceError(
                f"{digest!r} is not a SHA-256; give 64 lower-case hexadecimal digits",
                digest=digest,
            )
        return self._home / f"{digest}.safetensors"
