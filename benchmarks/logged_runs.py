"""Journals of runs that the heuristic controlled, to learn from.

    python benchmarks/logged_runs.py DIRECTORY --runs 60
    tamiyo-jax train --from-journals DIRECTORY --output POLICY

Each run trains a small host of `tamiyo_jax.learn`, a perceptron, on a task of its own, for 60
epochs: the packets of its states go to a controller, whose decisions are carried out. Every run has
a directory of its own, and all share ``blueprints.db``.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np

from tamiyo_jax.config import DeadlineConfig, TamiyoConfig
from tamiyo_jax.contracts import OptimizerAdjustment, SeedAdjustment
from tamiyo_jax.decision import Decision
from tamiyo_jax.learn import TRAINING, EnvAction, EnvState, HostEnv, draw, packet_of
from tamiyo_jax.library import SqliteBlueprintLibrary
from tamiyo_jax.policy import Action
from tamiyo_jax.service import Tamiyo

EPOCHS = 60
FIRST = next(iter(TRAINING.values())).architecture
FAMILIES = [family for family in TRAINING.values() if family.architecture == FIRST]
# Decisions must not depend on how busy the machine is.
PATIENT = TamiyoConfig(deadlines=DeadlineConfig(inference_ms=600_000.0, metadata_ms=600_000.0))


def carry_out(env: HostEnv, decision: Decision) -> EnvAction:
    """A decision as an action of the environment."""
    command, seed, blueprint, delta = decision.command, -1, -1, 0.0
    action = Action[decision.action] if decision.action in Action.__members__ else Action.WAIT
    if command is not None and command.target_seed_id is not None:
        seed = env.slots.index(command.target_seed_id)
    if command is not None and isinstance(command.payload, SeedAdjustment):
        ids = [one.blueprint_id for one in env.network.candidates]
        if command.payload.blueprint_id in ids:
            blueprint = 1 + ids.index(command.payload.blueprint_id)
    if command is not None and isinstance(command.payload, OptimizerAdjustment):
        delta = command.payload.hyperparameters["lr_delta"]
    return EnvAction(np.int32(action), np.int32(seed), np.int32(blueprint), np.float32(delta))


def log_run(
    env: HostEnv,
    step: Mapping[str, Callable[..., EnvState]],
    run: int,
    directory: Path,
    library: SqliteBlueprintLibrary,
) -> None:
    """Train one host under the heuristic, with its journal in `directory`."""
    family = FAMILIES[run % len(FAMILIES)]
    task = draw(family, run)
    state = step["initial"](jax.random.PRNGKey(run), task)
    action = EnvAction(np.int32(Action.WAIT), np.int32(-1), np.int32(-1), np.float32(0))
    with Tamiyo.open(
        PATIENT,
        directory=directory,
        library=library,
        policy="heuristic",
        secret=os.urandom(32),
        isolation="inline",
    ) as tamiyo:
        for _ in range(env.epochs):
            state = step["epoch"](state, action, task)
            decision = tamiyo.step(packet_of(env, state, f"{family.name}-{run}"))
            action = carry_out(env, decision)


def main() -> None:
    """Log the runs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", type=Path)
    parser.add_argument("--runs", type=int, default=60)
    arguments = parser.parse_args()
    root: Path = arguments.directory
    root.mkdir(parents=True)
    env = HostEnv(replace(FIRST, epochs=EPOCHS))
    library = SqliteBlueprintLibrary(root / "blueprints.db")
    for blueprint in (env.network.blueprint, *env.network.candidates):
        library.put(blueprint)
    key = jax.random.PRNGKey(0)  # a run's own key is in its state
    step = {
        "initial": jax.jit(env.initial),
        "epoch": jax.jit(lambda state, action, task: env.step(key, state, action, task)[1]),
    }
    for run in range(arguments.runs):
        log_run(env, step, run, root / f"run-{run:03d}", library)
        print(f"run {run} logged", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
