"""Whether a controller holds more of the machine after many steps than after few.

    make soak
    .venv/bin/python benchmarks/soak.py [--steps 200000] [--policy graph] [--json]

One process steps with real workers, group commit and sinks, while workers are killed and hung,
policies updated and blueprints changed; see `tests/service/soak.py`. Two hundred samples, taken
between steps with all workers warm, make a table with a row per tenth. The first tenth is the
warm-up: layouts compile, rings and registries fill, segments begin to retire.

Exit status 1 unless all of this holds afterwards:

- the resident memory of the process, and of the worker that decides, grows by no more than 32
  bytes a step, which is less than any Python object that a step could leave behind. For the
  process, that is from the mean of the second fifth of the samples to that of the last; for
  workers, all that they gain once they have settled, 2,000 steps after the first sample of each.
  In a run of fewer than 100,000 steps none lives so long, and the claim fails;
- open files, threads, and the median and 99th percentile of the latency: the median over the
  tenths of the second half is at most 1, 1, 1.25 and 1.5 times that over the first's;
- every step failed that had to, no other did, and the newest reports are in the journal.

The graph policy runs in its small widths; the heuristic has no policy updates.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from pathlib import Path
from statistics import median_low

import numpy as np
from harness import Timing
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from service.soak import Sample, Soak, soak

SAMPLES = 200
TENTHS = 10
BYTES_PER_STEP = 32.0
SETTLING_STEPS = 2_000  # of a worker, in which its allocator and caches fill
# Figure of a tenth, and how many times the first half's the second half's may be.
RATIOS = {
    "open files do not grow": ("descriptors", 1.0),
    "threads do not grow": ("threads", 1.0),
    "median latency is flat": ("median_ms", 1.25),
    "p99 latency is flat": ("p99_ms", 1.5),
}
RETENTION_HOURS = 1 / 60  # segments retire after the first minute


@dataclass(frozen=True)
class Growth:
    """Bytes that were gained, over how many steps."""

    gained: float
    steps: float

    @property
    def per_step(self) -> float:
        """Bytes per step; NaN where no steps were seen."""
        return self.gained / self.steps if self.steps else math.nan

    @property
    def flat(self) -> bool:
        """Whether it is within the limit."""
        return self.per_step <= BYTES_PER_STEP


def growth_of_process(samples: Sequence[Sample]) -> Growth:
    """From the mean of the second fifth of the samples to that of the last.

    Memory is a random walk of a few megabytes, so that the samples are not independent: an
    error of a slope through them would be far too small. Means of fifths need none.
    """
    fifth = len(samples) // 5
    (begin, low), (end, high) = (
        np.mean([(one.step, one.resident) for one in part], axis=0)
        for part in (samples[fifth : 2 * fifth], samples[-fifth:])
    )
    return Growth(float(high - low), float(end - begin))


def growth_of_workers(samples: Sequence[Sample]) -> Growth:
    """What all workers gained together, each once it has settled."""
    lives: list[list[Sample]] = []
    for _, group in groupby(samples, key=lambda one: one.worker):
        life = [*group]
        lives.append([one for one in life if one.step >= life[0].step + SETTLING_STEPS])
    return Growth(
        sum(life[-1].worker_resident - life[0].worker_resident for life in lives if life),
        sum(life[-1].step - life[0].step for life in lives if life),
    )


def rows(seen: Soak) -> list[dict[str, float]]:
    """One row per tenth of the run."""
    edges = np.linspace(0, len(seen.latencies_ms), TENTHS + 1).astype(int)
    found = []
    for low, high in pairwise(edges):
        timing = Timing.of(seen.latencies_ms[low:high].tolist())
        samples = [sample for sample in seen.samples if low < sample.step <= high]
        found.append(
            {
                "steps": int(high),
                "median_ms": timing.median,
                "p95_ms": timing.p95,
                "p99_ms": timing.p99,
                "worst_ms": timing.worst,
                "resident_mb": float(np.median([sample.resident for sample in samples])) / 1e6,
                "worker_mb": float(np.median([sample.worker_resident for sample in samples])) / 1e6,
                "descriptors": median_low(sample.descriptors for sample in samples),
                "threads": median_low(sample.threads for sample in samples),
                "segments": max(sample.segments for sample in samples),
            }
        )
    return found


def check_claims(seen: Soak, tenths: Sequence[dict[str, float]]) -> dict[str, tuple[bool, str]]:
    """Each claim, whether it holds, and its figures."""
    memory = {
        "memory of the process is flat": growth_of_process(seen.samples),
        "memory of the worker is flat": growth_of_workers(seen.samples),
    }
    claims = {
        name: (
            found.flat,
            f"{found.per_step:+.1f} bytes a step over {found.steps:,.0f} steps, "
            f"limit {BYTES_PER_STEP:g}",
        )
        for name, found in memory.items()
    }
    middle = TENTHS // 2 + 1
    for name, (figure, limit) in RATIOS.items():
        before, after = (
            float(np.median([row[figure] for row in half]))
            for half in (tenths[1:middle], tenths[middle:])
        )
        claims[name] = (
            after <= limit * before,
            f"{before:.4g} in the first half, {after:.4g} in the second, limit × {limit:g}",
        )
    claims["no step surprises"] = not seen.surprises, "; ".join([*seen.surprises][:5]) or "none did"
    return claims


def main() -> int:
    """Run, print the figures and check the claims."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=200_000)
    parser.add_argument("--policy", choices=("graph", "heuristic"), default="graph")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    started = time.monotonic()

    def progress(sample: Sample) -> None:
        if sys.stderr.isatty():
            print(f"\r{sample.step:,} of {arguments.steps:,} steps", end="\r", file=sys.stderr)

    with tempfile.TemporaryDirectory() as root:
        seen = soak(
            Path(root),
            steps=arguments.steps,
            policy=arguments.policy,
            sample_every=max(1, arguments.steps // SAMPLES),
            retention_hours=RETENTION_HOURS,
            progress=progress,
        )
    tenths = rows(seen)
    claims = check_claims(seen, tenths)
    facts = {
        "policy": arguments.policy,
        "minutes": round((time.monotonic() - started) / 60, 1),
        "events": dict(seen.events),
        "steps that had to fail, and did": dict(seen.expected),
        "telemetry packets dropped": seen.dropped,
        "load_average": round(os.getloadavg()[0], 2),
    }
    if arguments.json:
        samples = [sample._asdict() for sample in seen.samples]
        whole = {"rows": tenths, "claims": claims, "facts": facts, "samples": samples}
        print(json.dumps(whole, indent=1))
    else:
        _show(tenths, claims, facts)
    return 0 if all(holds for holds, _ in claims.values()) else 1


def _show(
    tenths: Sequence[dict[str, float]],
    claims: Mapping[str, tuple[bool, str]],
    facts: Mapping[str, object],
) -> None:
    console = Console(width=120)
    table = Table(*(name.replace("_", ", ") for name in tenths[0]), title="soak")
    for row in tenths:
        table.add_row(*(f"{x:,}" if isinstance(x, int) else f"{x:,.2f}" for x in row.values()))
    console.print(table)
    for name, fact in facts.items():
        console.print(f"{name}: {fact}", highlight=False)
    for name, (holds, figures) in claims.items():
        console.print(f"{name}: {'yes' if holds else 'NO'}: {figures}", highlight=False)


if __name__ == "__main__":
    sys.exit(main())
