"""One way to measure: warm up, take turns, and say how much the figures spread.

Alternatives that are compared run in turns (A B A B …), so that a machine that is busy for a
while is busy for all of them.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

import numpy as np
from rich.console import Console
from rich.table import Table

__all__ = ["Found", "Timing", "in_turns", "report", "report_parts"]


@dataclass(frozen=True)
class Timing:
    """What repeated calls took, in milliseconds; `spread` is between the quartiles."""

    median: float
    p95: float
    p99: float
    worst: float
    spread: float
    calls: int

    @classmethod
    def of(cls, milliseconds: Sequence[float]) -> Self:
        """Figures of a sample."""
        low, median, high, p95, p99 = np.percentile(milliseconds, [25, 50, 75, 95, 99])
        return cls(
            float(median), float(p95), float(p99), max(milliseconds), float(high - low),
            len(milliseconds),
        )  # fmt: skip


def in_turns(
    calls: Mapping[str, Callable[[], object]], *, rounds: int, warmup: int = 10
) -> dict[str, Timing]:
    """Time each call `rounds` times, one after another in every round."""
    for call in calls.values():
        for _ in range(warmup):
            call()
    taken: dict[str, list[float]] = {name: [] for name in calls}
    gc.collect()
    for _ in range(rounds):
        for name, call in calls.items():
            started = time.perf_counter()
            call()
            taken[name].append((time.perf_counter() - started) * 1e3)
    return {name: Timing.of(sample) for name, sample in taken.items()}


def report(title: str, rows: Mapping[str, Timing], facts: Mapping[str, object]) -> None:
    """Print a table, or with ``--json`` an object that a program can read."""
    facts = dict(facts) | {"load_average": round(os.getloadavg()[0], 2), "cpus": os.cpu_count()}
    if "--json" in sys.argv:
        plain = {name: asdict(timing) for name, timing in rows.items()}
        print(json.dumps({"benchmark": title, "rows": plain, "facts": facts}, indent=1))
        return
    console = Console()
    table = Table("milliseconds", "median", "p95", "p99", "worst", "calls", title=title)
    for name, timing in rows.items():
        figures = (timing.median, timing.p95, timing.p99, timing.worst)
        table.add_row(name, *(f"{figure:.3f}" for figure in figures), str(timing.calls))
    console.print(table)
    for name, fact in facts.items():
        console.print(f"{name}: {fact}", highlight=False)


Found = tuple[dict[str, Timing], dict[str, object]]
"""Rows and facts for `report`."""


def report_parts(
    title: str, parts: Mapping[str, Callable[[Path], Found]], description: str | None
) -> None:
    """Measure the parts that the command line asks for, each in a directory of its own."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("parts", nargs="*", default=list(parts), help="all without")
    parser.add_argument("--json", action="store_true")
    rows: dict[str, Timing] = {}
    facts: dict[str, object] = {}
    for name in parser.parse_args().parts:
        with tempfile.TemporaryDirectory() as root:
            found = parts[name](Path(root))
        rows |= found[0]
        facts |= found[1]
    report(title, rows, facts)
