"""What a controller takes of its machine: disk, processes and memory, and time to start.

    .venv/bin/python benchmarks/costs.py [disk] [machine] [start] [--json]

- *disk*: bytes in the journal per decision.
- *machine*: processes and their memory, threads and open files, by the way of running.
- *start*: opening a run directory that is new and one that is not, the first decision in each,
  switching the mode, closing; and the import, in processes of their own.

The decisions are those of the demo's network; what is compared takes turns.
"""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, Literal

import jax
import numpy as np
import optax
import psutil
from harness import Found, Timing, report_parts
from isolation import PATIENT, packets
from monitor import SECRET, Training

from tamiyo_jax import host
from tamiyo_jax.config import StorageConfig, TamiyoConfig
from tamiyo_jax.contracts import SystemStatePacket
from tamiyo_jax.demo import digits_task
from tamiyo_jax.library import MemoryBlueprintLibrary, SqliteBlueprintLibrary
from tamiyo_jax.policy import init_params
from tamiyo_jax.service import Tamiyo

MB = 1e6


@dataclass(frozen=True)
class Way:
    """A way to run a controller."""

    policy: str = "heuristic"
    mode: Literal["act", "guard"] = "act"
    isolation: Literal["process", "inline"] = "process"
    in_file: bool = False
    """Whether blueprints come from an SQLite library instead of memory."""

    def opener(self, directory: Path, config: TamiyoConfig) -> Callable[[], Tamiyo]:
        """What opens a controller for the demo's network, and does nothing else."""
        task = digits_task(seed=0)
        directory.mkdir(parents=True, exist_ok=True)
        path = directory / "blueprints.db"
        library = SqliteBlueprintLibrary(path) if self.in_file else MemoryBlueprintLibrary()
        for blueprint in (task.blueprint, *task.candidates):
            library.put(blueprint)
        graph = self.policy == "graph" and self.mode != "guard"
        return partial(
            Tamiyo.open,
            config,
            directory=directory / "tamiyo",
            library=library,
            policy=self.policy,
            params=init_params(config.policy, jax.random.key(0)) if graph else None,
            mode=self.mode,
            isolation=self.isolation,
            secret=SECRET,
        )


def story(layers: Sequence[str]) -> Iterator[SystemStatePacket]:
    """The packets of `benchmarks/isolation.py`, with statistics of these layers."""
    task = digits_task(seed=0)
    meter, generator = host.HardwareMeter(jax.local_devices()[0]), np.random.default_rng(0)
    candidates = tuple(candidate.blueprint_id for candidate in task.candidates)
    still = host.statistics(host.monitor(optax.identity()).init(dict.fromkeys(layers, 0.0)))
    still = jax.device_get(still)
    for packet in packets(task.blueprint.blueprint_id, candidates):
        numbers = generator.random((4, len(layers)), np.float32)
        measured = still._replace(
            gradient_norm=numbers[0],
            weight_norm=numbers[1],
            update_ratio=numbers[2],
            gradient_variance=numbers[3],
        )
        yield host.packet_from(
            replace(packet, timestamp_ns=time.time_ns(), restorable_checkpoint="step-000000"),
            layers=layers,
            statistics=measured,
            training_loss=float(numbers[0, 0]),
            seeds=packet.seeds,
            metrics={},
            hardware=meter.read(),
        )


def disk(root: Path) -> Found:
    """Bytes per decision: what 200 of them add, once the first 50 are on record."""
    few = ("hidden-0", "hidden-1", "readout")
    many = Training(host.monitor(optax.identity()), monitored=True).layers
    unrecorded = StorageConfig(record_packets=False)
    cases: dict[str, tuple[Way, Sequence[str], StorageConfig]] = {
        f"{len(few)} layers, 3 seeds, graph policy": (Way("graph"), few, StorageConfig()),
        f"{len(few)} layers, 3 seeds, heuristic": (Way(), few, StorageConfig()),
        f"{len(few)} layers, 3 seeds, guard": (Way(mode="guard"), few, StorageConfig()),
        f"{len(many)} layers, 3 seeds, heuristic": (Way(), many, StorageConfig()),
        f"{len(many)} layers, 3 seeds, guard": (Way(mode="guard"), many, StorageConfig()),
        f"{len(many)} layers, guard, record_packets off": (Way(mode="guard"), many, unrecorded),
    }
    found: dict[str, object] = {}
    for number, (name, (way, layers, storage)) in enumerate(cases.items()):
        config = TamiyoConfig(deadlines=PATIENT, storage=storage)
        directory, packets = root / str(number), story(layers)
        with replace(way, isolation="inline").opener(directory, config)() as tamiyo:
            sizes = []
            for steps in (50, 200):
                for _ in range(steps):
                    tamiyo.step(next(packets))
                sizes.append(size_of(directory / "tamiyo" / "journal"))
        found[f"bytes per decision, {name}"] = (sizes[1] - sizes[0]) // 200
    return {}, found


