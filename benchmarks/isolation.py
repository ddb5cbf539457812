"""What a step costs in a worker process against the calling process, and against its forward pass.

    .venv/bin/python benchmarks/isolation.py

On the demo's graph two controllers, alike but for `isolation`, decide on the same recorded packets
in turns. Prints whole steps and their inference alone, and the differences of the medians, which
are what the boundary between the processes costs: two threads to wake, and the same Python on both
sides. A policy that runs in this process evicts what the rest of the step needs from the caches,
so that steps differ by less than their inference does. On the graphs *toy* and *network* of
`sizes` steps in a worker take turns with the bare forward pass of the network.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import jax
from harness import Timing, in_turns, report
from sizes import SIZES

from tamiyo_jax.config import DeadlineConfig, PolicyConfig, TamiyoConfig
from tamiyo_jax.contracts import Blueprint, SeedStage, SeedState, SystemStatePacket
from tamiyo_jax.demo import digits_task
from tamiyo_jax.graph import GraphsTuple, layout_for
from tamiyo_jax.inference import Isolation
from tamiyo_jax.library import MemoryBlueprintLibrary
from tamiyo_jax.policy import Params, apply_folded, fold, init_params
from tamiyo_jax.service import Tamiyo

ROUNDS = 600
PATIENT = DeadlineConfig(inference_ms=1_000.0, metadata_ms=1_000.0)


@dataclass(frozen=True)
class Case:
    """What is decided upon, and by what.

    Attributes:
      policy: its name.
      config: the configuration of both controllers.
      blueprints: what the library holds.
      packets: of one run.
      graph: what the forward pass alone is timed on, if it is.
    """

    policy: str
    config: TamiyoConfig
    blueprints: tuple[Blueprint, ...]
    packets: Sequence[SystemStatePacket]
    graph: GraphsTuple | None = None


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


def demo(policy: str, widths: PolicyConfig) -> Case:
    """The demo's graph."""
    task = digits_task(seed=0)
    candidates = tuple(candidate.blueprint_id for candidate in task.candidates)
    return Case(
        policy,
        TamiyoConfig(deadlines=PATIENT, policy=widths),
        (task.blueprint, *task.candidates),
        packets(task.blueprint.blueprint_id, candidates),
    )


def sized(name: str) -> Case:
    """One of the sizes, and the network at reference width."""
    size = SIZES[name]()
    config = TamiyoConfig(deadlines=PATIENT, policy=PolicyConfig.reference(), graph=size.config)
    (graph,) = size.graphs(1)
    return Case("graph", config, (size.blueprint,), size.packets(ROUNDS + 20), graph)


CASES: Mapping[str, Callable[[], Case]] = {
    "heuristic": lambda: demo("heuristic", PolicyConfig()),
    "graph, small": lambda: demo("graph", PolicyConfig.small()),
    "graph, reference": lambda: demo("graph", PolicyConfig.reference()),
    "toy": lambda: sized("toy"),
    "network": lambda: sized("network"),
}


def measure(case: Case) -> dict[str, Timing]:
    """Steps, inference alone, and the forward pass alone, in turns."""
    library = MemoryBlueprintLibrary()
    for blueprint in case.blueprints:
        library.put(blueprint)
    graph_policy = case.policy == "graph"
    params = init_params(case.config.policy, jax.random.key(0)) if graph_policy else None
    inference: dict[str, list[float]] = {"process": [], "inline": []}
    with tempfile.TemporaryDirectory() as root, ExitStack() as stack:

        def stepping(isolation: Isolation) -> Callable[[], None]:
            tamiyo = stack.enter_context(
                Tamiyo.open(
                    case.config,
                    directory=Path(root) / isolation,
                    library=library,
                    params=params,
                    policy=case.policy,
                    secret=os.urandom(32),
                    isolation=isolation,
                )
            )
            steps = count()

            def step() -> None:
                decision = tamiyo.step(case.packets[next(steps)])
                inference[isolation].append(decision.latency.inference_ms)

            step()  # prepares the layout
            return step

        calls: dict[str, Callable[[], object]] = {"step, process": stepping("process")}
        if case.graph is None or params is None:
            calls["step, inline"] = stepping("inline")
        else:
            calls["forward pass"] = forward(case, params)
        time.sleep(5.0)  # the spare warms up meanwhile
        rows = in_turns(calls, rounds=ROUNDS)
    return rows | {
        f"inference, {where}": Timing.of(sample[-ROUNDS:])
        for where, sample in inference.items()
        if sample
    }


def forward(case: Case, params: Params) -> Callable[[], object]:
    """The network alone, on one graph."""
    layout = layout_for(case.blueprints[0], case.config.graph)
    folded = fold(params, layout)
    compiled = jax.jit(apply_folded, static_argnames="layout")
    return lambda: jax.block_until_ready(compiled(folded, layout, case.graph))


def main() -> None:
    """Measure and print."""
    rows: dict[str, Timing] = {}
    boundary: dict[str, dict[str, float]] = {"step": {}, "inference": {}}
    limits: dict[str, float] = {}
    for name in [name for name in CASES if name in sys.argv] or CASES:
        found = measure(CASES[name]())
        rows |= {f"{name}: {row}": timing for row, timing in found.items()}
        if "forward pass" in found:
            limits[name] = round(1.4 * found["forward pass"].median + 0.6, 3)
            continue
        for part, costs in boundary.items():
            cost = found[f"{part}, process"].median - found[f"{part}, inline"].median
            costs[name] = round(cost, 3)
    facts: dict[str, object] = {
        f"{part}: the boundary costs, ms at the median": boundary[part] for part in boundary
    }
    report("isolation", rows, facts | {"1.4 forward passes and 0.6 ms": limits})


if __name__ == "__main__":
    main()
