"""Read, write and replace whole segment files."""

from __future__ import annotations

import errno
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from tamiyo_jax.errors import PersistenceError
from tamiyo_jax.journal._scanning import Segment, encode_segment, read_segment, segment_name

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable
    from pathlib import Path

    from tamiyo_jax.journal._files import AppendFile, FileSystem
    from tamiyo_jax.journal._frames import Record
    from tamiyo_jax.journal._recovery import Rewrite

__all__ = [
    "discard_unfinished",
    "explain_error",
    "read_segments",
    "replace_segments",
    "segment_names",
    "translate_errors",
    "write_durably",
    "write_segment",
]

_SUFFIX = ".wal"
_UNFINISHED_SUFFIX = ".tmp"
_REASONS = {
    errno.ENOSPC: "the disk is full; free space or move the run directory",
    errno.EDQUOT: "the disk quota is used up; raise it or move the run directory",
    errno.EROFS: "the file system is mounted read-only",
    errno.EIO: "the disk reported an input/output error; check it before going on",
}


def explain_error(error: OSError, action: str, path: Path) -> PersistenceError:
    """Turn an `OSError` into an error that names the action, the path and the remedy.

    Its attributes are `errno`, `action` and `path`.
    """
    number = error.errno or 0
    reason = _REASONS.get(number, error.strerror or str(error))
    return PersistenceError(
        f"{action} failed in {path}: {reason} ({errno.errorcode.get(number, 'no errno')})",
        errno=error.errno,
        action=action,
        path=path,
    )


@contextmanager
def translate_errors(action: str, path: Path) -> Generator[None]:
    """Raise the errors of `explain_error` in place of `OSError`.

    Raises:
      PersistenceError: in place of an `OSError`.
    """
    try:
        yield
    except OSError as error:
        raise explain_error(error, action, path) from error


def segment_names(home: Path, files: FileSystem) -> list[str]:
    """Names of the segments in a journal's directory, by ascending base."""
    # Names that begin with a dot belong to file managers and copies, such as ._ files of macOS.
    names = (name for name in files.list(home) if not name.startswith("."))
    return sorted(name for name in names if name.endswith(_SUFFIX))


def read_segments(home: Path, names: Iterable[str], files: FileSystem) -> list[Segment]:
    """Scan segments.

    Raises:
      PersistenceError: see `read_segment`.
    """
    return [read_segment(name, files.read(home / name)) for name in names]


def write_segment(
    home: Path, salt: bytes, base: int, records: Iterable[Record], files: FileSystem
) -> tuple[AppendFile, int]:
    """Write a segment whose content is on disk before it becomes visible under its name.

    Returns:
      The segment, open for appending, and its size in bytes.
    """
    content = encode_segment(salt, base, records)
    return write_durably(home / segment_name(salt, base), content, files), len(content)


def write_durably(path: Path, content: bytes, files: FileSystem) -> AppendFile:
    """Write a file whose content is on disk before it becomes visible under its name.

    Returns:
      The file, open for appending.
    """
    unfinished = path.with_suffix(_UNFINISHED_SUFFIX)
    with ExitStack() as unless_complete:
        file = files.create(unfinished)
        unless_complete.callback(file.close)
        file.write(content)
        file.fdatasync()
        files.rename(unfinished, path)
        files.fsync_dir(path.parent)
        unless_complete.pop_all()
    return file


def discard_unfinished(home: Path, files: FileSystem) -> None:
    """Remove the unfinished files of interrupted calls of `write_durably`."""
    for name in files.list(home):
        if name.endswith(_UNFINISHED_SUFFIX):
            files.unlink(home / name)


def replace_segments(
    rewrite: Rewrite, home: Path, quarantine: Path, salt: bytes, files: FileSystem
) -> None:
    """Perform a rewrite. If it is interrupted, every record is still in some segment."""
    file, _ = write_segment(home, salt, rewrite.base, rewrite.records, files)
    file.close()
    for name in rewrite.quarantined:
        files.rename(home / name, quarantine / name)
    if rewrite.quarantined:
        files.fsync_dir(quarantine)
    for name in rewrite.obsolete:
        files.unlink(home / name)
    files.fsync_dir(home)
