"""How many runs one server answers within the deadline, and what limits it.

    .venv/bin/python benchmarks/many_runs.py [--runs 200] [--rate 5] [--seconds 120] [--servers 1]
    .venv/bin/python benchmarks/many_runs.py --climb --seconds 20
    .venv/bin/python benchmarks/many_runs.py --memory

Simulated runs send a packet `rate` times a second each, whether or not the last was answered, to
the servers and one Redis on this machine. A packet counts as answered if its decision is there
within the deadline of the default settings, 70 ms. `--climb` doubles the number of runs until
fewer than 99 in 100 packets are, and prints where a server's time went. `--memory` measures
a client in a training process. All of it shares the machine: server, Redis and the simulation.
"""

from __future__ import annotations

import argparse
import cProfile
import io
import json
import os
import pstats
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from making import SECRET
from redis import Redis
from redis_server import RedisServer
from served import client_of, put_blueprints, story_of

from tamiyo_jax.config import TamiyoConfig
from tamiyo_jax.contracts import Secret, encode_packet
from tamiyo_jax.serving import run_key
from tamiyo_jax.serving._messages import FIELD, Request, RunKeys, seal_request

MIB = 1 << 20
ENOUGH = 0.99
SETTLING_S = 6.0


@dataclass
class Run:
    """A simulated run.

    Attributes:
      run_id: its id.
      due: when the next packet is sent, seconds.
      sent: when each packet was sent, by its number.
      position: of the last answer.
    """

    run_id: str
    due: float
    sent: dict[int, float] = field(default_factory=dict)
    position: str = "0-0"

    def __post_init__(self) -> None:
        self.keys = RunKeys.of(self.run_id)
        self.secret = Secret(run_key(SECRET, self.run_id))
        self.packets = [encode_packet(packet) for packet in story_of(self.run_id, 40)]
        self.number = 0

    def message(self, deadline_ms: float) -> dict[Any, Any]:
        """The next packet's entry."""
        self.number += 1
        packet = self.packets[self.number % len(self.packets)]
        request = Request(self.number, int(deadline_ms), packet)
        return {FIELD: seal_request(self.keys, request, self.secret)}


def simulate(redis: Redis, count: int, rate: float, seconds: float) -> dict[str, float]:
    """Send packets of `count` runs, and measure how long their answers take."""
    deadlines = TamiyoConfig().deadlines
    deadline_ms = deadlines.inference_ms + deadlines.metadata_ms
    begin = time.monotonic() + 0.5
    runs = [Run(f"sim-{count}-{i}", begin + i / count / rate) for i in range(count)]
    by_stream = {run.keys.answers.encode(): run for run in runs}
    taken: list[float] = []
    asked = 0
    measured_from, end = begin + SETTLING_S, begin + SETTLING_S + seconds
    while (now := time.monotonic()) < end + 1.0:
        pipe = redis.pipeline(transaction=False)
        for run in runs:
            if run.due <= now < end:
                pipe.xadd(run.keys.packets, run.message(deadline_ms), maxlen=16)
                run.sent[run.number] = time.monotonic()
                asked += now >= measured_from
                run.due += 1.0 / rate
        pipe.xread({run.keys.answers: run.position for run in runs}, block=2)
        found = pipe.execute()[-1]
        now = time.monotonic()
        for stream, entries in found or ():
            run = by_stream[stream]
            run.position = entries[-1][0].decode()
            for _, fields in entries:
                number = int.from_bytes(fields[FIELD][44:52], "big")
                started = run.sent.pop(number, end)
                if measured_from <= started < end:
                    taken.append((now - started) * 1e3)
    timely = sum(latency <= deadline_ms for latency in taken)
    p50, p99 = np.percentile(taken, [50, 99]) if taken else (float("nan"), float("nan"))
    return {
        "runs": count,
        "packets_per_s": asked / seconds,
        "answered": timely / max(asked, 1),
        "p50_ms": float(p50),
        "p99_ms": float(p99),
        "answers": float(sum(run.number - len(run.sent) for run in runs)),
    }


