"""Segments: header, file name, and the scan for valid frames.

A segment is a header of 32 bytes and then frames, little-endian throughout::

    magic 8s · version u8 · zero 3x · salt 8s · base sequence u64 · CRC u32

The file's name repeats salt and base sequence. After invalid bytes a scan continues at the next
magic that begins a valid frame, and drops only the bytes between.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING
from zlib import crc32

from tamiyo_jax.errors import PersistenceError
from tamiyo_jax.journal._frames import (
    FRAME_MAGIC,
    Frame,
    Record,
    Records,
    encode_frame,
    may_be_cut_short,
    read_frames,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = [
    "SALT_BYTES",
    "Gap",
    "GapReason",
    "Scan",
    "Segment",
    "encode_segment",
    "read_segment",
    "scan",
    "segment_name",
]

SALT_BYTES = 8

_VERSION = 1
_MAGIC = b"TAMIYO\r\n"
_HEADER = struct.Struct("<8sB3x8sQ")
_CRC = struct.Struct("<I")
_HEADER_BYTES = _HEADER.size + _CRC.size
_NAME = re.compile(r"(\d{19})-([0-9a-f]{16})\.wal")


class GapReason(StrEnum):
    """Kinds of unreadable bytes; only the last bytes of a file are SHORT or ZEROS."""

    DAMAGED = "damaged"
    SHORT = "short"
    ZEROS = "zeros"


@dataclass(frozen=True, slots=True)
class Gap:
    """Bytes that hold no frame; `after` is the last sequence read before them."""

    offset: int
    length: int
    reason: GapReason
    after: int


@dataclass(frozen=True, slots=True)
class Scan:
    """The records and gaps of a segment, in the order of the file."""

    records: Records
    gaps: tuple[Gap, ...]


@dataclass(frozen=True, slots=True)
class Segment:
    """A scanned segment file; `base` is the lowest sequence that it may hold."""

    name: str
    base: int
    scan: Scan


def segment_name(salt: bytes, base: int) -> str:
    """The file name of a segment; it repeats salt and base of the header."""
    return f"{base:019d}-{salt.hex()}.wal"


def encode_segment(salt: bytes, base: int, records: Iterable[Record]) -> bytes:
    """The bytes of a segment that holds `records`.

    Raises:
      PersistenceError: a record cannot be framed, see `encode_frame`.
    """
    seed = crc32(salt)
    frames = (encode_frame(record, seed) for record in records)
    return b"".join((_encode_header(salt, base), *frames))


def read_segment(name: str, data: bytes) -> Segment:
    """Scan a segment file; a damaged header is rebuilt from the file's name.

    Raises:
      PersistenceError: the segment, or a frame in it, was written by a newer version; or
        neither its header nor its name says which segment this is.
    """
    identity = _parse_header(data) or _parse_name(name)
    if identity is None:
        raise PersistenceError(
            f"{name} is not a segment: its header is unreadable and its name is not of the form"
            " <19 digits>-<16 hex digits>.wal; restore its name or move it away",
            segment=name,
        )
    salt, base = identity
    return Segment(name, base, scan(data, salt, base))


def scan(data: bytes, salt: bytes, base: int) -> Scan:
    """Read all valid frames of a segment, continuing after every invalid one.

    Args:
      data: the whole file.
      salt: the segment's salt.
      base: the segment's base sequence; a frame below it is invalid.

    Raises:
      PersistenceError: a valid frame has a version, type or flags unknown to this build.
    """
    seed = crc32(salt)
    frames: list[Frame] = []
    gaps: list[Gap] = []
    header = _encode_header(salt, base)
    read = _HEADER_BYTES if data.startswith(header) else 0  # bytes before it are accounted for
    position = read or data.find(FRAME_MAGIC)
    while 0 <= position < len(data):
        after = frames[-1][0] if frames else base - 1
        end = read_frames(data, position, seed, base, frames)
        if end > position:
            if position > read or read == 0:
                gaps.append(Gap(read, position - read, GapReason.DAMAGED, after))
            read = end
        position = data.find(FRAME_MAGIC, end + 1)
    if read < len(data) or read == 0:
        after = frames[-1][0] if frames else base - 1
        reason = _tail_reason(data, read, seed, header)
        gaps.append(Gap(read, len(data) - read, reason, after))
    return Scan(Records(frames), tuple(gaps))


def _tail_reason(data: bytes, position: int, seed: int, header: bytes) -> GapReason:
    """Classify the unreadable bytes from `position` to the end."""
    rest = len(data) - position
    if data.count(0, position) == rest > 0:
        return GapReason.ZEROS
    cut = may_be_cut_short(data, position, seed) if position else header.startswith(data)
    return GapReason.SHORT if cut else GapReason.DAMAGED


def _encode_header(salt: bytes, base: int) -> bytes:
    fields = _HEADER.pack(_MAGIC, _VERSION, salt, base)
    return fields + _CRC.pack(crc32(fields))


def _parse_header(data: bytes) -> tuple[bytes, int] | None:
    fields = data[: _HEADER.size]
    crc = data[_HEADER.size : _HEADER_BYTES]
    if not fields.startswith(_MAGIC) or crc != _CRC.pack(crc32(fields)):
        return None
    _, version, salt, base = _HEADER.unpack(fields)
    if version != _VERSION:
        raise PersistenceError(
            f"a segment of version {version} was written by a newer tamiyo_jax; this build"
            f" reads version {_VERSION}: open the run with the newer one",
            version=version,
        )
    return salt, base


def _parse_name(name: str) -> tuple[bytes, int] | None:
    match = _NAME.fullmatch(name)
    return None if match is None else (bytes.fromhex(match[2]), int(match[1]))
