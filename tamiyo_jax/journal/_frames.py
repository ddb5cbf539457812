r"""The bytes of a frame, which holds one record, and how frames are read back.

Little-endian throughout::

    magic u32 · version u8 · type u8 · flags u16 · sequence u64 · synced u64
    · length u32 · header CRC u32 · stuffed payload · payload CRC u32

`synced` is the highest sequence known to be on disk when the frame was written, `length`
counts the stuffed payload. The header CRC starts from ``crc32(salt)`` of the segment and the
payload CRC from the header CRC, so that a payload belongs to its header and a frame to its
segment.

**Why nothing inside a frame is taken for a frame.** A reader that has lost the frame
boundary searches for the magic ``f5 c1 f8 fe``, so the magic must occur at the start of a frame
and nowhere else. Three rules ensure this:

- *In the payload*, stuffing rewrites the middle pair: ``c1 f8`` becomes ``c1 00 00``, and
  ``c1 00`` becomes ``c1 00 01`` to keep that unambiguous. What is left has no ``c1 f8`` and
  therefore no magic. It takes two changed bytes to restore a magic, so one flipped or deleted
  byte cannot turn a frame quoted in a payload into a real one. The bytes of the magic never
  occur in UTF-8, so text is stored as it is.
- *In the two CRCs and across their edges* a magic can occur by chance. The writer
  checks for it and increments the low byte of `flags`, which changes the CRCs, until there is none.
- *In the other fields*: `sequence` and `synced` stay below the magic read as a number, every
  other field is small, and the magic has no zero byte.

Two frames in a row form no magic either, because its four bytes differ from each other.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Sequence
from enum import IntEnum
from typing import NamedTuple, overload
from zlib import crc32

from tamiyo_jax.errors import PersistenceError

__all__ = [
    "FRAME_MAGIC",
    "MAX_PAYLOAD_BYTES",
    "MAX_SEQUENCE",
    "Frame",
    "Record",
    "RecordType",
    "Records",
    "encode_frame",
    "frame_bytes",
    "may_be_cut_short",
    "read_frames",
]

MAX_PAYLOAD_BYTES = 16 * 2**20
"""Limit of a stuffed payload, checked before anything is allocated for it."""

FRAME_MAGIC = b"\xf5\xc1\xf8\xfe"

_VERSION = 1
_MAGIC_NUMBER = int.from_bytes(FRAME_MAGIC, "little")
_HEADER = struct.Struct("<IBBHQQI")
_CRC = struct.Struct("<I")
_HEADER_AND_CRC = struct.Struct("<IBBHQQII")
_PAYLOAD_AT = _HEADER.size + _CRC.size
_OVERHEAD = _PAYLOAD_AT + _CRC.size
_KNOWN_FLAGS = 0xFF
# Where a magic that is not the frame's own may touch one of the CRCs.
_BEFORE_PAYLOAD = slice(1, _PAYLOAD_AT + len(FRAME_MAGIC) - 1)
_AFTER_PAYLOAD = slice(-_CRC.size - len(FRAME_MAGIC) + 1, None)
_LONG = 4096  # bytes
_TO_STUFF = re.compile(rb"\xc1[\x00\xf8]")

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
    """A record of the journal.

    Attributes:
      sequence: its number, from 1.
      synced: the highest sequence that was durable when it was written.
      type: the kind of record.
      payload: its content, unstuffed.
    """

    sequence: int
    synced: int
    type: RecordType
    payload: bytes


Frame = tuple[int, int, int, bytes, int, int]
"""A valid frame: sequence, synced, type, the segment's bytes, start and stop of its payload."""


class Records(Sequence[Record]):
    """Records in the bytes of segments; each payload is decoded on access.

    Opening a journal reads every frame but only a few payloads, and plain tuples of numbers
    cost the garbage collector nothing.

    Attributes:
      frames: the frames that hold the records, by ascending sequence.
    """

    __slots__ = ("frames",)

    def __init__(self, frames: Sequence[Frame] = ()) -> None:
        self.frames = frames

    def __len__(self) -> int:
        return len(self.frames)

    @overload
    def __getitem__(self, index: int) -> Record: ...
    @overload
    def __getitem__(self, index: slice) -> Records: ...
    def __getitem__(self, index: int | slice) -> Record | Records:
        if isinstance(index, slice):
            return Records(self.frames[index])
        sequence, synced, kind, data, start, stop = self.frames[index]
        return Record(sequence, synced, _TYPES[kind], _unstuff(data[start:stop]))


