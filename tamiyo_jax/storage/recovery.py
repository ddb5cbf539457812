"""From scanned segments to one log: what is there, what is lost, what has to be rewritten.

Pure. A crash may take what nobody promised to keep: that is *torn*. Every other loss is
*corrupt*. The line between them is the highest `synced` that any frame carries.
"""

from __future__ import annotations

import struct
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tamiyo_jax.errors import PersistenceError
from tamiyo_jax.storage.frames import GapReason, Record, RecordType, Segment

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


@dataclass(frozen=True, slots=True)
class Scar:
    """Bytes of a segment that hold no record."""

    segment: str
    offset: int
    length: int
    reason: GapReason


@dataclass(frozen=True, slots=True)
class Hole:
    """Sequences `first` to `last`, both included, that no segment holds."""

    first: int
    last: int


@dataclass(frozen=True, slots=True)
class Conflict:
    """A sequence under which `segments` hold different records; none of them is believed."""

    sequence: int
    segments: tuple[str, ...]


Damage = Scar | Hole | Conflict


@dataclass(frozen=True, slots=True)
class Recovered:
    """A log as it was found.

    Attributes:
      records: every good record by ascending sequence.
      replay: the records that make up the state: the latest SNAPSHOT or RESTORE and all
        that follow it; empty only if there are no records.
      torn: what a crash is expected to leave.
      corrupt: what should not have been lost.
      missing: the holes among both, so far as no REPAIR record accounts for them.
      synced: the highest sequence known to have been durable.
      last_sequence: the highest sequence handed out; the next record follows it.
    """

    records: tuple[Record, ...]
    replay: tuple[Record, ...]
    torn: tuple[Damage, ...]
    corrupt: tuple[Damage, ...]
    missing: tuple[Hole, ...]
    synced: int
    last_sequence: int

    @property
    def clean(self) -> bool:
        """Whether every byte was read and every sequence found or accounted for."""
        return not self.torn and not self.corrupt


@dataclass(frozen=True, slots=True)
class Rewrite:
    """Segments of one base that one fresh segment with `records` is to replace.

    Attributes:
      base: the base sequence of the fresh segment.
      records: what it holds.
      obsolete: segments with nothing more in them, to be removed once it is durable.
      quarantined: segments with corrupt bytes in them, to be moved away and kept.
    """

    base: int
    records: tuple[Record, ...]
    obsolete: tuple[str, ...]
    quarantined: tuple[str, ...]


def merge(segments: Sequence[Segment]) -> Recovered:
    """Merge scanned segments by sequence and judge what is not there.

    Identical records under one sequence are one. Bad bytes and holes are torn if all they
    can have held lies above the highest `synced`, or if they are a short last frame or
    zeros up to the end of the file; they are corrupt otherwise.

    Raises:
      PersistenceError: there are records, but no SNAPSHOT or RESTORE to begin from.
    """
    by_sequence, disputed = _union(segments)
    synced = max((r.synced for s in segments for r in s.scan.records), default=0)
    records = tuple(by_sequence[sequence] for sequence in sorted(by_sequence))
    last = max((s.base - 1 for s in segments), default=0)
    last = max(last, max(disputed, default=0), records[-1].sequence if records else 0)
    first = min((s.base for s in segments), default=1)
    repaired = (h for r in records if r.type is RecordType.REPAIR for h in decode_repair(r.payload))
    holes = _holes(records, repaired, first, last)

    torn: list[Damage] = []
    corrupt: list[Damage] = []
    for segment in segments:
        for gap in segment.scan.gaps:
            expected = gap.reason in _TAILS or gap.after >= synced
            scar = Scar(segment.name, gap.offset, gap.length, gap.reason)
            (torn if expected else corrupt).append(scar)
    for hole in holes:
        (torn if hole.first > synced else corrupt).append(hole)
    corrupt.extend(_conflicts(segments, disputed))
    return Recovered(
        records, _replay(records), tuple(torn), tuple(corrupt), tuple(holes), synced, last
    )