class MeasuredServer:
    """A server in a process of its own, under a profiler if asked; a context manager."""

    def __init__(self, url: str, directory: Path, profile: bool) -> None:
        command = [sys.executable, __file__, "--serve", url, "--directory", str(directory)]
        self._process = subprocess.Popen(
            [*command, *(["--profile"] if profile else [])],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        assert self._process.stdout is not None
        self._process.stdout.readline()
        self.profile = ""

    @property
    def memory_mib(self) -> float:
        """Resident memory."""
        return psutil.Process(self._process.pid).memory_info().rss / MIB

    @property
    def cpu_s(self) -> float:
        """Processor time so far, seconds."""
        times = psutil.Process(self._process.pid).cpu_times()
        return times.user + times.system

    def __enter__(self) -> MeasuredServer:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.send_signal(signal.SIGTERM)
        self.profile, _ = self._process.communicate(timeout=120)


def serve(url: str, directory: Path, profile: bool) -> None:
    """What the process of a `MeasuredServer` does."""
    from tamiyo_jax.library import RedisBlueprintLibrary
    from tamiyo_jax.service import Fleet
    from tamiyo_jax.serving import Limits, Metrics, Server

    library = RedisBlueprintLibrary(url)
    with Fleet.open(
        TamiyoConfig(),
        directory=directory,
        library=library,
        policy="heuristic",
        params=None,
        mode="act",
    ) as fleet:
        server = Server(url, fleet, secret=SECRET, limits=Limits(), metrics=Metrics())
        signal.signal(signal.SIGTERM, lambda *_: server.stop())
        print("serves", flush=True)
        profiler = cProfile.Profile()
        if profile:
            profiler.runcall(server.run)
            text = io.StringIO()
            pstats.Stats(profiler, stream=text).sort_stats("cumulative").print_stats(45)
            print(text.getvalue())
        else:
            server.run()


def measure(
    count: int, rate: float, seconds: float, appendfsync: str, how_many: int, profile: bool
) -> tuple[dict[str, float], str]:
    """Simulate against so many new servers and a new Redis."""
    with tempfile.TemporaryDirectory() as name:
        (Path(name) / "redis").mkdir()
        with RedisServer(Path(name) / "redis", appendfsync) as redis_server:
            put_blueprints(redis_server.url)
            with ExitStack() as stack:
                redis = stack.enter_context(Redis.from_url(redis_server.url))
                servers = [
                    stack.enter_context(
                        MeasuredServer(redis_server.url, Path(name) / f"served-{i}", profile)
                    )
                    for i in range(how_many)
                ]
                before, started = sum(server.cpu_s for server in servers), time.monotonic()
                figures = simulate(redis, count, rate, seconds)
                spent = sum(server.cpu_s for server in servers) - before
                figures["servers"] = how_many
                figures["server_cpu"] = spent / (time.monotonic() - started)
                figures["cpu_ms_per_answer"] = 1e3 * spent / max(figures["answers"], 1.0)
                figures["server_mib"] = servers[0].memory_mib
                info: Any = redis.info("memory")
                figures["redis_mib"] = info["used_memory_rss"] / MIB
                figures["load"] = os.getloadavg()[0]
    return figures, servers[0].profile


CLIENT_MEMORY = """
import contextlib
import sys
import psutil
import flax, jax, optax
import jax.numpy as jnp
def rss():
    return psutil.Process().memory_info().rss / 2**20
def loss(w, x):
    return jnp.mean((x @ w) ** 2)
tx = optax.adam(1e-3)
w = jnp.ones((64, 64)); state = tx.init(w)
@jax.jit
def train(w, state):
    updates, state = tx.update(jax.grad(loss)(w, jnp.ones((32, 64))), state, w)
    return optax.apply_updates(w, updates), state
jax.block_until_ready(train(w, state))
before = rss()
import tamiyo_jax as tj
from tamiyo_jax.contracts import decode_packet
imported = rss()
url, secret = sys.argv[1:]
config = tj.TamiyoConfig(deadlines={"inference_ms": 10_000.0})
with tj.connect(url, "run-m", secret=secret.encode(), config=config) as client:
    for packet in sys.stdin:
        with contextlib.suppress(tj.TamiyoError):  # a busy machine is late
            client.step(decode_packet(bytes.fromhex(packet)))
    print(before, imported - before, rss() - before)
"""


def measure_memory() -> dict[str, float]:
    """What a client adds to a training process that has JAX, Flax and Optax."""
    with tempfile.TemporaryDirectory() as name:
        (Path(name) / "redis").mkdir()
        with RedisServer(Path(name) / "redis") as redis_server:
            put_blueprints(redis_server.url)
            with MeasuredServer(redis_server.url, Path(name) / "served", profile=False):
                client_of(redis_server.url, "run-m").close()
                packets = [encode_packet(packet).hex() for packet in story_of("run-m", 50)]
                key = run_key(SECRET, "run-m").decode()
                command = [sys.executable, "-c", CLIENT_MEMORY, redis_server.url, key]
                done = subprocess.run(
                    command, input="\n".join(packets), stdout=subprocess.PIPE, text=True, check=True
                )
    training, imported, added = map(float, done.stdout.split())
    return {"training_mib": training, "import_mib": imported, "client_mib": added}


def main() -> None:
    """Measure and print; one JSON object a line."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--runs", type=int, default=200)
    arguments.add_argument("--rate", type=float, default=5.0)
    arguments.add_argument("--seconds", type=float, default=120.0)
    arguments.add_argument("--servers", type=int, default=1)
    arguments.add_argument(
        "--appendfsync",
        choices=("always", "everysec"),
        default="everysec",
        help="how Redis syncs; its own default is everysec",
    )
    arguments.add_argument("--climb", action="store_true")
    arguments.add_argument("--memory", action="store_true")
    arguments.add_argument("--profile", action="store_true")
    arguments.add_argument("--serve", metavar="URL", help=argparse.SUPPRESS)
    arguments.add_argument("--directory", type=Path, help=argparse.SUPPRESS)
    parsed = arguments.parse_args()
    load = (parsed.rate, parsed.seconds, parsed.appendfsync, parsed.servers)
    if parsed.serve:
        serve(parsed.serve, parsed.directory, parsed.profile)
    elif parsed.memory:
        print(json.dumps(measure_memory()))
    elif parsed.climb:
        count = 10
        while True:
            figures, _ = measure(count, *load, profile=False)
            print(json.dumps(figures), flush=True)
            if figures["answered"] < ENOUGH:
                break
            count *= 2
        print(measure(count, *load, profile=True)[1])
    else:
        figures, profile = measure(parsed.runs, *load, parsed.profile)
        print(json.dumps(figures), profile)


if __name__ == "__main__":
    main()
