r"""The bytes of a segment: its header, its frames, and how they are read back.

A segment is a header of 32 bytes and then frames, little-endian throughout::

    segment header   magic 8s · version u8 · zero 3x · salt 8s · base sequence u64 · CRC u32
    frame            magic u32 · version u8 · type u8 · flags u16 · sequence u64 · synced u64
                     · length u32 · header CRC u32 · stuffed payload · payload CRC u32

`synced` is the highest sequence known to be on disk when the frame was written, `length`
counts the stuffed payload. The header CRC starts from ``crc32(salt)`` and the payload CRC
from the header CRC, so that a payload belongs to its header and a frame to its segment.

**Why nothing inside a frame is taken for a frame.** A reader that has lost its place looks
for the magic ``f5 c1 f8 fe``, so the magic must occur in a frame at its start and nowhere
else. Three things see to that:

- *In the payload*, stuffing rewrites the middle pair: ``c1 f8`` becomes ``c1 00 00``, and
  ``c1 00`` becomes ``c1 00 01`` to keep that unambiguous. What is left has no ``c1 f8`` and
  therefore no magic. Restoring a magic takes two changed bytes, so neither a flipped nor a
  deleted byte wakes a frame that a payload quotes. The bytes of the magic never occur in
  UTF-8, so text is stored as it is.
- *In the two CRCs and across their edges* a magic is chance. The writer looks for it, and
  rolls the CRCs again by counting up the low byte of `flags` until there is none.
- *In the other fields*: `sequence` and `synced` stay below the magic read as a number, every
  other field is small, and the magic has no zero byte.

Two frames in a row form no magic either, because its four bytes differ from each other.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from enum import IntEnum, StrEnum
from typing import TYPE_CHECKING, NamedTuple
from zlib import crc32

from tamiyo_jax.errors import PersistenceError

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = [
    "MAX_PAYLOAD_BYTES",
    "MAX_SEQUENCE",
    "SALT_BYTES",
    "Gap",
    "GapReason",
    "Record",
    "RecordType",
    "Scan",
    "Segment",
    "encode_frame",
    "encode_segment",
    "frame_bytes",
    "read_segment",
    "scan",
    "segment_name",
]

SALT_BYTES = 8
MAX_PAYLOAD_BYTES = 16 * 2**20
"""Limit of a stuffed payload, checked before anything is allocated for it."""

_VERSION = 1
_MAGIC = b"\xf5\xc1\xf8\xfe"
_MAGIC_NUMBER = int.from_bytes(_MAGIC, "little")
_HEADER = struct.Struct("<IBBHQQI")
_CRC = struct.Struct("<I")
_FRAME = struct.Struct("<IBBHQQII")  # a header and its CRC
_PAYLOAD_AT = _HEADER.size + _CRC.size
_KNOWN_FLAGS = 0xFF

_SEGMENT_MAGIC = b"TAMIYO\r\n"
_SEGMENT_HEADER = struct.Struct("<8sB3x8sQ")
_SEGMENT_HEADER_BYTES = _SEGMENT_HEADER.size + _CRC.size
_SEGMENT_NAME = re.compile(r"(\d{19})-([0-9a-f]{16})\.wal")

MAX_SEQUENCE = _MAGIC_NUMBER - 1


class RecordType(IntEnum):
    """What a record says; the numbers are those on disk."""

    STEP = 1
    ACK = 2
    RETRY = 3
    DROP = 4
    OPERATOR = 5
    POLICY_UPDATE = 6
    SNAPSHOT = 7
    RESTORE = 8
    REPAIR = 9


_TYPES = {int(member): member for member in RecordType}


class Record(NamedTuple):
    """One record: `sequence` counts from 1, `synced` is what was durable when it was written."""

    sequence: int
    synced: int
    type: RecordType
    payload: bytes


class GapReason(StrEnum):
    """What unreadable bytes look like; only the last bytes of a file are SHORT or ZEROS."""

    DAMAGED = "damaged"
    SHORT = "short"
    ZEROS = "zeros"


@dataclass(frozen=True, slots=True)
class Gap:
    """Bytes that hold no frame; `after` is the last sequence that was read before them."""

    offset: int
    length: int
    reason: GapReason
    after: int


@dataclass(frozen=True, slots=True)
class Scan:
    """What a segment holds, in the order of the file."""

    records: tuple[Record, ...]
    gaps: tuple[Gap, ...]


@dataclass(frozen=True, slots=True)
class Segment:
    """A scanned segment file; `base` is the lowest sequence that may stand in it."""

    name: str
    base: int
    scan: Scan


def segment_name(salt: bytes, base: int) -> str:
    """The file name of a segment; it repeats what the segment's header says."""
    return f"{base:019d}-{salt.hex()}.wal"


