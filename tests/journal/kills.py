"""A writing process, killed by SIGKILL at random moments."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from tamiyo_jax.journal import read_journal

# It imports once and forks a writer for each line that it is given, so that the writers write
# for most of their short lives.
_NURSERY = """
import os, sys
from pathlib import Path
from journal.campaign import EPOCH, POLICY_STATE, Clock, make_report, make_step
from journal.campaign import make_storage_config, stepped
from tamiyo_jax.controller import initial_state
from tamiyo_jax.storage import StorageManager

def send(*words):
    os.write(1, (" ".join(map(str, words)) + "\\n").encode())

def write(directory, durability):
    send(os.getpid())
    config = make_storage_config(durability=durability, flush_ms=1.0, retention_hours=1e6)
    manager = StorageManager.open(Path(directory), config, POLICY_STATE, clock=Clock())
    state = manager.state or initial_state(POLICY_STATE)
    manager.start(state)
    while True:
        state = stepped(state)
        report = make_report(f"r{state.steps}", EPOCH + state.steps)
        send(manager.append_step(make_step(state, report), state).sequence)

for line in sys.stdin:
    child = os.fork()
    if not child:
        write(*line.split())
    os.waitpid(child, 0)
    send("ended")
"""


@contextmanager
def _nursery() -> Iterator[tuple[IO[str], IO[str]]]:
    tests = str(Path(__file__).parents[1])
    paths = [tests, *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", _NURSERY]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        yield process.stdin, process.stdout
        process.stdin.close()


def kill_writers(directory: Path, times: int, seed: int) -> dict[str, object]:
    """Kill writers of one directory, each at a random moment, and look for what they wrote."""
    chance = random.Random(seed)
    failures = Counter[str]()
    returned_count = 0
    with _nursery() as (orders, answers):
        for number in range(times):
            orders.write(f"{directory} {('group', 'always')[number % 2]}\n")
            orders.flush()
            writer = int(answers.readline())
            time.sleep(chance.uniform(0, 0.1))
            os.kill(writer, signal.SIGKILL)
            returned = [int(line) for line in iter(answers.readline, "ended\n")]
            returned_count += len(returned)
            failures.update(_problems(directory, returned))
    return {
        "kills": times,
        "records whose append returned": returned_count,
        "segments": len(list((directory / "journal").iterdir())),
        "failures of any kind": failures.total(),
        "examples": dict(failures),
    }


def _problems(directory: Path, returned: list[int]) -> Iterator[str]:
    if not (directory / "journal").exists():
        return
    found = read_journal(directory)
    if not {record.sequence for record in found.records}.issuperset(returned):
        yield "returned record lost"
    if found.corrupt:
        yield "called corrupt"
    # A snapshot and the record that was on its way may be there too.
    if returned and found.last_sequence - returned[-1] > 2:
        yield "record invented"
