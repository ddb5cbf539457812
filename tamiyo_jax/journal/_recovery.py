"""Merge scanned segments into one log and classify what is missing.

Pure. What a crash may lose is *torn*: everything above the highest `synced` of any frame.
Every other loss is *corrupt*.
"""

from __future__ import annotations

import struct
from bisect import bisect_left
from collections import defaultdict
from dataclasses import dataclass
from itertools import islice
from operator import attrgetter, itemgetter, lt
from typing import TYPE_CHECKING

from tamiyo_jax.errors import PersistenceError
from tamiyo_jax.journal._frames import Frame, Record, Records, RecordType
from tamiyo_jax.journal._scanning import Gap, GapReason, Segment

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

__all__ = [
    "Conflict",
    "Damage",
    "Hole",
    "Recovered",
    "Rewrite",
    "Scar",
    "decode_repair",
    "encode_repair",
    "merge",
    "plan_rewrites",
]

_STATES = frozenset({RecordType.SNAPSHOT, RecordType.RESTORE})
_TAILS = frozenset({GapReason.SHORT, GapReason.ZEROS})
_RANGE = struct.Struct("<QQ")
_sequence = itemgetter(0)
_synced = itemgetter(1)


@dataclass(frozen=True, slots=True)
class Scar:
    """Bytes of a segment that hold no record."""

    segment: str
    offset: int
    length: int
    reason: GapReason

    def __str__(self) -> str:
        return (
            f"{self.length} bytes at offset {self.offset} of {self.segment} hold no record "
            f"({self.reason})"
        )


@dataclass(frozen=True, slots=True)
class Hole:
    """Sequences `first` to `last`, both included, that no segment holds."""

    first: int
    last: int

    def __str__(self) -> str:
        if self.first == self.last:
            return f"record {self.first} is missing"
        return f"records {self.first} to {self.last} are missing"


@dataclass(frozen=True, slots=True)
class Conflict:
    """A sequence under which `segments` hold different records; none of them is used."""

    sequence: int
    segments: tuple[str, ...]

    def __str__(self) -> str:
        return f"record {self.sequence} differs between {' and '.join(self.segments)}"


Damage = Scar | Hole | Conflict


@dataclass(frozen=True, slots=True)
class Recovered:
    """The content of a log as read.

    Attributes:
      records: every valid record by ascending sequence.
      replay: the records that make up the state: the latest SNAPSHOT or RESTORE and all
        that follow it; empty only if there are no records.
      torn: damage that a crash can cause.
      corrupt: every other damage.
      missing: the holes in both that no REPAIR record lists.
      synced: the highest sequence known to have been durable.
      last_sequence: the highest sequence used; the next record gets the one after it.
    """

    records: Sequence[Record]
    replay: Sequence[Record]
    torn: tuple[Damage, ...]
    corrupt: tuple[Damage, ...]
    missing: tuple[Hole, ...]
    synced: int
    last_sequence: int

    @property
    def clean(self) -> bool:
        """Whether every byte was read and every sequence found or accounted for."""
        return not self.torn and not self.corrupt

    def find(self, sequence: int) -> Record | None:
        """The record of a sequence; None if it is missing."""
        at = bisect_left(self.records, sequence, key=attrgetter("sequence"))
        found = at < len(self.records) and self.records[at].sequence == sequence
        return self.records[at] if found else None


@dataclass(frozen=True, slots=True)
class Rewrite:
    """Segments of one base and the new segment that replaces them.

    Attributes:
      base: the base sequence of the new segment.
      records: the records of the new segment.
      obsolete: names of segments to remove once the new one is durable.
      quarantined: names of segments with corrupt bytes, to move to ``quarantine/``.
    """

    base: int
    records: Sequence[Record]
    obsolete: tuple[str, ...]
    quarantined: tuple[str, ...]


def merge(segments: Sequence[Segment], anchor: int = 0) -> Recovered:
    """Merge scanned segments by sequence and classify the damage.

    Identical records with one sequence are merged. Holes are torn above the highest `synced` and
    corrupt below it. Invalid bytes are torn after the highest `synced`, and also at the end of
    a segment, cut short or zeros, if no record is missing there.

    Args:
      segments: the segments of one journal.
      anchor: a sequence that is known to have been durable, see `read_anchor`.

    Raises:
      PersistenceError: there are records, but no SNAPSHOT or RESTORE to begin from.
    """
    frames, disputed = _merge_frames(segments)
    records = Records(frames)
    synced = max((max(map(_synced, s.scan.records.frames), default=0) for s in segments), default=0)
    synced = max(synced, anchor)
    last = max((s.base - 1 for s in segments), default=0)
    last = max(last, anchor, max(disputed, default=0), frames[-1][0] if frames else 0)
    first = min((s.base for s in segments), default=1)
    holes = _find_holes(records, first, last)

    torn: list[Damage] = []
    corrupt: list[Damage] = []
    for segment in segments:
        for gap in segment.scan.gaps:
            scar = Scar(segment.name, gap.offset, gap.length, gap.reason)
            (torn if _is_expected(gap, holes, synced) else corrupt).append(scar)
    for hole in holes:
        (torn if hole.first > synced else corrupt).append(hole)
    corrupt.extend(_find_conflicts(segments, disputed))
    return Recovered(
        records, _select_replay(records), tuple(torn), tuple(corrupt), tuple(holes), synced, last
    )