def size_of(directory: Path) -> int:
    """Bytes of all files in a directory."""
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())


WAYS = {
    "guard": Way(mode="guard"),
    "inline": Way(isolation="inline"),
    "heuristic": Way(),
    "graph": Way("graph"),
    "heuristic, SQLite library": Way(in_file=True),
}


def machine(root: Path) -> Found:
    """Processes, memory, threads and files while a controller is open and all is warm."""
    here = psutil.Process()
    packets = list(story(("hidden-0", "hidden-1", "readout")))[:20]
    found: dict[str, object] = {}
    for name, way in WAYS.items():
        threads, files = threading.active_count(), here.num_fds()
        with way.opener(root / name, TamiyoConfig(deadlines=PATIENT))() as tamiyo:
            for packet in packets:
                tamiyo.step(packet)
            inference = getattr(tamiyo._steps.deployed.runner, "pool", None)  # they are the subject
            for pool in (inference, tamiyo._parts.metadata):
                while pool is not None and len(pool.pids()) < 2:
                    time.sleep(0.05)
            workers = [child.memory_full_info() for child in here.children(recursive=True)]
            found[f"while open, {name}"] = {
                "processes": len(workers),
                "resident, MB": [round(worker.rss / MB) for worker in workers],
                "of it its own, MB": [round(worker.uss / MB) for worker in workers],
                "threads here": threading.active_count() - threads,
                "open files here": here.num_fds() - files,
            }
    return {}, found


IMPORT = """
import time, psutil
import jax, flax, flax.nnx, optax, orbax.checkpoint
jax.devices()
before, started = psutil.Process().memory_info().rss, time.perf_counter()
import tamiyo_jax.training
print(time.perf_counter() - started, psutil.Process().memory_info().rss - before)
"""


def start(root: Path) -> Found:
    """Opening, the first decision, switching and closing, in milliseconds; each three times."""
    ways = {name: WAYS[name] for name in ("guard", "heuristic", "graph")}
    taken: dict[str, list[float]] = {}
    imports: list[list[float]] = []
    config = TamiyoConfig(deadlines=PATIENT)
    packets = list(story(("hidden-0", "hidden-1", "readout")))

    def timed(name: str, call: Callable[[], Any]) -> Any:  # noqa: ANN401 - what it returns
        started = time.perf_counter()
        result = call()
        taken.setdefault(name, []).append(1e3 * (time.perf_counter() - started))
        return result

    for attempt in range(3):
        command = [sys.executable, "-c", IMPORT]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        imports.append([float(number) for number in done.stdout.split()])
        for name, way in ways.items():
            directory = root / f"{name}-{attempt}"
            for visit, place in enumerate(("new directory", "known directory")):
                tamiyo = timed(f"{name}, {place}: open", way.opener(directory, config))
                first = partial(tamiyo.step, packets[visit])
                timed(f"{name}, {place}: first decision", first)
                if visit and name != "guard":
                    timed(f"{name}: switch to guard", partial(tamiyo.set_mode, "guard"))
                    timed(f"{name}: switch back to act", partial(tamiyo.set_mode, "act"))
                timed(f"{name}: close", tamiyo.close)
    seconds, resident = zip(*imports, strict=True)
    return {name: Timing.of(sample) for name, sample in taken.items()}, {
        "import tamiyo_jax.training after JAX, Flax, Optax and Orbax, s": round(median(seconds), 2),
        "the same, MB": round(median(resident) / MB),
        "compiled programs of the graph policy, MB": round(
            size_of(root / "graph-0" / "tamiyo" / "cache") / MB, 1
        ),
    }


PARTS = {"disk": disk, "machine": machine, "start": start}


if __name__ == "__main__":
    report_parts("costs", PARTS, __doc__)
