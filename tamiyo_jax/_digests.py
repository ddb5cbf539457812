"""SHA-256 of every file of a checkpoint, written beside the files and checked before they are read.

Orbax loads most flipped bits as values, and raises errors of many types for the others.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

from tamiyo_jax.errors import PersistenceError

__all__ = ["DIGESTS", "check_digests", "saving", "write_digests"]

DIGESTS = "DIGESTS.json"


@contextmanager
def saving(target: Path) -> Iterator[Path]:
    """A new directory to write a checkpoint to, which becomes `target` once it is complete.

    A process that dies meanwhile leaves a directory with a name of its own, which the next attempt
    removes.

    Raises:
      PersistenceError: `target` exists, or the checkpoint cannot be written.
    """
    if target.exists():
        raise PersistenceError(
            f"checkpoint {target} exists; checkpoints are never overwritten", path=str(target)
        )
    unfinished = target.with_name(f".{target.name}.unfinished")
    try:
        if unfinished.exists():
            shutil.rmtree(unfinished)
        yield unfinished
        write_digests(unfinished)
        unfinished.replace(target)
    except OSError as error:
        raise PersistenceError(
            f"checkpoint {target} could not be written: {error}", path=str(target)
        ) from error


def write_digests(directory: Path) -> None:
    """Write the digests of all files of a checkpoint.

    Raises:
      OSError: a file cannot be read or written.
    """
    content = json.dumps(_digest_files(directory), indent=0, sort_keys=True).encode()
    unfinished = directory / f"{DIGESTS}.tmp"
    with unfinished.open("wb") as file:
        file.write(content + hashlib.sha256(content).hexdigest().encode())
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(directory / DIGESTS)


def check_digests(directory: Path) -> None:
    """Check that every file of a checkpoint is there and unchanged since `write_digests`.

    Raises:
      PersistenceError: a file is damaged or missing; `files` names them.
    """
    expected = _read_digests(directory)
    try:
        found = _digest_files(directory)
    except OSError as error:
        raise make_damage_error(directory, f"it cannot be read ({error})") from error
    names = tuple(name for name, digest in expected.items() if found.get(name) != digest)
    if names:
        state = "is not what was saved" if names[0] in found else "is missing"
        raise make_damage_error(directory, f"{names[0]} {state}", names)


def make_damage_error(
    directory: Path, reason: object, files: tuple[str, ...] = ()
) -> PersistenceError:
    """The error for a checkpoint that cannot be loaded."""
    return PersistenceError(
        f"checkpoint {directory} is damaged: {reason}; load another checkpoint",
        path=str(directory),
        files=files,
    )


def _read_digests(directory: Path) -> dict[str, str]:
    try:
        data = (directory / DIGESTS).read_bytes()
    except OSError as error:
        reason = f"{DIGESTS} cannot be read ({error.strerror}); it was not completely saved"
        raise make_damage_error(directory, reason, (DIGESTS,)) from error
    content, checksum = data[:-64], data[-64:]
    if hashlib.sha256(content).hexdigest().encode() != checksum:
        raise make_damage_error(directory, f"{DIGESTS} is not what was saved", (DIGESTS,))
    return cast(dict[str, str], json.loads(content))


def _digest_files(directory: Path) -> dict[str, str]:
    """SHA-256 of every file below a directory, by its relative path."""
    digests: dict[str, str] = {}
    for home, _, names in os.walk(directory):
        for path in (Path(home) / name for name in names):
            if path.name not in (DIGESTS, f"{DIGESTS}.tmp"):
                with path.open("rb") as file:
                    digest = hashlib.file_digest(file, "sha256").hexdigest()
                digests[path.relative_to(directory).as_posix()] = digest
    return digests
