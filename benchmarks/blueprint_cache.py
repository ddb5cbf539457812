"""How soon a step sees a blueprint that another process put.

    .venv/bin/python benchmarks/blueprint_cache.py

A writer process puts a new version of the active blueprint and notes the time before and after;
a reader in this process resolves a packet over and over, as steps do, and notes when the answer
carries the new revision. Both clocks are the machine's monotonic one. Prints the milliseconds
from the end of the put, and from its beginning; ``--json`` prints them for a program. Redis
needs ``tamiyo_jax[redis]`` and a ``redis-server`` on the path, which is started on a free port.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from multiprocessing.connection import Connection as Pipe
from pathlib import Path

import numpy as np

from tamiyo_jax.config import TamiyoConfig
from tamiyo_jax.contracts import Blueprint, BlueprintTier, LayerSpec, SystemStatePacket
from tamiyo_jax.library import (
    BlueprintLibrary,
    BlueprintResolver,
    CacheListener,
    RedisBlueprintLibrary,
    SqliteBlueprintLibrary,
    fetch_inline,
)
from tamiyo_jax.library._memory import Connection

TARGETS_MS = {"sqlite": 100.0, "redis": 20.0}
BLUEPRINT = Blueprint(
    "host",
    tier=BlueprintTier.SAFE,
    risk=0.1,
    stage=1,
    layers=tuple(LayerSpec(f"L{i}", "dense", i, activation="relu") for i in range(12)),
    chain=True,
)
PACKET = SystemStatePacket(
    packet_id="packet", training_run_id="run", blueprint_id="host", current_epoch=0, global_step=0
)


def write(pipe: Pipe, connection: Connection) -> None:
    """The other process: one put per message, answered by its revision and times."""
    module, _, function = connection.factory.partition(":")
    library = getattr(import_module(module), function)(**connection.arguments)
    pipe.send(None)
    while pipe.recv():
        began = time.monotonic()
        revision = library.put(BLUEPRINT)
        pipe.send((revision, began, time.monotonic()))


def measure(library: BlueprintLibrary, puts: int) -> dict[str, float]:
    """Milliseconds until a resolver sees each of `puts` changes."""
    config = TamiyoConfig()
    library.put(BLUEPRINT)
    listener = CacheListener(library, config.library, lambda events: print(events))
    resolver = BlueprintResolver(listener, fetch_inline(library), config.graph)
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    process = spawn.Process(target=write, args=(theirs, library.connection()))
    process.start()
    ours.recv()
    random = np.random.default_rng(0)
    after_end, after_start = [], []
    seen = resolver.resolve(PACKET, 10_000.0)[0].blueprint.revision
    for _ in range(puts):
        # Puts come at no particular moment of the listener's round.
        time.sleep(random.uniform(0.0, 0.02))
        before = seen
        ours.send(True)
        while seen == before:
            time.sleep(0.0005)
            seen = resolver.resolve(PACKET, 10_000.0)[0].blueprint.revision
        at = time.monotonic()
        revision, began, ended = ours.recv()
        assert seen == revision
        after_end.append((at - ended) * 1e3)
        after_start.append((at - began) * 1e3)
    ours.send(False)
    process.join()
    resolver.close()
    return {
        "puts": puts,
        "median_ms": float(np.median(after_end)),
        "p99_ms": float(np.percentile(after_end, 99)),
        "median_with_put_ms": float(np.median(after_start)),
        "p99_with_put_ms": float(np.percentile(after_start, 99)),
    }


@contextmanager
def redis_server(directory: Path) -> Iterator[str]:
    """URL of a server of its own that keeps its data on disk."""
    program = shutil.which("redis-server")
    if program is None:
        raise SystemExit("redis-server is not on the path; install it, or choose --library sqlite")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    place = ("--bind", "127.0.0.1", "--port", str(port), "--dir", str(directory))
    command = [program, *place, "--appendonly", "yes"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        try:
            while process.poll() is None:
                with socket.socket() as probe:
                    if probe.connect_ex(("127.0.0.1", port)) == 0:
                        break
                time.sleep(0.01)
            yield f"redis://127.0.0.1:{port}/0"
        finally:
            process.terminate()


def measure_named(name: str, directory: Path, puts: int) -> dict[str, float]:
    """Open the library of this name in a new directory, and measure it."""
    if name == "sqlite":
        return measure(SqliteBlueprintLibrary(directory / "blueprints.db"), puts)
    with redis_server(directory) as url:
        library = RedisBlueprintLibrary(url)
        try:
            return measure(library, puts)
        finally:
            library.close()


def main() -> None:
    """Measure the libraries and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--puts", type=int, default=100)
    parser.add_argument("--library", choices=TARGETS_MS, nargs="+", default=list(TARGETS_MS))
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    results: dict[str, dict[str, float]] = {}
    for name in arguments.library:
        with tempfile.TemporaryDirectory() as directory:
            row = measure_named(name, Path(directory), arguments.puts)
        results[name] = {**row, "target_ms": TARGETS_MS[name]}
        if not arguments.json:
            print(
                f"{name:<7} median {row['median_ms']:.2f} ms, p99 {row['p99_ms']:.2f} ms after the "
                f"put; {row['median_with_put_ms']:.2f} and {row['p99_with_put_ms']:.2f} with it "
                f"(target {TARGETS_MS[name]:g} ms, {arguments.puts} puts)"
            )
    if arguments.json:
        print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
