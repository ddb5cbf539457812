"""What crashes, flipped bytes and kills cost a run directory: campaigns, and their figures.

    make crash-campaign

Workloads run over a simulated file system that is stopped after every operation, with what
was not synced dropped, kept, torn and reordered. Every byte of a journal is flipped in turn.
A writing process is killed at random moments. Takes some minutes; ``--json`` prints the
figures for programs. Exit status 1 if anything was lost, invented or could not be reopened.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from journal.campaign import Tally, campaign, corrupted, travel
from journal.corruption import flip_every_byte, large_damage
from journal.kills import kill_writers

RECORDS = 240


def crash(directory: Path, least: int) -> dict[str, object]:
    """Crash workloads, sound and corrupted ones in turn, until there were `least` points."""
    tally, workloads, started = Tally(), 0, time.monotonic()
    while tally.crash_points < least:
        seed = workloads
        journey = travel(directory, seed, RECORDS)
        campaign(directory, journey, tally, seed)
        workloads += 1
        if seed % 3 == 0:
            disk, now_ns = corrupted(directory, journey, seed), journey.notes[-1].now_ns
            repaired = travel(directory, seed + 1, RECORDS, disk=disk, now_ns=now_ns)
            campaign(directory, repaired, tally, seed)
            workloads += 1
    return {
        "workloads": workloads,
        "crash points": tally.crash_points,
        "reopenings": tally.reopenings,
        "acknowledged records lost": tally.failures["acknowledged record lost"],
        "records invented": tally.failures["record invented"],
        "failures to reopen": tally.failures["failed to reopen"],
        "failures of any kind": tally.failures.total(),
        "examples": tally.examples,
        "seconds": round(time.monotonic() - started),
    }


def main() -> int:
    """Run the campaigns and print their figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--points", type=int, default=10_000, help="crash points, at least")
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--records", type=int, default=1_000, help="of the flipped journal")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        figures = {
            "crashes": crash(directory / "crashes", arguments.points),
            "flipped bytes": flip_every_byte(directory / "flips", arguments.records),
            "other damage": large_damage(directory / "damage", arguments.records),
            "kills": kill_writers(directory / "kills", arguments.kills, seed=0),
        }
    if arguments.json:
        print(json.dumps(figures, indent=1))
    else:
        for campaign_name, row in figures.items():
            print(campaign_name)
            for key, value in row.items():
                print(f"  {key:32}{value!s:>12}")
    failed = any(row["failures of any kind"] for row in figures.values())
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
