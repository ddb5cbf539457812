"""What keeping promises costs: the journal against raw writes on the same disk.

    .venv/bin/python benchmarks/appends.py

Appends and durable appends are measured in turns with the raw system calls (A B A B) and
compared by their medians, for small and for usual records. ``--json`` prints the figures.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from zlib import crc32

from tamiyo_jax.journal import Journal, Record, RecordType, read_journal
from tamiyo_jax.journal._frames import encode_frame

SEGMENT_BYTES = 4 * 2**20
SIZES = {"100 B": 100, "2 KB": 2_000}
SNAPSHOT = bytes(2_000)


def payload_of(size: int) -> bytes:
    """Bytes of no particular pattern."""
    return os.urandom(size)


class Writer:
    """A journal that rotates, as the owner of a directory has it; nothing is a day old yet."""

    def __init__(self, directory: Path, durability: str = "group") -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.journal, _ = Journal.open(directory, durability=durability)  # pyright: ignore
        self.journal.start(SNAPSHOT)

    def append(self, payload: bytes) -> None:
        """Append a record, in a new segment if need be."""
        if not self.journal.has_room(payload, SEGMENT_BYTES):
            self.journal.rotate(SNAPSHOT)
        self.journal.append(RecordType.STEP, payload)


def seconds_per_call(call: Callable[[], object], times: int) -> float:
    """Mean time of a call, seconds."""
    started = time.perf_counter()
    for _ in range(times):
        call()
    return (time.perf_counter() - started) / times


def raw_file(path: Path) -> int:
    """An empty file, open for appending."""
    return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)


def durable(directory: Path, size: int, rounds: int, times: int) -> dict[str, float]:
    """Milliseconds of a durable append, and of write and fdatasync of as many bytes."""
    payload = payload_of(size)
    frame = encode_frame(Record(1, 0, RecordType.STEP, payload), 0)
    writer = Writer(directory / "always", "always")
    descriptor = raw_file(directory / "raw")

    def raw() -> None:
        os.write(descriptor, frame)
        os.fdatasync(descriptor)

    ours, theirs = [], []
    for _ in range(rounds):
        theirs += [seconds_per_call(raw, 1) for _ in range(times)]
        ours += [seconds_per_call(lambda: writer.append(payload), 1) for _ in range(times)]
    writer.journal.close()
    os.close(descriptor)
    row = {"always_ms": 1e3 * median(ours), "raw_ms": 1e3 * median(theirs)}
    return row | {"ratio": row["always_ms"] / row["raw_ms"]}


def group(directory: Path, size: int, rounds: int, times: int) -> dict[str, float]:
    """Appends per second: in groups until all is on disk, one fsync each, encoding alone."""
    payload = payload_of(size)
    seed = crc32(b"saltsalt")
    grouped, single = Writer(directory / "group"), Writer(directory / "single", "always")

    def in_group() -> float:
        started = time.perf_counter()
        for _ in range(times):
            grouped.append(payload)
        grouped.journal.flush()
        return times / (time.perf_counter() - started)

    def encode() -> bytes:
        return encode_frame(Record(1, 0, RecordType.STEP, payload), seed)

    rates: dict[str, list[float]] = {"group_per_s": [], "single_per_s": [], "encode_per_s": []}
    for _ in range(rounds):
        rates["group_per_s"].append(in_group())
        one = seconds_per_call(lambda: single.append(payload), max(1, times // 100))
        rates["single_per_s"].append(1 / one)
        rates["encode_per_s"].append(1 / seconds_per_call(encode, times))
    grouped.journal.close()
    single.journal.close()
    row = {name: median(values) for name, values in rates.items()}
    return row | {
        "group_over_single": row["group_per_s"] / row["single_per_s"],
        "encode_over_group": row["encode_per_s"] / row["group_per_s"],
    }


def growth(directory: Path, records: int) -> dict[str, float]:
    """Microseconds per append, early and late in a log of many records."""
    payload = payload_of(100)
    writer = Writer(directory)
    row: dict[str, float] = {}
    written, checkpoints = 0, [n for n in (1_000, 10_000, 100_000, 1_000_000) if n <= records]
    for checkpoint in checkpoints:
        blocks = []
        for _ in range(5):
            blocks.append(seconds_per_call(lambda: writer.append(payload), 100))
            blocks.append(seconds_per_call(lambda: writer.append(payload), 100))
        written += 1_000
        row[f"us_at_{checkpoint}"] = 1e6 * median(blocks)
        while written < checkpoint * 10 and checkpoint != checkpoints[-1]:
            writer.append(payload)
            written += 1
    writer.journal.close()
    return row


def reopening(directory: Path, size: int, records: int, rounds: int) -> dict[str, float]:
    """Records per second: reading a log, and opening it for writing."""
    payload = payload_of(size)
    writer = Writer(directory)
    for _ in range(records):
        writer.append(payload)
    writer.journal.close()
    opened, read = [], []
    for _ in range(rounds):
        read.append(records / seconds_per_call(lambda: read_journal(directory), 1))
        opened.append(records / seconds_per_call(lambda: Journal.open(directory), 1))
    return {"read_per_s": median(read), "open_per_s": median(opened), "records": records}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--directory", type=Path, help="on the disk to measure")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--records", type=int, default=1_000_000, help="of the longest log")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    rows: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory(dir=arguments.directory) as name:
        root = Path(name)
        for label, size in SIZES.items():
            at = root / str(size)
            at.mkdir()
            rounds = arguments.rounds
            rows[f"durable append, {label}"] = durable(at, size, rounds, 50)
            rows[f"appends, {label}"] = group(at, size, rounds, 20_000)
            rows[f"reopening, {label}"] = reopening(at / "reopening", size, 100_000, 3)
        rows["cost per append, 100 B"] = growth(root / "growth", arguments.records)
    if arguments.json:
        print(json.dumps(rows, indent=1))
        return
    for label, row in rows.items():
        print(label)
        for key, value in row.items():
            print(f"  {key:24}{value:>14,.2f}")


if __name__ == "__main__":
    main()
