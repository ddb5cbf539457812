"""A segment gives back what was put into it, and loses only what damage touches."""

from __future__ import annotations

from zlib import crc32

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tamiyo_jax.errors import PersistenceError
from tamiyo_jax.journal import Record, RecordType
from tamiyo_jax.journal import _frames as frames
from tamiyo_jax.journal import _scanning as scanning
from tamiyo_jax.journal._frames import MAX_PAYLOAD_BYTES, MAX_SEQUENCE, encode_frame
from tamiyo_jax.journal._scanning import (
    Gap,
    GapReason,
    encode_segment,
    read_segment,
    scan,
    segment_name,
)

SALT = b"saltsalt"
SEED = crc32(SALT)
MAGIC = bytes.fromhex("f5c1f8fe")
HEADER_BYTES = 32

record_types = st.sampled_from(RecordType)
payloads = st.lists(
    st.one_of(st.binary(max_size=20), st.sampled_from([MAGIC, b"\xf5\xc1", b"\xc1\x00", b"\x00"]))
).map(b"".join)


def step(sequence: int, payload: bytes = b"payload", synced: int = 0) -> Record:
    return Record(sequence, synced, RecordType.STEP, payload)


def small_log() -> list[Record]:
    """Records of several shapes; one of them quotes a frame of this very segment."""
    quoted = encode_frame(step(2, b"never happened"), SEED)
    return [
        Record(1, 0, RecordType.SNAPSHOT, b"state"),
        step(2, b""),
        step(3, quoted, synced=2),
        step(4, MAGIC + b"\xc1\x00\xc1\xf8", synced=2),
        step(5, b"\x00" * 40, synced=4),
        Record(6, 4, RecordType.ACK, b"last"),
    ]


def owners(records: list[Record]) -> list[int | None]:
    """For each byte of the segment, the sequence of the record that it belongs to."""
    owner: list[int | None] = [None] * HEADER_BYTES
    for record in records:
        owner += [record.sequence] * len(encode_frame(record, SEED))
    return owner


def without(records: list[Record], sequence: int | None) -> tuple[Record, ...]:
    return tuple(record for record in records if record.sequence != sequence)


@given(st.lists(st.tuples(record_types, payloads)), st.binary(min_size=8, max_size=8))
def test_a_segment_gives_back_the_records_it_was_made_of(
    contents: list[tuple[RecordType, bytes]], salt: bytes
) -> None:
    records = tuple(Record(7 + i, i, kind, load) for i, (kind, load) in enumerate(contents))
    found = scan(encode_segment(salt, 7, records), salt, 7)
    assert tuple(found.records) == records
    assert found.gaps == ()


def test_records_are_taken_out_of_their_bytes_as_from_any_sequence() -> None:
    records = small_log()
    found = scan(encode_segment(SALT, 1, records), SALT, 1).records
    assert len(found) == len(records)
    assert found[2] == records[2]
    assert found[-1] == records[-1]
    assert list(found[1:4]) == records[1:4]
    assert records[3] in found
    with pytest.raises(IndexError):
        found[len(records)]


@given(payloads, st.integers(1, MAX_SEQUENCE), st.data())
def test_the_magic_occurs_in_a_frame_at_its_start_and_nowhere_else(
    payload: bytes, sequence: int, data: st.DataObject
) -> None:
    synced = data.draw(st.integers(0, sequence - 1))
    frame = encode_frame(step(sequence, payload, synced), SEED)
    assert frame.startswith(MAGIC)
    assert (frame + MAGIC).find(MAGIC, 1) == len(frame)


def test_a_magic_that_chance_puts_across_crc_and_payload_is_rolled_away() -> None:
    record = step(33012, b"\xf8\xfe rest")  # its first header CRC ends in f5 c1
    frame = encode_frame(record, SEED)
    assert frame[6] == 1
    assert frame.count(MAGIC) == 1
    assert tuple(scan(encode_segment(SALT, 1, [record]), SALT, 1).records) == (record,)


def test_a_frame_inside_a_payload_is_not_a_frame_even_when_its_host_is_lost() -> None:
    records = small_log()
    data = bytearray(encode_segment(SALT, 1, records))
    data[owners(records).index(3)] ^= 0xFF
    assert tuple(scan(bytes(data), SALT, 1).records) == without(records, 3)


