"""What a step costs in a worker process against the calling process.

    .venv/bin/python benchmarks/isolation.py

Two controllers, alike but for `isolation`, decide on the same recorded packets in turns. The
graph is the demo's. Prints whole steps and their inference alone, and the difference of the
medians, which is what the boundary between the processes costs.
"""

from __future__ import annotations

import os
import tempfile
import time
from itertools import count
from pathlib import Path

import jax
from harness import Timing, in_turns, report

from tamiyo_jax.config import TamiyoConfig
from tamiyo_jax.contracts import SeedStage, SeedState, SystemStatePacket
from tamiyo_jax.digits import digits_task
from tamiyo_jax.policy import init_params
from tamiyo_jax.runtime import MemoryBlueprintLibrary, Tamiyo

ROUNDS = 1_500
CONFIG = TamiyoConfig(deadlines={"inference_ms": 1_000.0, "metadata_ms": 1_000.0})


def packets(blueprint_id: str, candidates: tuple[str, ...]) -> list[SystemStatePacket]:
    """Packets of a run whose loss falls, with three seeds."""
    return [
        SystemStatePacket(
            packet_id=f"packet-{step}",
            training_run_id="benchmark",
            blueprint_id=blueprint_id,
            candidate_blueprint_ids=candidates,
            current_epoch=step,
            global_step=step * 33,
            validation_loss=1.0 / (1 + 0.01 * step),
            training_loss=1.0 / (1 + 0.01 * step),
            training_metrics={"loss": 1.0, "gradient_norm": 1.0, "samples_per_s": 1e4},
            seeds=tuple(
                SeedState(f"seed-{i}", SeedStage.DORMANT, gradient_norm=0.1, learning_rate=1e-3)
                for i in range(3)
            ),
            optimizer_id="adam",
        )
        for step in range(ROUNDS + 20)
    ]


def main() -> None:
    """Measure and print."""
    task = digits_task(seed=0)
    library = MemoryBlueprintLibrary()
    for blueprint in (task.blueprint, *task.candidates):
        library.put(blueprint)
    candidates = tuple(one.blueprint_id for one in task.candidates)
    story = packets(task.blueprint.blueprint_id, candidates)
    params = init_params(CONFIG.policy, jax.random.key(0))
    secret = os.urandom(32)
    inference: dict[str, list[float]] = {"process": [], "inline": []}
    with tempfile.TemporaryDirectory() as root:
        opened = {
            isolation: Tamiyo.open(
                CONFIG,
                directory=Path(root) / isolation,
                library=library,
                params=params,
                secret=secret,
                isolation=isolation,
            )
            for isolation in ("process", "inline")
        }

        def stepping(isolation: str) -> object:
            tamiyo, steps = opened[isolation], count()

            def step() -> None:
                decision = tamiyo.step(story[next(steps)])
                inference[isolation].append(decision.latency.inference_ms)

            return step

        calls = {f"step, {isolation}": stepping(isolation) for isolation in opened}
        for call in calls.values():
            call()  # prepares the layout
        time.sleep(5.0)  # the spare warms up meanwhile
        rows = in_turns(calls, rounds=ROUNDS)
        for tamiyo in opened.values():
            tamiyo.close()
    for isolation, sample in inference.items():
        rows[f"inference, {isolation}"] = Timing.of(sample[-ROUNDS:])
    boundary = rows["inference, process"].median - rows["inference, inline"].median
    report("isolation", rows, {"the boundary costs, ms at the median": round(boundary, 3)})


if __name__ == "__main__":
    main()
