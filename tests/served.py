"""Servers for tests: in a thread of this process, or as the command in a process of its own."""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from making import SECRET, make_blueprint, make_config, open_tamiyo, story
from redis import Redis
from redis_server import RedisServer

from tamiyo_jax.config import TamiyoConfig
from tamiyo_jax.contracts import SystemStatePacket
from tamiyo_jax.decision import Decision
from tamiyo_jax.errors import TamiyoError
from tamiyo_jax.library import RedisBlueprintLibrary
from tamiyo_jax.service import Fleet
from tamiyo_jax.serving import Client, Limits, Metrics, Server, connect, run_key

QUICK = Limits(lease_s=0.5)
CONFIG = make_config(deadlines={"inference_ms": 8_000.0, "metadata_ms": 2_000.0})


def put_blueprints(url: str) -> None:
    library = RedisBlueprintLibrary(url)
    for name in ("host", "grow-a", "grow-b"):
        library.put(make_blueprint(name))
    library.close()


@contextlib.contextmanager
def served(
    url: str,
    directory: Path,
    *,
    limits: Limits = QUICK,
    config: TamiyoConfig = CONFIG,
    **arguments: Any,
) -> Iterator[Metrics]:
    """A server in a thread; yields its metrics."""
    defaults: dict[str, Any] = {"policy": "heuristic", "params": None, "mode": "act"}
    metrics = Metrics()
    library = RedisBlueprintLibrary(url)
    with Fleet.open(
        config, directory=directory, library=library, **{**defaults, **arguments}
    ) as fleet:
        server = Server(url, fleet, secret=SECRET, limits=limits, metrics=metrics)
        thread = threading.Thread(target=server.run)
        thread.start()
        try:
            yield metrics
        finally:
            server.stop()
            thread.join()
    library.close()


class ServerProcess:
    """`tamiyo-jax serve`, to be killed, paused and drained."""

    def __init__(self, url: str, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        settings = directory / "settings.toml"
        settings.write_text(
            "[deadlines]\ninference_ms = 60000.0\nmetadata_ms = 60000.0\n"
            "[policy]\nsage_width = 16\ngat_width = 8\nheads = 2\n"
        )
        command = [
            *(sys.executable, "-m", "tamiyo_jax", "serve", "--directory", str(directory)),
            *("--policy", "heuristic", "--port", "0", "--file", str(settings)),
        ]
        environment = {
            **os.environ,
            "TAMIYO_REDIS_URL": url,
            "TAMIYO_SECRET": SECRET.decode(),
            "JAX_PLATFORMS": "cpu",
            "PYTHONUNBUFFERED": "1",
        }
        self.process = subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    @functools.cached_property
    def first_line(self) -> str:
        """What it prints once it serves."""
        assert self.process.stdout is not None
        return self.process.stdout.readline()

    @property
    def address(self) -> str:
        return self.first_line.partition("http://")[2].partition("/")[0]

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def end(self, number: signal.Signals = signal.SIGKILL) -> str:
        """Send a signal, wait until the process has ended, and return what it printed."""
        self.process.send_signal(signal.SIGCONT)
        self.process.send_signal(number)
        output, _ = self.process.communicate(timeout=60)
        return output


def client_of(url: str, run_id: str, config: TamiyoConfig = CONFIG) -> Client:
    return connect(url, run_id, secret=run_key(SECRET, run_id), config=config)


def story_of(run_id: str, length: int, shift: int = 0) -> list[SystemStatePacket]:
    """Packets of a run, not like those of a run with another shift."""
    return [
        replace(packet, training_run_id=run_id, packet_id=f"{run_id}-{packet.packet_id}")
        for packet in story(length + shift)[shift:]
    ]


def insist(client: Client, packet: SystemStatePacket) -> Decision:
    """Ask about the same packet until it is answered, whatever fails meanwhile."""
    until = time.monotonic() + 240.0  # servers start on a busy machine
    while True:
        try:
            return client.step(packet)
        except TamiyoError:
            assert time.monotonic() < until, "no answer"
            time.sleep(0.05)


def alone(directory: Path, packets: list[SystemStatePacket], **arguments: Any) -> list[Any]:
    """What an in-process controller of this run alone decides."""
    with open_tamiyo(directory, config=CONFIG, **arguments) as tamiyo:
        return [summarize(tamiyo.step(packet)) for packet in packets]


def summarize(decision: Decision) -> tuple[Any, ...]:
    """What was decided: everything but ids and times."""
    command = decision.command
    return (
        decision.action,
        decision.reason,
        decision.explanation,
        decision.value,
        decision.risk_score,
        None
        if command is None
        else (command.command_type, command.target_seed_id, command.payload),
        [(event.name, event.level, dict(event.attributes)) for event in decision.events],
        dict(decision.coverage),
        decision.escalate,
        decision.restorable,
    )


def count(metrics: Metrics, name: str, **labels: str) -> float:
    return metrics.registry.get_sample_value(name, labels) or 0.0


def wait_for(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + 30.0
    while not condition():
        assert time.monotonic() < until, "it did not happen"
        time.sleep(0.01)


def redis_of(server: RedisServer) -> Redis:
    return Redis.from_url(server.url)