def encode_segment(salt: bytes, base: int, records: Iterable[Record]) -> bytes:
    """The bytes of a segment that holds `records`.

    Raises:
      PersistenceError: a record cannot be framed, see `encode_frame`.
    """
    seed = crc32(salt)
    frames = (encode_frame(record, seed) for record in records)
    return b"".join((_segment_header(salt, base), *frames))


def encode_frame(record: Record, seed: int) -> bytes:
    """The bytes of one record in the segment whose ``crc32(salt)`` is `seed`.

    Raises:
      PersistenceError: the payload exceeds `MAX_PAYLOAD_BYTES` once stuffed, or the
        sequence exceeds `MAX_SEQUENCE`.
    """
    stored = _stuff(record.payload)
    length = len(stored)
    if length > MAX_PAYLOAD_BYTES:
        raise PersistenceError(
            f"a {record.type.name} record of {length} bytes exceeds the limit of"
            f" {MAX_PAYLOAD_BYTES}; log less of the step, for instance record_packets=False",
            length=length,
            limit=MAX_PAYLOAD_BYTES,
        )
    if record.sequence > MAX_SEQUENCE:
        raise PersistenceError(
            f"the journal is full: sequence {record.sequence} exceeds {MAX_SEQUENCE};"
            " go on in a new run directory",
            sequence=record.sequence,
            limit=MAX_SEQUENCE,
        )
    flags = 0
    while True:
        header = _HEADER.pack(
            _MAGIC_NUMBER, _VERSION, record.type, flags, record.sequence, record.synced, length
        )
        header_crc = crc32(header, seed)
        payload_crc = crc32(stored, header_crc)
        frame = b"".join((header, _CRC.pack(header_crc), stored, _CRC.pack(payload_crc)))
        if frame.find(_MAGIC, 1) < 0:
            return frame
        flags += 1


def frame_bytes(payload: bytes) -> int:
    """The size of a frame, but for the few bytes that stuffing its payload may add."""
    return _PAYLOAD_AT + len(payload) + _CRC.size


def read_segment(name: str, data: bytes) -> Segment:
    """Scan a segment file; a damaged header is made good from the file's name.

    Raises:
      PersistenceError: the segment, or a frame in it, was written by a newer version; or
        neither its header nor its name says which segment this is.
    """
    identity = _parse_segment_header(data) or _parse_segment_name(name)
    if identity is None:
        raise PersistenceError(
            f"{name} is no segment: its header is unreadable and its name is not of the form"
            " <19 digits>-<16 hex digits>.wal; give it its old name back or move it away",
            segment=name,
        )
    salt, base = identity
    return Segment(name, base, scan(data, salt, base))


def scan(data: bytes, salt: bytes, base: int) -> Scan:
    """Read all good frames of a segment, going on behind every bad one.

    Args:
      data: the whole file.
      salt: the segment's salt.
      base: the segment's base sequence; a frame below it is a bad one.

    Raises:
      PersistenceError: a good frame has a version, type or flags that are not known here.
    """
    seed = crc32(salt)
    header = _segment_header(salt, base)
    records: list[Record] = []
    gaps: list[Gap] = []
    position, end, after = _SEGMENT_HEADER_BYTES, len(data), base - 1
    if not data.startswith(header):
        position = _find_frame(data, 0, seed, base)
        whole = position == end
        reason = _tail_reason(data, 0, header) if whole else GapReason.DAMAGED
        gaps.append(Gap(0, position, reason, after))
    while position < end:
        frame = _frame_at(data, position, seed, base)
        if frame is None:
            resume = _find_frame(data, position + 1, seed, base)
            if resume < end:
                reason = GapReason.DAMAGED
            elif _is_cut_short(data, position, seed):
                reason = GapReason.SHORT
            else:
                reason = _tail_reason(data, position, _MAGIC)
            gaps.append(Gap(position, resume - position, reason, after))
            position = resume
        else:
            record, position = frame
            records.append(record)
            after = record.sequence
    return Scan(tuple(records), tuple(gaps))


