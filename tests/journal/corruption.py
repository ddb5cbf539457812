"""Damage done to a journal's bytes, and what it may cost: the records it touches and no other."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tamiyo_jax.journal import Journal, Record, RecordType, Recovered, Scar, read_journal
from tamiyo_jax.journal._recovery import merge
from tamiyo_jax.journal._scanning import Segment, read_segment

SEGMENT_BYTES = 16 * 1024
Contents = dict[int, tuple[RecordType, bytes]]
Disk = dict[str, bytes]


def make_journal(directory: Path, records: int, seed: int = 0) -> None:
    """A journal of several segments, all of it synced; some payloads quote frames of it."""
    chance = random.Random(seed)
    directory.mkdir(parents=True, exist_ok=True)
    journal, _ = Journal.open(directory, salt_source=chance.randbytes)
    with journal:
        journal.start(b"state")
        quoted = b""
        for number in range(records - 1):
            payload = b"%d " % number + chance.randbytes(chance.randrange(80)) + quoted
            if not journal.has_room(payload, SEGMENT_BYTES):
                journal.rotate(b"state")
            journal.append(RecordType.STEP, payload)
            last = max((directory / "journal").iterdir())
            quoted = last.read_bytes()[-120:] if number % 50 == 0 else b""


def image(directory: Path) -> Disk:
    return {path.name: path.read_bytes() for path in sorted((directory / "journal").iterdir())}


def contents(records: Iterable[Record]) -> Contents:
    return {record.sequence: (record.type, record.payload) for record in records}


@dataclass(frozen=True)
class Extent:
    """Where a record stands: `begin` to `end` of its segment, without the last."""

    sequence: int
    begin: int
    end: int


def extents(name: str, data: bytes) -> list[Extent]:
    """The extents of all records of a sound segment, found without its reader."""
    magic = bytes.fromhex("f5c1f8fe")
    begins = [at for at in range(len(data)) if data.startswith(magic, at)]
    sequences = [record.sequence for record in read_segment(name, data).scan.records]
    ends = [*begins[1:], len(data)]
    return [Extent(*row) for row in zip(sequences, begins, ends, strict=True)]


def touched(where: list[Extent], begin: int, end: int) -> set[int]:
    return {place.sequence for place in where if place.begin < end and begin < place.end}


def is_torn(before: Recovered, where: list[Extent], lost: set[int], at: int) -> bool:
    """Whether a crash may have left a segment bad at a byte: all before it is above `synced`."""
    synced = max(record.synced for record in before.records if record.sequence not in lost)
    first = where[0].sequence
    return max((place.sequence for place in where if place.end <= at), default=first - 1) >= synced


def check_flip(
    before: Contents, others: list[Segment], name: str, data: bytes, lost: set[int], at: int
) -> str | None:
    """What is wrong with how a segment with one flipped byte is read; None if nothing is."""
    segment = read_segment(name, data)
    found = merge(sorted((*others, segment), key=lambda one: one.base))
    expected = {sequence: record for sequence, record in before.items() if sequence not in lost}
    if contents(found.records) != expected:
        return "records lost or invented"
    scars = [scar for scar in (*found.corrupt, *found.torn) if isinstance(scar, Scar)]
    if not any(s.segment == name and s.offset <= at < s.offset + s.length for s in scars):
        return "loss not reported with its offset"
    return None


def flip_every_byte(directory: Path, records: int, every: int = 1) -> dict[str, object]:
    """Flip the bytes of a journal in turn, in memory, and some of them in a real directory."""
    started = time.monotonic()
    make_journal(directory / "sound", records)
    disk = image(directory / "sound")
    segments = {name: read_segment(name, data) for name, data in disk.items()}
    sound = merge(list(segments.values()))
    before = contents(sound.records)
    flips, failures, real = 0, Counter[str](), 0
    for name, data in disk.items():
        others = [segment for other, segment in segments.items() if other != name]
        where = extents(name, data)
        for at in range(0, len(data), every):
            damaged = data[:at] + bytes([data[at] ^ (1 + at * 37 % 255)]) + data[at + 1 :]
            lost = touched(where, at, at + 1)
            problem = check_flip(before, others, name, damaged, lost, at)
            flips += 1
            if problem is None and flips % 997 == 1:
                real += 1
                run = directory / f"flip-{flips}"
                kept = set[str]() if is_torn(sound, where, lost, at) else {name}
                problem = check_directory(run, disk | {name: damaged}, before, lost, kept)
            if problem is not None:
                failures[problem] += 1
    return {
        "records": len(before),
        "segments": len(disk),
        "bytes flipped": flips,
        "in real directories": real,
        "failures of any kind": failures.total(),
        "examples": dict(failures),
        "seconds": round(time.monotonic() - started),
    }


def check_directory(
    run: Path, disk: Disk, before: Contents, lost: set[int], quarantined: set[str]
) -> str | None:
    """Open a damaged directory, go on in it, and open it again; None if all is well.

    Args:
      run: a directory that is not there yet.
      disk: its segments.
      before: the records before the damage.
      lost: the sequences that the damage touches.
      quarantined: segments that have to be found in quarantine as they are in `disk`.
    """
    (run / "journal").mkdir(parents=True)
    for name, data in disk.items():
        (run / "journal" / name).write_bytes(data)
    journal, found = Journal.open(run)
    with journal:
        journal.start(b"state")
        journal.append(RecordType.STEP, b"next")
    expected = {sequence: record for sequence, record in before.items() if sequence not in lost}
    if contents(found.records) != expected:
        return "records lost or invented"
    if (lost or quarantined) and found.clean:
        return "loss not reported"
    for name in quarantined:
        kept = run / "quarantine" / name
        if not kept.exists() or kept.read_bytes() != disk[name]:
            return "bytes are not in quarantine"
    return _check_again(expected, read_journal(run))


def _check_again(expected: Contents, again: Recovered) -> str | None:
    found = contents(again.records)
    if any(found.get(sequence) != record for sequence, record in expected.items()):
        return "records lost by repairing"
    if again.records[-1].payload != b"next":
        return "appending did not go on"
    return None if again.clean else "alarms again"


Damage = Callable[[Disk, random.Random], tuple[Disk, set[int], set[str]]]


def delete_range(disk: Disk, chance: random.Random) -> tuple[Disk, set[int], set[str]]:
    """Cut up to 500 bytes out of a segment other than the last."""
    name = chance.choice(sorted(disk)[:-1])
    data = disk[name]
    begin = chance.randrange(len(data) - 1)
    end = min(len(data), begin + chance.randrange(1, 500))
    lost = touched(extents(name, data), begin, end)
    return disk | {name: data[:begin] + data[end:]}, lost, {name}


def zero_page(disk: Disk, chance: random.Random) -> tuple[Disk, set[int], set[str]]:
    """Zero one page of a segment other than the last."""
    name = chance.choice(sorted(disk)[:-1])
    data = disk[name]
    begin = 4096 * chance.randrange(len(data) // 4096)
    end = begin + 4096
    lost = touched(extents(name, data), begin, end)
    return disk | {name: data[:begin] + bytes(4096) + data[end:]}, lost, {name}


def duplicate_segment(disk: Disk, chance: random.Random) -> tuple[Disk, set[int], set[str]]:
    """Copy a segment; its records are there twice, which is no loss."""
    name = chance.choice(sorted(disk))
    return disk | {f"copy of {name}": disk[name]}, set(), set()


def swap_segments(disk: Disk, chance: random.Random) -> tuple[Disk, set[int], set[str]]:
    """Give two segments each other's name; their headers say who they are."""
    first, second = chance.sample(sorted(disk), 2)
    return disk | {first: disk[second], second: disk[first]}, set(), set()


LARGE: dict[str, Damage] = {
    "deleted ranges": delete_range,
    "zeroed pages": zero_page,
    "duplicated segments": duplicate_segment,
    "swapped segments": swap_segments,
}


def damaged_directories(
    directory: Path, records: int, times: int
) -> Iterator[tuple[str, str | None]]:
    """Each kind of damage, and what was wrong with how a real directory was repaired."""
    make_journal(directory / "sound", records)
    disk = image(directory / "sound")
    before = contents(read_journal(directory / "sound").records)
    chance = random.Random(0)
    for kind, do in LARGE.items():
        for number in range(times):
            damaged, lost, quarantined = do(disk, chance)
            run = directory / f"{do.__name__}-{number}"
            yield kind, check_directory(run, damaged, before, lost, quarantined)


def large_damage(directory: Path, records: int, times: int = 50) -> dict[str, object]:
    """Damage larger than a byte, in real directories."""
    done, failures = Counter[str](), Counter[str]()
    for kind, problem in damaged_directories(directory, records, times):
        done[kind] += 1
        if problem is not None:
            failures[f"{kind}: {problem}"] += 1
    return dict(done) | {
        "failures of any kind": failures.total(),
        "examples": dict(failures),
    }
