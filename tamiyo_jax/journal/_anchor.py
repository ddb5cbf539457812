"""The anchor: the last synced sequence, in a small file beside the journal.

The journal alone cannot show that its end was cut off at a frame, or that its last segment was
deleted. The anchor is written after each sync and is not synced itself: after a loss of power it
may be older than the journal, never newer. A missing or unreadable anchor counts as 0.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING
from zlib import crc32

if TYPE_CHECKING:
    from pathlib import Path

    from tamiyo_jax.journal._files import FileSystem

__all__ = ["read_anchor", "write_anchor"]

_NAME = "SYNCED"
_CONTENT = re.compile(rb"(\d{19}) ([0-9a-f]{8})\n")


def write_anchor(directory: Path, sequence: int, files: FileSystem) -> None:
    """Note that everything up to `sequence` is on disk.

    Args:
      directory: the run directory.
      sequence: the last synced sequence.
      files: the file system.
    """
    number = b"%019d" % sequence
    files.overwrite(directory / _NAME, b"%s %08x\n" % (number, crc32(number)))


def read_anchor(directory: Path, files: FileSystem) -> int:
    """The sequence that `write_anchor` noted last; 0 if there is no readable anchor."""
    try:
        content = files.read(directory / _NAME)
    except FileNotFoundError:
        return 0
    match = _CONTENT.fullmatch(content)
    if match is None or int(match[2], 16) != crc32(match[1]):
        return 0
    return int(match[1])
