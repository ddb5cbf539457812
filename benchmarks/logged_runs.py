"""Journals of runs that the heuristic controlled, to learn from.

    python benchmarks/logged_runs.py DIRECTORY --runs 60

Each run trains the demonstration's network on the digits for 60 epochs: two splits of the scans,
and for each run other initial values and another order of the data. Every run has a directory of
its own, as `tamiyo-jax train --from-journals` takes them, and all share ``blueprints.db``.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from tamiyo_jax.clock import steady_time_ns
from tamiyo_jax.config import DeadlineConfig, TamiyoConfig
from tamiyo_jax.contracts import NonceLedger, Secret, Verifier
from tamiyo_jax.demo import digits_task
from tamiyo_jax.host import CommandApplier
from tamiyo_jax.library import SqliteBlueprintLibrary
from tamiyo_jax.service import Tamiyo
from tamiyo_jax.training import Task, init_loop, run

EPOCHS = 60
SPLITS = 2
# Decisions must not depend on how busy the machine is.
PATIENT = TamiyoConfig(deadlines=DeadlineConfig(inference_ms=600_000.0, metadata_ms=600_000.0))


def log_run(task: Task, seed: int, root: Path, library: SqliteBlueprintLibrary) -> None:
    """Train one network under the heuristic, with its journal in ``root/run-SEED``."""
    secret = os.urandom(32)
    verifier = Verifier((Secret(secret),), NonceLedger(steady_time_ns()), PATIENT.security)
    applier = CommandApplier(
        verifier, clock=steady_time_ns, optimizer_id=task.optimizer_id, host=task.host
    )
    with Tamiyo.open(
        PATIENT,
        directory=root / f"run-{seed:03d}",
        library=library,
        policy="heuristic",
        secret=secret,
        isolation="inline",
    ) as tamiyo:
        run(
            task,
            tamiyo,
            steps=EPOCHS * task.steps_per_epoch,
            state=init_loop(task, seed),
            run_id=f"digits-{seed}",
            applier=applier,
            deterministic=True,
        )


def main() -> None:
    """Log the runs that are not in the directory yet, split by split."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", type=Path)
    parser.add_argument("--runs", type=int, default=60)
    arguments = parser.parse_args()
    root: Path = arguments.directory
    root.mkdir(parents=True, exist_ok=True)
    library = SqliteBlueprintLibrary(root / "blueprints.db")
    for split in range(SPLITS):
        task = digits_task(split)
        for blueprint in (task.blueprint, *task.candidates):
            if library.get(blueprint.blueprint_id) is None:
                library.put(blueprint)
        for seed in range(split, arguments.runs, SPLITS):
            if not (root / f"run-{seed:03d}").exists():
                log_run(task, seed, root, library)
                print(f"run {seed} logged", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