def _frame_at(data: bytes, position: int, seed: int, base: int) -> tuple[Record, int] | None:
    """The record at `position` and where its frame ends, or None if no good frame is there."""
    start = position + _PAYLOAD_AT
    if start > len(data):
        return None
    magic, version, kind, flags, sequence, synced, length, header_crc = _FRAME.unpack_from(
        data, position
    )
    stop = start + length
    if magic != _MAGIC_NUMBER or length > MAX_PAYLOAD_BYTES or stop + _CRC.size > len(data):
        return None
    if crc32(data[position : start - _CRC.size], seed) != header_crc or sequence < base:
        return None
    stored = data[start:stop]
    if (crc32(stored, header_crc),) != _CRC.unpack_from(data, stop):
        return None
    record_type = _TYPES.get(kind)
    if version != _VERSION or record_type is None or flags > _KNOWN_FLAGS:
        raise PersistenceError(
            f"record {sequence} (version {version}, type {kind}, flags {flags:#06x}) was written"
            f" by a newer tamiyo_jax, this one reads version {_VERSION}; open the run with that",
            sequence=sequence,
            version=version,
            type=kind,
            offset=position,
        )
    return Record(sequence, synced, record_type, _unstuff(stored)), stop + _CRC.size


def _find_frame(data: bytes, position: int, seed: int, base: int) -> int:
    """Where the next good frame begins, or the end of the data."""
    while (position := data.find(_MAGIC, position)) >= 0:
        if _frame_at(data, position, seed, base) is not None:
            return position
        position += 1
    return len(data)


def _is_cut_short(data: bytes, position: int, seed: int) -> bool:
    """Whether a frame with a good header begins at `position` and runs past the end."""
    start = position + _PAYLOAD_AT
    if start > len(data):
        return False
    magic, *_, length = _HEADER.unpack_from(data, position)
    header_crc = _CRC.pack(crc32(data[position : start - _CRC.size], seed))
    return (
        magic == _MAGIC_NUMBER
        and data[start - _CRC.size : start] == header_crc
        and start + length + _CRC.size > len(data)
    )


def _tail_reason(data: bytes, position: int, expected: bytes) -> GapReason:
    """What the unreadable bytes from `position` to the end are, where `expected` should begin."""
    rest = len(data) - position
    if data.count(0, position) == rest > 0:
        return GapReason.ZEROS
    if rest < _PAYLOAD_AT and data.startswith(expected[:rest], position):
        return GapReason.SHORT
    return GapReason.DAMAGED


def _stuff(payload: bytes) -> bytes:
    return payload.replace(b"\xc1\x00", b"\xc1\x00\x01").replace(b"\xc1\xf8", b"\xc1\x00\x00")


def _unstuff(stored: bytes) -> bytes:
    if b"\xc1\x00" not in stored:
        return stored
    return stored.replace(b"\xc1\x00\x00", b"\xc1\xf8").replace(b"\xc1\x00\x01", b"\xc1\x00")


def _segment_header(salt: bytes, base: int) -> bytes:
    fields = _SEGMENT_HEADER.pack(_SEGMENT_MAGIC, _VERSION, salt, base)
    return fields + _CRC.pack(crc32(fields))


def _parse_segment_header(data: bytes) -> tuple[bytes, int] | None:
    fields = data[: _SEGMENT_HEADER.size]
    crc = data[_SEGMENT_HEADER.size : _SEGMENT_HEADER_BYTES]
    if not fields.startswith(_SEGMENT_MAGIC) or crc != _CRC.pack(crc32(fields)):
        return None
    _, version, salt, base = _SEGMENT_HEADER.unpack(fields)
    if version != _VERSION:
        raise PersistenceError(
            f"a segment of version {version} was written by a newer tamiyo_jax, this one reads"
            f" version {_VERSION}; open the run with that",
            version=version,
        )
    return salt, base


def _parse_segment_name(name: str) -> tuple[bytes, int] | None:
    match = _SEGMENT_NAME.fullmatch(name)
    return None if match is None else (bytes.fromhex(match[2]), int(match[1]))
