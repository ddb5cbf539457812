"""Two real JAX processes and one controller: they get the same answers and the same errors."""

from __future__ import annotations

import logging
import os
import pickle
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from making import make_packet, open_tamiyo

from tamiyo_jax.decision import RemoteTicket
from tamiyo_jax.errors import MissingSecretError, PersistenceError
from tamiyo_jax.service._multihost import MultihostTamiyo

LOG = logging.getLogger(__name__)
SCRIPT = Path(__file__).with_name("multihost_process.py")
TESTS = SCRIPT.parents[1]


def start(scenario: str, directory: Path) -> list[subprocess.Popen[str]]:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port = listening.getsockname()[1]
    path = os.pathsep.join((str(TESTS), str(TESTS.parent)))
    return [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), scenario, str(port), str(process), str(directory)],
            env={**os.environ, "PYTHONPATH": path},
            stderr=subprocess.PIPE,
            text=True,
        )
        for process in range(2)
    ]


def run(scenario: str, directory: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the two processes saw."""
    processes = start(scenario, directory)
    try:
        said = [process.communicate(timeout=240)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], "\n".join(said)
    owner, other = (
        pickle.loads((directory / f"saw-{process}").read_bytes()) for process in range(2)
    )
    return owner, other


@pytest.fixture(scope="module")
def saw(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], dict[str, Any]]:
    return run("agreement", tmp_path_factory.mktemp("agreement"))


@pytest.mark.slow
def test_every_process_gets_the_decision_on_the_packet_of_process_0(saw) -> None:
    owner, other = saw
    assert len(owner["decisions"]) == 12
    assert other["decisions"] == owner["decisions"]
    assert other["sequences"] == owner["sequences"]
    assert other["by hand"] == owner["by hand"]


@pytest.mark.parametrize(
    ("what", "kind"),
    [
        ("weak secret", "MissingSecretError"),
        ("invalid packet", "InvalidPacketError"),
        ("closed", "PersistenceError"),
    ],
)
def test_a_failure_on_process_0_is_the_same_error_everywhere(saw, what: str, kind: str) -> None:
    owner, other = saw
    assert owner[what][0] == kind
    assert other[what][:3] == owner[what][:3]
    assert other[what][3], "the traceback of process 0 is missing"


def test_a_mistake_in_the_users_own_code_ends_all_processes_and_none_waits(saw) -> None:
    owner, other = saw
    assert owner["mistake"][:2] == ("ValueError", "a mistake of the user")
    assert other["mistake"][:2] == (
        "RuntimeError",
        "process 0 raised ValueError: a mistake of the user",
    )
    assert (owner["owner's mistake"][0], other["owner's mistake"][0]) == (
        "KeyError",
        "RuntimeError",
    )


def test_answers_of_every_size_arrive_whole(saw) -> None:
    owner, other = saw
    assert other["sizes"] == owner["sizes"]
    assert {len(text) for text in owner["sizes"]} >= {5 * 790, 5 * 824, 5 * 30_000}


def test_only_process_0_makes_a_run_directory_and_a_flush_there_is_waited_for(saw) -> None:
    owner, other = saw
    assert owner["flushed"]
    assert owner["waited"] is True
    assert other["waited"] is True or other["waited"][0] == "PersistenceError"


def test_a_remote_ticket_holds_what_was_known_and_waits_for_nothing() -> None:
    assert RemoteTicket(3, done=True).wait()
    with pytest.raises(PersistenceError, match="flush") as raised:
        RemoteTicket(3, done=False).wait()
    assert raised.value.sequence == 3


def test_on_one_process_it_is_the_controller_and_nothing_else(tmp_path: Path) -> None:
    with pytest.raises(MissingSecretError):
        MultihostTamiyo.open(lambda: open_tamiyo(tmp_path, secret=b"short"))
    with MultihostTamiyo.open(lambda: open_tamiyo(tmp_path)) as tamiyo:
        decision = tamiyo.step(make_packet())
        tamiyo.flush()
        assert decision.ticket.done
    with pytest.raises(PersistenceError, match="closed"):
        tamiyo.step(make_packet())
    with (
        pytest.raises(KeyboardInterrupt),
        MultihostTamiyo.open(lambda: open_tamiyo(tmp_path)) as tamiyo,
    ):
        raise KeyboardInterrupt
    open_tamiyo(tmp_path).close()  # the directory is free again


@pytest.mark.slow
def test_two_processes_decide_the_same_for_1000_steps_and_lose_a_worker_together(
    tmp_path: Path,
) -> None:
    owner, other = run("thousand", tmp_path)
    assert len(owner["decisions"]) == 1_000
    assert len({decision.report_id for decision in owner["decisions"]}) == 1_000
    assert any(decision.command is not None for decision in owner["decisions"])
    assert other["decisions"] == owner["decisions"]
    kind, message, context, _ = owner["error"]
    assert (kind, context["stage"]) == ("PolicyFailureError", "inference")
    assert "SIGKILL" in message
    assert other["error"][:3] == owner["error"][:3]
    inside = [decision.latency.step_ms for decision in owner["decisions"]]
    around = 1e3 * np.array(owner["durations"])
    added = np.percentile(around - inside, [50, 99])
    LOG.info("step %.2f ms, agreement on top %.2f ms (p99 %.2f)", np.median(inside), *added)


@pytest.mark.slow
def test_the_death_of_process_0_ends_the_others_soon(tmp_path: Path) -> None:
    owner, other = start("orphan", tmp_path)
    try:
        owner.wait(timeout=120)
        died = time.monotonic()
        other.communicate(timeout=60)
    finally:
        owner.kill()
        other.kill()
        owner.communicate()
    assert (tmp_path / "begun-1").exists()
    assert owner.returncode == -9
    assert other.returncode != 0
    assert time.monotonic() - died < 30


@pytest.mark.slow
def test_the_example_rolls_both_processes_back() -> None:
    example = TESTS.parent / "examples" / "two_processes.py"
    result = subprocess.run(
        [sys.executable, str(example)], capture_output=True, text=True, timeout=300, check=False
    )
    assert result.returncode == 0, result.stderr
    for process in range(2):
        assert f"process {process}, step 200: ROLLBACK" in result.stdout
        accuracy = result.stdout.split(f"process {process}: accuracy ")[1][:5]
        assert float(accuracy) > 0.9