def encode_frame(record: Record, seed: int) -> bytes:
    """The bytes of one record in the segment whose ``crc32(salt)`` is `seed`.

    Raises:
      PersistenceError: the payload exceeds `MAX_PAYLOAD_BYTES` once stuffed, or the
        sequence exceeds `MAX_SEQUENCE`.
    """
    sequence, synced, record_type, payload = record
    stored = _stuff(payload)
    length = len(stored)
    if length > MAX_PAYLOAD_BYTES:
        raise PersistenceError(
            f"a {record_type.name} record of {length} bytes exceeds the limit of"
            f" {MAX_PAYLOAD_BYTES}; log less of the step, for instance record_packets=False",
            length=length,
            limit=MAX_PAYLOAD_BYTES,
        )
    if sequence > MAX_SEQUENCE:
        raise PersistenceError(
            f"the journal is full: sequence {sequence} exceeds {MAX_SEQUENCE};"
            " go on in a new run directory",
            sequence=sequence,
            limit=MAX_SEQUENCE,
        )
    flags = 0
    while True:
        header = _HEADER.pack(_MAGIC_NUMBER, _VERSION, record_type, flags, sequence, synced, length)
        header_crc = crc32(header, seed)
        payload_crc = crc32(stored, header_crc)
        frame = b"".join((header, _CRC.pack(header_crc), stored, _CRC.pack(payload_crc)))
        if FRAME_MAGIC not in frame[_BEFORE_PAYLOAD] and FRAME_MAGIC not in frame[_AFTER_PAYLOAD]:
            return frame
        flags += 1


def frame_bytes(payload: bytes) -> int:
    """The size of a frame in bytes, without the few bytes that stuffing its payload may add."""
    return _OVERHEAD + len(payload)


def read_frames(data: bytes, position: int, seed: int, base: int, frames: list[Frame]) -> int:
    """Append the valid frames from `position` on, up to the first invalid frame or the end.

    Opening a journal spends most of its time in this loop.

    Args:
      data: a whole segment.
      position: where a frame should begin.
      seed: ``crc32(salt)`` of the segment.
      base: the segment's base sequence; a frame below it is invalid.
      frames: the list to append to.

    Returns:
      The end of the last valid frame; `position` if there is none.

    Raises:
      PersistenceError: a valid frame has a version, type or flags unknown to this build.
    """
    last = len(data) - _OVERHEAD
    while position <= last:
        magic, version, kind, flags, sequence, synced, length, header_crc = (
            _HEADER_AND_CRC.unpack_from(data, position)
        )
        start = position + _PAYLOAD_AT
        stop = start + length
        if (
            magic != _MAGIC_NUMBER
            or length > last - position
            or length > MAX_PAYLOAD_BYTES
            or crc32(data[position : start - _CRC.size], seed) != header_crc
            # No frame contains a magic behind its own. Looking for one first keeps a file full of
            # forged headers, each claiming a long payload, from being read again for every header.
            or (length > _LONG and data.find(FRAME_MAGIC, position + 1, stop) >= 0)
            or (crc32(data[start:stop], header_crc),) != _CRC.unpack_from(data, stop)
            or sequence < base
        ):
            break
        if version != _VERSION or kind not in _TYPES or flags > _KNOWN_FLAGS:
            raise PersistenceError(
                f"record {sequence} (version {version}, type {kind}, flags {flags:#06x}) was"
                f" written by a newer tamiyo_jax; this build reads version {_VERSION}: open the"
                " run with the newer one",
                sequence=sequence,
                version=version,
                type=kind,
                offset=position,
            )
        frames.append((sequence, synced, kind, data, start, stop))
        position = stop + _CRC.size
    return position


def may_be_cut_short(data: bytes, position: int, seed: int) -> bool:
    """Whether what begins at `position` and runs to the end may be the first part of a frame."""
    start = position + _PAYLOAD_AT
    if start > len(data):
        rest = len(data) - position
        return data.startswith(FRAME_MAGIC[:rest], position)
    magic, *_, length, header_crc = _HEADER_AND_CRC.unpack_from(data, position)
    return (
        magic == _MAGIC_NUMBER
        and crc32(data[position : start - _CRC.size], seed) == header_crc
        and start + length + _CRC.size > len(data)
    )


def _stuff(payload: bytes) -> bytes:
    # Most payloads have nothing to stuff, and looking for a byte is ten times faster than for two.
    if b"\xc1" not in payload or _TO_STUFF.search(payload) is None:
        return payload
    return payload.replace(b"\xc1\x00", b"\xc1\x00\x01").replace(b"\xc1\xf8", b"\xc1\x00\x00")


def _unstuff(stored: bytes) -> bytes:
    return stored.replace(b"\xc1\x00\x00", b"\xc1\xf8").replace(b"\xc1\x00\x01", b"\xc1\x00")
