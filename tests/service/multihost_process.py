"""One of two JAX processes; see test_multihost.py.

    python multihost_process.py SCENARIO PORT PROCESS DIRECTORY

Leaves what it saw in DIRECTORY, for the test to compare.
"""

from __future__ import annotations

import os
import pickle
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
from making import SECRET, make_packet, open_tamiyo, story
from troubles import sleep, trouble_metrics

from tamiyo_jax.config import SecurityConfig
from tamiyo_jax.contracts import NonceLedger, Secret, SystemStatePacket, Verifier
from tamiyo_jax.decision import Decision
from tamiyo_jax.service import Tamiyo
from tamiyo_jax.service._multihost import MultihostTamiyo


def describe_error(work: Callable[[], object]) -> tuple[str, str, dict[str, object], bool]:
    """What an error says: its type, message, context, and whether it brings a traceback."""
    try:
        work()
    except Exception as error:  # noqa: BLE001 - that is what is looked at
        traced = any("Traceback" in note for note in getattr(error, "__notes__", ()))
        context = {
            name: value if isinstance(value, str | int) else repr(value)
            for name, value in getattr(error, "context", {}).items()
        }
        return type(error).__name__, str(error), context, traced
    raise AssertionError("nothing was raised")


def without_ticket(decision: Decision) -> Decision:
    """All of a decision that is the same everywhere."""
    return replace(decision, ticket=None)  # type: ignore[arg-type]


def fail(message: str) -> Tamiyo:
    raise ValueError(message)


def agreement(process: int, directory: Path) -> dict[str, Any]:
    mine = ("owner", "other")[process]
    saw: dict[str, Any] = {
        "weak secret": describe_error(
            lambda: MultihostTamiyo.open(lambda: open_tamiyo(directory / mine, secret=b"short"))
        ),
        "mistake": describe_error(
            lambda: MultihostTamiyo.open(lambda: fail("a mistake of the user"))
        ),
    }
    with MultihostTamiyo.open(lambda: open_tamiyo(directory / mine)) as tamiyo:
        # What process 1 passes is no packet that a controller would take.
        packets = story(12) if process == 0 else [make_packet(blueprint_id="")] * 12
        decisions = [tamiyo.step(packet) for packet in packets]
        saw["decisions"] = [without_ticket(decision) for decision in decisions]
        saw["sequences"] = [decision.ticket.sequence for decision in decisions]
        unsafe = make_packet(validation_loss=lambda: mine)
        saw["invalid packet"] = describe_error(lambda: tamiyo.step(unsafe))
        ticket = tamiyo.step(make_packet(50)).ticket
        done = ticket.done
        tamiyo.flush()
        saw["flushed"] = process == 1 or ticket.done
        saw["waited"] = describe_error(ticket.wait) if process == 1 and not done else ticket.wait()
        saw["sizes"] = [
            tamiyo.agree(lambda _, size=size: mine * size)
            for size in (*range(790, 825), 1_000, 30_000)
        ]
        saw["owner's mistake"] = describe_error(lambda: tamiyo.agree(lambda _: {}["nothing"]))
        tamiyo.agree(lambda one: one.set_conservative(True, "by hand"))
        saw["by hand"] = without_ticket(tamiyo.step(make_packet(51)))
    saw["closed"] = describe_error(lambda: tamiyo.step(make_packet(52)))
    tamiyo.close()
    return saw


def thousand(process: int, directory: Path) -> dict[str, Any]:
    """1,000 steps; in one of them the worker is killed while it works."""
    owned: list[Tamiyo] = []

    def opener() -> Tamiyo:
        owned.append(
            open_tamiyo(
                directory / "run",
                policy="troubles:Troubled",
                isolation="process",
                clock=time.time_ns,
            )
        )
        return owned[0]

    verifier = Verifier((Secret(SECRET),), NonceLedger(0), SecurityConfig())
    decisions, durations, error = [], [], None
    with MultihostTamiyo.open(opener) as tamiyo:
        for step, packet in enumerate(story(1_000)):
            if step == 500:
                error = killed(tamiyo, owned, packet)
            started = time.perf_counter()
            decision = tamiyo.step(packet)
            durations.append(time.perf_counter() - started)
            if decision.command is not None:
                verifier = verifier.verify(decision.command, now_ns=time.time_ns())
            decisions.append(without_ticket(decision))
    return {"decisions": decisions, "durations": durations, "error": error}


def killed(
    tamiyo: MultihostTamiyo, owned: list[Tamiyo], packet: SystemStatePacket
) -> tuple[str, str, dict[str, object], bool]:
    for owner in owned:
        (worker, *_) = owner._steps.deployed.runner.pool.pids()  # type: ignore[attr-defined]
        threading.Timer(0.5, os.kill, (worker, signal.SIGKILL)).start()
    return describe_error(
        lambda: tamiyo.step(replace(packet, training_metrics=trouble_metrics(sleep)))
    )


def orphan(process: int, directory: Path) -> dict[str, Any]:
    """Process 0 dies while process 1 waits for its answer."""
    with MultihostTamiyo.open(lambda: open_tamiyo(directory / "run")) as tamiyo:
        (directory / f"begun-{process}").touch()
        tamiyo.agree(lambda _: (time.sleep(1.0), os.kill(os.getpid(), signal.SIGKILL)))
    return {}


def main() -> None:
    scenario, port, process, directory = sys.argv[1:]
    jax.distributed.initialize(f"127.0.0.1:{port}", 2, int(process))
    work = {function.__name__: function for function in (agreement, thousand, orphan)}[scenario]
    saw = work(int(process), Path(directory))
    Path(directory, f"saw-{process}").write_bytes(pickle.dumps(saw))
    jax.distributed.shutdown()


if __name__ == "__main__":
    main()