def plan_rewrites(segments: Sequence[Segment], recovered: Recovered) -> tuple[Rewrite, ...]:
    """Which segments have to be replaced before anything is appended.

    Those with bad bytes or disputed records, and always the last one: after a failed fsync
    what reads back of it may exist in memory only, and a file does not tell whether its last
    fsync failed. Segments share a base only if a crash interrupted an earlier rewrite; they
    are replaced together, which finishes it.
    """
    groups: defaultdict[int, list[Segment]] = defaultdict(list)
    for segment in segments:
        groups[segment.base].append(segment)
    condemned = _condemned(recovered)
    last_base = max(groups, default=0)
    believed = frozenset(record.sequence for record in recovered.records)
    rewrites: list[Rewrite] = []
    for base, group in groups.items():
        names = [segment.name for segment in group]
        damaged = any(s.scan.gaps or s.name in condemned for s in group)
        if base == last_base or damaged or len(group) > 1:
            union, _ = _union(group)
            rewrites.append(
                Rewrite(
                    base,
                    tuple(union[sequence] for sequence in sorted(union) if sequence in believed),
                    tuple(name for name in names if name not in condemned),
                    tuple(name for name in names if name in condemned),
                )
            )
    return tuple(rewrites)


def encode_repair(holes: Iterable[Hole]) -> bytes:
    """The payload of a REPAIR record: first and last sequence of each hole, as u64."""
    return b"".join(_RANGE.pack(hole.first, hole.last) for hole in holes)


def decode_repair(payload: bytes) -> tuple[Hole, ...]:
    """The holes that a REPAIR record accounts for.

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


def _union(segments: Iterable[Segment]) -> tuple[dict[int, Record], frozenset[int]]:
    """Records by sequence, and the sequences under which there are different ones."""
    everything = [record for segment in segments for record in segment.scan.records]
    union = {record.sequence: record for record in everything}
    disputed: set[int] = set()
    if len(union) < len(everything):
        for record in everything:
            known = union.setdefault(record.sequence, record)
            if known is not record and _content(known) != _content(record):
                disputed.add(record.sequence)
    for sequence in disputed:
        del union[sequence]
    return union, frozenset(disputed)


def _content(record: Record) -> tuple[RecordType, bytes]:
    return record.type, record.payload


def _replay(records: tuple[Record, ...]) -> tuple[Record, ...]:
    if not records:
        return ()
    for index in range(len(records) - 1, -1, -1):
        if records[index].type in _STATES:
            return records[index:]
    raise PersistenceError(
        f"{len(records)} records but no readable SNAPSHOT or RESTORE to begin from; put back"
        " the missing segments, or move this journal away and restore a checkpoint",
        records=len(records),
    )


def _holes(
    records: tuple[Record, ...], repaired: Iterable[Hole], first: int, last: int
) -> list[Hole]:
    """The runs of sequences in `first..last` that are neither there nor repaired."""
    if len(records) == last - first + 1:
        return []
    present = [(record.sequence, record.sequence) for record in records]
    present += [(hole.first, hole.last) for hole in repaired]
    present.append((last + 1, last + 1))
    holes: list[Hole] = []
    expected = first
    for begin, end in sorted(present):
        if begin > expected:
            holes.append(Hole(expected, begin - 1))
        expected = max(expected, end + 1)
    return holes


def _conflicts(segments: Sequence[Segment], disputed: Iterable[int]) -> list[Conflict]:
    holders: Mapping[int, dict[str, None]] = {sequence: {} for sequence in sorted(disputed)}
    if holders:
        for segment in segments:
            for record in segment.scan.records:
                if record.sequence in holders:
                    holders[record.sequence][segment.name] = None
    return [Conflict(sequence, tuple(names)) for sequence, names in holders.items()]


def _condemned(recovered: Recovered) -> frozenset[str]:
    """Names of the segments that hold corrupt bytes or disputed records."""
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