def plan_rewrites(segments: Sequence[Segment], recovered: Recovered) -> tuple[Rewrite, ...]:
    """Plan which segments to rewrite before anything is appended.

    Those with invalid bytes or conflicting records, and always the last one: after a failed
    fsync its content may exist in memory only, and the file does not show whether its last
    fsync failed. Segments share a base only if a crash interrupted an earlier rewrite; they
    are replaced together, which completes it.
    """
    groups: defaultdict[int, list[Segment]] = defaultdict(list)
    for segment in segments:
        groups[segment.base].append(segment)
    condemned = _find_damaged_segments(recovered)
    last_base = max(groups, default=0)
    disputed = {damage.sequence for damage in recovered.corrupt if isinstance(damage, Conflict)}
    rewrites: list[Rewrite] = []
    for base, group in groups.items():
        names = [segment.name for segment in group]
        damaged = any(s.scan.gaps or s.name in condemned for s in group)
        if base == last_base or damaged or len(group) > 1:
            frames, _ = _merge_frames(group)
            rewrites.append(
                Rewrite(
                    base,
                    Records([frame for frame in frames if _sequence(frame) not in disputed]),
                    tuple(name for name in names if name not in condemned),
                    tuple(name for name in names if name in condemned),
                )
            )
    return tuple(rewrites)


def encode_repair(holes: Iterable[Hole]) -> bytes:
    """The payload of a REPAIR record: first and last sequence of each hole, as u64."""
    return b"".join(_RANGE.pack(hole.first, hole.last) for hole in holes)


def decode_repair(payload: bytes) -> tuple[Hole, ...]:
    """The holes that a REPAIR record lists.

    Raises:
      PersistenceError: the payload is not what `encode_repair` writes.
    """
    if len(payload) % _RANGE.size:
        raise PersistenceError(
            f"a REPAIR record of {len(payload)} bytes is not a list of ranges; it was written"
            " by something other than tamiyo_jax",
            length=len(payload),
        )
    return tuple(Hole(first, last) for first, last in _RANGE.iter_unpack(payload))


def _merge_frames(segments: Iterable[Segment]) -> tuple[list[Frame], frozenset[int]]:
    """Frames by ascending sequence, and the sequences with conflicting frames."""
    frames = [frame for segment in segments for frame in segment.scan.records.frames]
    if all(map(lt, map(_sequence, frames), map(_sequence, islice(frames, 1, None)))):
        return frames, frozenset()
    union: dict[int, Frame] = {}
    disputed: set[int] = set()
    for frame in frames:
        known = union.setdefault(_sequence(frame), frame)
        if known is not frame and _content(known) != _content(frame):
            disputed.add(_sequence(frame))
    for sequence in disputed:
        del union[sequence]
    return sorted(union.values(), key=_sequence), frozenset(disputed)


def _content(frame: Frame) -> tuple[int, bytes]:
    _, _, kind, data, start, stop = frame
    return kind, data[start:stop]


def _select_replay(records: Records) -> Records:
    if not records:
        return records
    for index in range(len(records) - 1, -1, -1):
        if records.frames[index][2] in _STATES:
            return records[index:]
    raise PersistenceError(
        f"{len(records)} records but no readable SNAPSHOT or RESTORE to begin from; put back"
        " the missing segments, or move this journal away and restore a checkpoint",
        records=len(records),
    )


def _find_holes(records: Records, first: int, last: int) -> list[Hole]:
    """The runs of sequences in `first..last` that are neither present nor listed as repaired."""
    if len(records) == last - first + 1:
        return []
    present = [(sequence, sequence) for sequence in map(_sequence, records.frames)]
    for index, frame in enumerate(records.frames):
        if frame[2] == RecordType.REPAIR:
            present += [(hole.first, hole.last) for hole in decode_repair(records[index].payload)]
    present.append((last + 1, last + 1))
    holes: list[Hole] = []
    expected = first
    for begin, end in sorted(present):
        if begin > expected:
            holes.append(Hole(expected, begin - 1))
        expected = max(expected, end + 1)
    return holes


def _is_expected(gap: Gap, holes: Iterable[Hole], synced: int) -> bool:
    """Whether a crash can have left these invalid bytes."""
    if gap.after >= synced:
        return True
    complete = not any(hole.first <= gap.after + 1 <= hole.last for hole in holes)
    return gap.reason in _TAILS and complete


def _find_conflicts(segments: Sequence[Segment], disputed: Iterable[int]) -> list[Conflict]:
    holders: Mapping[int, dict[str, None]] = {sequence: {} for sequence in sorted(disputed)}
    if holders:
        for segment in segments:
            for sequence in map(_sequence, segment.scan.records.frames):
                if sequence in holders:
                    holders[sequence][segment.name] = None
    return [Conflict(sequence, tuple(names)) for sequence, names in holders.items()]


def _find_damaged_segments(recovered: Recovered) -> frozenset[str]:
    """Names of the segments that hold corrupt bytes or conflicting records."""
    names: set[str] = set()
    for damage in recovered.corrupt:
        match damage:
            case Scar(segment=name):
                names.add(name)
            case Conflict(segments=several):
                names.update(several)
            case Hole():
                pass
    return frozenset(names)
