"""What random kills of servers and of Redis cost: decisions lost, repeated or changed.

    .venv/bin/python benchmarks/many_runs_kills.py [--kills 100] [--seed 0] [--json]

Three runs train on two servers and a real Redis that writes every command to disk. Again and
again a server or Redis is ended by SIGKILL and started anew. Afterwards every decision is
compared with that of an in-process controller. Exit status 1 if any differs.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from killed_servers import kill_at_random
from redis_server import RedisServer


def main() -> None:
    """Kill, compare and print."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--kills", type=int, default=100)
    arguments.add_argument("--seed", type=int, default=0)
    arguments.add_argument("--pause", type=float, default=6.0, help="longest time between kills, s")
    arguments.add_argument("--json", action="store_true")
    parsed = arguments.parse_args()
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        (directory / "redis").mkdir()
        with RedisServer(directory / "redis") as redis:
            figures = kill_at_random(
                redis, directory, kills=parsed.kills, seed=parsed.seed, pause_s=parsed.pause
            )
    if parsed.json:
        print(json.dumps(figures._asdict()))
    else:
        for field, value in figures._asdict().items():
            print(f"{field:>10}: {value}")
    raise SystemExit(bool(figures.different or figures.repeated or figures.changed))


if __name__ == "__main__":
    main()