@pytest.mark.parametrize("pattern", [0x01, 0x80, 0xFF])
def test_flipping_a_byte_loses_only_the_record_it_belongs_to(pattern: int) -> None:
    records = small_log()
    data = encode_segment(SALT, 1, records)
    for position, owner in enumerate(owners(records)):
        damaged = bytearray(data)
        damaged[position] ^= pattern
        found = read_segment(segment_name(SALT, 1), bytes(damaged)).scan
        assert tuple(found.records) == without(records, owner), position
        assert len(found.gaps) == 1
        assert found.gaps[0].offset <= position < found.gaps[0].offset + found.gaps[0].length


def test_deleting_a_byte_loses_only_the_record_it_belongs_to() -> None:
    records = small_log()
    data = encode_segment(SALT, 1, records)
    for position, owner in enumerate(owners(records)):
        damaged = data[:position] + data[position + 1 :]
        found = read_segment(segment_name(SALT, 1), damaged).scan
        assert tuple(found.records) == without(records, owner), position


def test_truncation_keeps_every_whole_frame_and_calls_the_rest_short() -> None:
    records = small_log()
    data = encode_segment(SALT, 1, records)
    ends = [HEADER_BYTES]
    for record in records:
        ends.append(ends[-1] + len(encode_frame(record, SEED)))
    for length in range(len(data)):
        found = read_segment(segment_name(SALT, 1), data[:length]).scan
        whole = sum(end <= length for end in ends[1:])
        assert tuple(found.records) == tuple(records[:whole])
        start = max((end for end in ends if end <= length), default=0)
        rest = Gap(start, length - start, GapReason.SHORT, whole)
        assert found.gaps == (() if length in ends else (rest,)), length


def test_zeros_at_the_end_are_not_taken_for_damage() -> None:
    data = encode_segment(SALT, 1, small_log())
    assert scan(data + bytes(100), SALT, 1).gaps == (Gap(len(data), 100, GapReason.ZEROS, 6),)
    assert scan(data + b"\x01" * 100, SALT, 1).gaps[0].reason is GapReason.DAMAGED
    assert scan(bytes(500), SALT, 1).gaps == (Gap(0, 500, GapReason.ZEROS, 0),)


def test_a_frame_of_another_segment_is_not_read() -> None:
    data = encode_segment(SALT, 1, small_log())
    foreign = encode_frame(step(7), crc32(b"anothers"))
    assert tuple(scan(data + foreign, SALT, 1).records) == tuple(small_log())


def test_a_header_too_damaged_to_read_is_made_good_from_the_name() -> None:
    data = b"\xff" * HEADER_BYTES + encode_segment(SALT, 1, small_log())[HEADER_BYTES:]
    assert tuple(read_segment(segment_name(SALT, 1), data).scan.records) == tuple(small_log())
    with pytest.raises(PersistenceError, match="not a segment"):
        read_segment("renamed.wal", data)


def test_a_renamed_segment_is_read_by_its_header() -> None:
    found = read_segment("copy of a segment.wal", encode_segment(SALT, 1, small_log()))
    assert (found.base, tuple(found.scan.records)) == (1, tuple(small_log()))


def test_a_good_frame_of_a_newer_version_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encode_segment(SALT, 1, small_log())
    with monkeypatch.context() as newer:
        newer.setattr(frames, "_VERSION", 2)
        data += encode_frame(step(7), SEED)
    with pytest.raises(PersistenceError, match="newer"):
        scan(data, SALT, 1)


def test_a_good_frame_of_an_unknown_type_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encode_segment(SALT, 1, small_log())
    monkeypatch.delitem(frames._TYPES, RecordType.ACK)  # pyright: ignore[reportPrivateUsage]
    with pytest.raises(PersistenceError, match="newer"):
        scan(data, SALT, 1)


def test_a_segment_of_a_newer_version_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as newer:
        newer.setattr(scanning, "_VERSION", 2)
        data = encode_segment(SALT, 1, [])
    with pytest.raises(PersistenceError, match="newer"):
        read_segment(segment_name(SALT, 1), data)


def test_records_that_the_format_cannot_hold_are_refused() -> None:
    with pytest.raises(PersistenceError, match="exceeds the limit"):
        encode_frame(step(1, bytes(MAX_PAYLOAD_BYTES + 1)), SEED)
    with pytest.raises(PersistenceError, match="the journal is full"):
        encode_frame(step(MAX_SEQUENCE + 1), SEED)


@given(st.binary(max_size=300), st.integers(0, 400))
def test_arbitrary_bytes_between_frames_cost_nothing_but_themselves(
    junk: bytes, position: int
) -> None:
    records = small_log()
    pieces = [encode_segment(SALT, 1, []), *(encode_frame(r, SEED) for r in records)]
    pieces.insert(1 + position % len(pieces), junk)
    assert tuple(scan(b"".join(pieces), SALT, 1).records) == tuple(records)
