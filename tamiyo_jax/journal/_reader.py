"""Read a journal that another process may be writing, once or repeatedly."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tamiyo_jax.journal._anchor import read_anchor
from tamiyo_jax.journal._files import FileSystem, PosixFileSystem
from tamiyo_jax.journal._recovery import Recovered, merge
from tamiyo_jax.journal._segments import read_segments, segment_names, translate_errors

if TYPE_CHECKING:
    from pathlib import Path

    from tamiyo_jax.journal._scanning import Segment

__all__ = ["JournalReader", "read_journal"]


class JournalReader:
    """Reads a journal, and later what was added; needs no lock, and changes nothing.

    Segments are only ever appended to, so one whose size is the same is not read again.

    Args:
      directory: the run directory.
      files: the file system, by default that of the operating system.
    """

    def __init__(self, directory: Path, files: FileSystem | None = None) -> None:
        self._directory = directory
        self._home = directory / "journal"
        self._files = PosixFileSystem() if files is None else files
        self._segments: dict[str, tuple[int, Segment]] = {}

    def read(self) -> Recovered:
        """What the journal holds now.

        Raises:
          PersistenceError: as `Journal.open` does, except that corruption is only reported.
        """
        with translate_errors("reading the journal", self._home):
            missing: list[str] = []
            while True:
                # The anchor is read first: what its owner syncs meanwhile is not missing.
                anchor = read_anchor(self._directory, self._files)
                names = segment_names(self._home, self._files)
                try:
                    self._segments = {name: self._segment(name) for name in names}
                except FileNotFoundError:
                    # Its owner has retired a segment meanwhile, or there is a dangling link.
                    if names == missing:
                        raise
                    missing = names
                else:
                    segments = [segment for _, segment in self._segments.values()]
                    return merge(segments, anchor)

    def _segment(self, name: str) -> tuple[int, Segment]:
        size = self._files.size(self._home / name)
        known = self._segments.get(name)
        if known is not None and known[0] == size:
            return known
        return size, read_segments(self._home, [name], self._files)[0]


def read_journal(directory: Path, files: FileSystem | None = None) -> Recovered:
    """Read the journal of a run directory without a lock and without changing it.

    Raises:
      PersistenceError: as `Journal.open` does, except that corruption is only reported.
    """
    return JournalReader(directory, files).read()
