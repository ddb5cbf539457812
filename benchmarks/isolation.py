"""What a step costs in a worker process against the calling process.

    .venv/bin/python benchmarks/isolation.py

Two controllers, alike but for `isolation`, decide on the same recorded packets in turns. The
graph is the demo's. Prints whole steps and their inference alone, and the differences of the
medians, which are what the boundary between the processes costs: two threads to wake, and the
same Python on both sides. A policy that runs in this process evicts what the rest of the step
needs from the caches, so that steps differ by less than their inference does.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from itertools import count
from pathlib import Path

import jax
from harness import Timing, in_turns, report

from tamiyo_jax.config import DeadlineConfig, PolicyConfig, TamiyoConfig
from tamiyo_jax.contracts import SeedStage, SeedState, SystemStatePacket
from tamiyo_jax.digits import digits_task
from tamiyo_jax.policy import init_params
from tamiyo_jax.runtime import MemoryBlueprintLibrary, Tamiyo
from tamiyo_jax.runtime.seat import Isolation

ROUNDS = 600
PATIENT = DeadlineConfig(inference_ms=1_000.0, metadata_ms=1_000.0)
POLICIES = {
    "heuristic": ("heuristic", PolicyConfig()),
    "graph, small": ("graph", PolicyConfig.small()),
    "graph, reference": ("graph", PolicyConfig.reference()),
}


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


def measure(policy: str, config: TamiyoConfig) -> dict[str, Timing]:
    """Steps, and inference alone, in a worker and in this process, in turns."""
    task = digits_task(seed=0)
    library = MemoryBlueprintLibrary()
    for blueprint in (task.blueprint, *task.candidates):
        library.put(blueprint)
    candidates = tuple(one.blueprint_id for one in task.candidates)
    story = packets(task.blueprint.blueprint_id, candidates)
    params = init_params(config.policy, jax.random.key(0)) if policy == "graph" else None
    inference: dict[str, list[float]] = {"process": [], "inline": []}
    with tempfile.TemporaryDirectory() as root, ExitStack() as stack:

        def stepping(isolation: Isolation) -> Callable[[], None]:
            tamiyo = stack.enter_context(
                Tamiyo.open(
                    config,
                    directory=Path(root) / isolation,
                    library=library,
                    params=params,
                    policy=policy,
                    secret=os.urandom(32),
                    isolation=isolation,
                )
            )
            steps = count()

            def step() -> None:
                decision = tamiyo.step(story[next(steps)])
                inference[isolation].append(decision.latency.inference_ms)

            step()  # prepares the layout
            return step

        calls = {"process": stepping("process"), "inline": stepping("inline")}
        time.sleep(5.0)  # the spare warms up meanwhile
        steps = in_turns(calls, rounds=ROUNDS)
    return {
        **{f"step, {where}": timing for where, timing in steps.items()},
        **{f"inference, {w}": Timing.of(sample[-ROUNDS:]) for w, sample in inference.items()},
    }


def main() -> None:
    """Measure and print."""
    rows: dict[str, Timing] = {}
    boundary: dict[str, dict[str, float]] = {"step": {}, "inference": {}}
    for name, (policy, widths) in POLICIES.items():
        found = measure(policy, TamiyoConfig(deadlines=PATIENT, policy=widths))
        rows |= {f"{name}: {row}": timing for row, timing in found.items()}
        for part, costs in boundary.items():
            cost = found[f"{part}, process"].median - found[f"{part}, inline"].median
            costs[name] = round(cost, 3)
    facts = {f"{part}: the boundary costs, ms at the median": boundary[part] for part in boundary}
    report("isolation", rows, facts)


if __name__ == "__main__":
    main()
