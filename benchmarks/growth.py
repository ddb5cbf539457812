"""What growth gains: a small network, the same one grown by Tamiyo, and a big one.

    make growth

On the digits, split by the seed, and on MNIST-1D, whose examples are fixed. The small and the
big network are what one would write without Tamiyo: no slots, one optimiser for everything.
In the third study Tamiyo may grow the widest seed alone, where the second offers it five.
Prints a table of means with 95 % intervals; ``--plot PATH`` draws, ``--json PATH`` keeps every run.
Both tasks were designed on other seeds than the default ones, and MNIST-1D on other examples.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from functools import cache, lru_cache
from typing import Any, NamedTuple

import jax
import numpy as np
from growth_report import plot, table
from mnist1d_task import mnist1d_task
from rich.console import Console

from tamiyo_jax.clock import steady_time_ns
from tamiyo_jax.config import DeadlineConfig, TamiyoConfig
from tamiyo_jax.contracts import NonceLedger, Secret, Verifier
from tamiyo_jax.demo import digits_task
from tamiyo_jax.demo._run import row_of
from tamiyo_jax.growth import Gate
from tamiyo_jax.host import CommandApplier, banks_of
from tamiyo_jax.library import MemoryBlueprintLibrary
from tamiyo_jax.service import Tamiyo
from tamiyo_jax.training import Data, RunResult, Task, init_loop, run

Params = Any


class Study(NamedTuple):
    """A task, for how long it is trained, and what the big network has for every slot."""

    make: Callable[[int], Task]
    epochs: int
    big: str


WIDE = "wide-mlp-8"


@cache
def mnist1d_wide_task() -> Task:
    """MNIST-1D, where Tamiyo is offered no seed but the widest."""
    task = mnist1d_task()
    offered = tuple(one for one in task.candidates if one.blueprint_id == WIDE)
    return replace(task, candidates=offered)


STUDIES = {
    "digits": Study(digits_task, 100, "mlp-wide"),
    "mnist1d": Study(lambda seed: mnist1d_task(), 100, WIDE),
    "mnist1d-wide": Study(lambda seed: mnist1d_wide_task(), 100, WIDE),
}
VARIANTS = ("small", "grown", "big")
# Decisions must not depend on how busy the machine is.
PATIENT = TamiyoConfig(deadlines=DeadlineConfig(inference_ms=600_000.0, metadata_ms=600_000.0))


@dataclass(frozen=True, slots=True)
class Outcome:
    """One network at its end.

    Attributes:
      accuracy: on the test examples, in [0, 1].
      parameters: live ones.
      seconds: of training. Tamiyo is open by then, and the programs of the network without
        seeds are compiled; a grown run compiles those of its seeds, unless an earlier run has.
      compiled_seconds: of the same run again, with all of its programs compiled.
      validation: accuracy after each epoch.
      actions: how often Tamiyo did what; empty without it.
    """

    study: str
    seed: int
    variant: str
    accuracy: float
    parameters: int
    seconds: float
    compiled_seconds: float
    validation: tuple[float, ...]
    actions: dict[str, int]


def without_slots(task: Task, grown: str | None) -> Task:
    """The network as one would write it without Tamiyo, trained by the task's optimiser alone.

    It starts from the same values and sees the same batches as the task itself.

    Args:
      task: a network with slots.
      grown: the candidate that stands in the place of every slot; None for nothing.
    """
    # NumPy's numbers are constants to the compiler, which removes what they switch off.
    gates: Any = {name: Gate(np.float32(1 if grown else 0)) for name in banks_of(task.host)}

    def init_params(key: jax.Array) -> Params:
        # Those of seeds that germinate before the first step.
        seeds = task.host.init_seeds(jax.random.fold_in(key, 0)) if grown else {}
        return {"host": task.init_params(key), **{name: seeds[name][grown] for name in seeds}}

    def seeds_of(params: Params) -> Any:  # noqa: ANN401
        return {name: {grown: params[name]} if grown else {} for name in gates}

    def loss(params: Params, seeds: object, closed: object, batch: Data) -> jax.Array:
        return task.host.loss(params["host"], seeds_of(params), gates, batch)

    def logits(params: Params, seeds: object, closed: object, inputs: jax.Array) -> jax.Array:
        return task.logits(params["host"], seeds_of(params), gates, inputs)

    host = replace(task.host, loss=loss, init_seeds=lambda key: {})
    return replace(task, host=host, init_params=init_params, logits=logits, slot_depths={})


@lru_cache(maxsize=1)
def networks(task: Task, big: str) -> dict[str, Task]:
    """What is trained in the name of each variant; of an equal task the same, already compiled."""
    return {"small": without_slots(task, None), "grown": task, "big": without_slots(task, big)}


@contextmanager
def open_tamiyo(task: Task) -> Iterator[tuple[Tamiyo, CommandApplier]]:
    """A controller that grows this task, and what applies its decisions."""
    secret = os.urandom(32)
    library = MemoryBlueprintLibrary()
    for blueprint in (task.blueprint, *task.candidates):
        library.put(blueprint)
    verifier = Verifier((Secret(secret),), NonceLedger(steady_time_ns()), PATIENT.security)
    applier = CommandApplier(
        verifier, clock=steady_time_ns, optimizer_id=task.optimizer_id, host=task.host
    )
    with (
        tempfile.TemporaryDirectory() as root,
        Tamiyo.open(
            PATIENT,
            directory=root,
            library=library,
            policy="heuristic",
            secret=secret,
            isolation="inline",  # a worker starts late where the machine is busy
        ) as tamiyo,
    ):
        yield tamiyo, applier


def train(task: Task, seed: int, epochs: int, *, grow: bool = False) -> tuple[RunResult, float]:
    """A whole run, and the seconds that it took."""
    with open_tamiyo(task) if grow else nullcontext((None, None)) as (tamiyo, applier):
        state = init_loop(task, seed)
        started = time.perf_counter()
        result = run(
            task,
            tamiyo,
            steps=epochs * task.steps_per_epoch,
            state=state,
            run_id=f"seed-{seed}",
            applier=applier,
            deterministic=True,
        )
        return result, time.perf_counter() - started


def measure(name: str, seed: int, epochs: int) -> list[Outcome]:
    """The three networks of a seed, one after another, once all of them are compiled."""
    task = STUDIES[name].make(seed)
    tasks = networks(task, STUDIES[name].big)
    for variant, one in tasks.items():
        train(one, seed, 1, grow=variant == "grown")
    outcomes: list[Outcome] = []
    for variant in np.roll(VARIANTS, seed).tolist():  # each is the first in its turn
        grow = variant == "grown"
        result, seconds = train(tasks[variant], seed, epochs, grow=grow)
        again = train(tasks[variant], seed, epochs, grow=True)[1] if grow else seconds
        rows = [row_of(record) for record in result.history]
        outcomes.append(
            Outcome(
                study=name,
                seed=seed,
                variant=variant,
                accuracy=result.test_accuracy,
                parameters=result.parameters_after,
                seconds=seconds,
                compiled_seconds=again,
                validation=tuple(row.validation_accuracy or 0.0 for row in rows),
                actions=dict(Counter(row.action for row in rows if row.action)),
            )
        )
    return outcomes


def main() -> None:
    """Run every seed of every study and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(5, 15)))
    parser.add_argument("--studies", nargs="+", choices=list(STUDIES), default=list(STUDIES))
    parser.add_argument("--plot", metavar="PATH")
    parser.add_argument("--json", metavar="PATH", help="keep every run here, as it ends")
    arguments = parser.parse_args()
    outcomes: list[Outcome] = []
    for name in arguments.studies:
        for seed in arguments.seeds:
            outcomes += measure(name, seed, STUDIES[name].epochs)
            print(f"{name}, seed {seed} done", file=sys.stderr, flush=True)
            if arguments.json:
                with open(arguments.json, "w", encoding="utf-8") as file:
                    json.dump([asdict(one) for one in outcomes], file)
    rows = [asdict(one) for one in outcomes]
    if arguments.plot:
        plot(arguments.plot, rows)
    Console(width=110).print(table(rows))  # no line of Markdown may break


if __name__ == "__main__":
    main()
