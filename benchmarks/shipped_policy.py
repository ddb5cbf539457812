"""Decisions of the shipped policy in a worker process: how long they take, and that none is late.

    .venv/bin/python benchmarks/shipped_policy.py

A controller with ``policy="graph"``, no parameters and the default deadline of 45 ms decides on
packets of a run of the environment, over and over. Prints the median, the 99th percentile and the
longest of whole steps, and how many were late. Measure on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np

from tamiyo_jax.config import TamiyoConfig
from tamiyo_jax.errors import DeadlineExceededError, WorkerUnavailableError
from tamiyo_jax.learn import (
    HELD_OUT,
    HostEnv,
    Schedule,
    draw,
    new_memory,
    packet_of,
    rule_action,
    rules_of,
)
from tamiyo_jax.library import MemoryBlueprintLibrary
from tamiyo_jax.service import Tamiyo

WARM = 10  # decisions at the start that are not counted
PATIENCE_S = 0.5


def packets(family: str) -> tuple[list[object], list[object]]:
    """The packets of one run that grows, and its blueprints."""
    found = HELD_OUT[family]
    env, task = HostEnv(found.architecture), draw(found, 0)
    rules = rules_of(Schedule(blueprint=2), env.epochs)

    @jax.jit
    def go_on(memory, state):  # noqa: ANN001, ANN202
        memory, action = rule_action(env, rules, memory, state)
        return memory, env.step(state.host.rng, state, action, task)[1]

    _, state = jax.jit(env.reset)(jax.random.PRNGKey(0), task)
    memory, made = new_memory(env), [packet_of(env, state, "run")]
    for _ in range(env.epochs - 1):
        memory, state = go_on(memory, state)
        made.append(packet_of(env, state, "run"))
    return made, [env.network.blueprint, *env.network.candidates]


def main() -> None:
    """Decide, and print how long it took."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--family", default="rings", choices=list(HELD_OUT))
    parser.add_argument("--rounds", type=int, default=20)
    arguments = parser.parse_args()
    made, blueprints = packets(arguments.family)
    library = MemoryBlueprintLibrary()
    for blueprint in blueprints:
        library.put(blueprint)
    with (
        tempfile.TemporaryDirectory() as home,
        Tamiyo.open(
            TamiyoConfig(), directory=Path(home), library=library, secret=b"s" * 16
        ) as tamiyo,
    ):
        tamiyo.prepare(blueprints[0].blueprint_id)
        spent: list[float] = []
        late = 0
        for number in range(arguments.rounds):
            for packet in made:
                name = f"run-{number}"
                one = replace(packet, training_run_id=name, packet_id=f"{name}-{packet.packet_id}")
                start = time.perf_counter()
                try:
                    tamiyo.step(one)
                    spent.append(1e3 * (time.perf_counter() - start))
                except DeadlineExceededError:
                    late += 1
                except WorkerUnavailableError:
                    time.sleep(PATIENCE_S)  # a late worker was ended, and the next one starts
    median, high = np.percentile(spent[WARM:], (50, 99))
    print(
        f"{len(spent)} decisions: median {median:.2f} ms, p99 {high:.2f} ms, longest "
        f"{max(spent[WARM:]):.2f} ms; {late} were late"
    )


if __name__ == "__main__":
    main()
