"""How late a step raises when its policy hangs, crashes or eats memory.

    .venv/bin/python benchmarks/deadlines.py [sleep spin ...] [--repeats 100] [--json]

Each trouble is made again and again in a real worker, under the default deadline; a row says
how far beyond the deadline the step raised (a crash raises before it). Every time the worker's
process must be gone when the step raises, and the spare must answer the next step in time.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from harness import Timing, report

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from making import SECRET, make_library, make_packet
from troubles import TROUBLES, complain, leave, trouble_metrics

from tamiyo_jax.config import TamiyoConfig
from tamiyo_jax.errors import TamiyoError
from tamiyo_jax.service import Tamiyo

CONFIG = TamiyoConfig(breakers={"failures": 10})
# Raising ends no worker, and a crash is a crash.
ENDING = tuple(trouble for trouble in TROUBLES if trouble not in (complain, leave))


def main() -> None:
    """Measure and print."""
    arguments = argparse.ArgumentParser(description=__doc__)
    names = [one.__name__ for one in ENDING]
    arguments.add_argument("troubles", nargs="*", default=names, help=f"of {', '.join(names)}")
    arguments.add_argument("--repeats", type=int, default=100)
    arguments.add_argument("--json", action="store_true")
    parsed = arguments.parse_args()
    repeats = parsed.repeats
    rows: dict[str, Timing] = {}
    answered: list[float] = []
    left = unanswered = 0
    with (
        tempfile.TemporaryDirectory() as root,
        Tamiyo.open(
            CONFIG,
            directory=root,
            library=make_library(),
            policy="troubles:Troubled",
            secret=SECRET,
        ) as tamiyo,
    ):
        tamiyo.step(make_packet())
        pool = tamiyo._steps.deployed.runner.pool  # the processes are the subject here
        for trouble in ENDING:
            if trouble.__name__ not in parsed.troubles:
                continue
            beyond: list[float] = []
            packet = make_packet(1, training_metrics=trouble_metrics(trouble))
            for _ in range(repeats):
                while len(pool.pids()) < 2:
                    time.sleep(0.01)
                time.sleep(0.1)
                victim = pool.pids()[0]
                started = time.perf_counter()
                try:
                    tamiyo.step(packet)
                except TamiyoError:
                    took = (time.perf_counter() - started) * 1e3
                left += Path(f"/proc/{victim}").exists()
                beyond.append(took - CONFIG.deadlines.inference_ms)
                started = time.perf_counter()
                try:
                    tamiyo.step(make_packet())
                except TamiyoError:
                    unanswered += 1
                answered.append((time.perf_counter() - started) * 1e3)
            rows[f"{trouble.__name__}: beyond the deadline"] = Timing.of(beyond)
    rows["the next step, answered by the spare"] = Timing.of(answered)
    report(
        "deadlines",
        rows,
        {
            "deadline, ms": CONFIG.deadlines.inference_ms,
            "processes left when the step raised": left,
            "next steps not answered in time": unanswered,
        },
    )


if __name__ == "__main__":
    main()
