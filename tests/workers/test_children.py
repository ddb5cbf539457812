"""What a worker starts ends with it, and a worker with its trainer; what it says can be read."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tamiyo_jax.errors import PolicyFailureError
from tamiyo_jax.workers import Load, WorkerPool, WorkerSpec, worker_environment

_TRAINER = """
import sys, time
sys.path[:0] = {path!r}
from pathlib import Path
from test_children import make_pool
if {starting!r}:
    sys.path.insert(0, {directory!r})
    pool = make_pool("parent_of_two", Path({directory!r}))
    while pool._coming is None:
        time.sleep(0.001)
    print(pool._coming.pid, flush=True)
else:
    pool = make_pool("parent_of_two", Path({directory!r}))
    pool.wait_ready()
    print(*pool.pids(), *pool.call("start", 60_000.0), flush=True)
time.sleep(600)
"""


def make_pool(factory: str, logs: Path) -> WorkerPool:
    return WorkerPool(
        WorkerSpec(
            stage="inference",
            load=Load(f"troubles:{factory}", {}, 8 << 30),
            failure=PolicyFailureError,
            environment=worker_environment("cpu", logs),
            logs=logs,
            spares=0,
            warmup_s=60.0,
        )
    )


def is_running(pid: int) -> bool:
    """Whether a process exists and is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_until(condition: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)


@pytest.mark.parametrize("ending", ["close", "crash"])
def test_children_of_a_policy_end_with_its_worker(tmp_path: Path, ending: str) -> None:
    pool = make_pool("parent_of_two", tmp_path)
    try:
        pool.wait_ready()
        children = pool.call("start", 60_000.0)
        assert all(map(is_running, children))
        if ending == "crash":
            with pytest.raises(PolicyFailureError):
                pool.call("crash", 60_000.0)
    finally:
        pool.close()
    wait_until(lambda: not any(map(is_running, children)), 20.0)


@pytest.mark.slow
@pytest.mark.parametrize("starting", [False, True])
def test_nothing_outlives_a_trainer_that_is_killed(tmp_path: Path, starting: bool) -> None:
    if starting:  # a module that the worker imports, and that takes its time
        lines = ("import time", f"open({str(tmp_path / 'importing')!r}, 'w')", "time.sleep(600)")
        (tmp_path / "pickle.py").write_text("\n".join(lines))
    path = [str(Path(__file__).parent), *filter(None, sys.path)]
    script = _TRAINER.format(path=path, directory=str(tmp_path), starting=starting)
    trainer = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert trainer.stdout is not None
    pids = [int(pid) for pid in trainer.stdout.readline().split()]
    assert pids
    if starting:  # before that, a worker whose parent has gone ends by itself
        wait_until((tmp_path / "importing").exists, 60.0)
    os.kill(trainer.pid, signal.SIGKILL)
    trainer.communicate()
    wait_until(lambda: not any(map(is_running, pids)), 20.0)


def test_a_policy_that_exits_is_reported_as_that(tmp_path: Path) -> None:
    pool = make_pool("quitter", tmp_path)
    try:
        pool.wait_ready()
        with pytest.raises(PolicyFailureError, match="SystemExit: 3"):
            pool.call(3, 60_000.0)
        (log,) = tmp_path.glob("inference-*.log")
        assert "I have had enough" in log.read_text()
    finally:
        pool.close()


def test_what_a_worker_writes_is_kept_in_a_bounded_file(tmp_path: Path) -> None:
    pool = make_pool("chatterbox", tmp_path)
    try:
        pool.wait_ready()
        for _ in range(3):
            pool.call(1 << 20, 60_000.0)
        (log,) = tmp_path.glob("inference-*.log")
        wait_until(lambda: log.stat().st_size < 1 << 17, 20.0)
        pool.call(10, 60_000.0)
        assert log.read_text().endswith("\n" + "x" * 10 + "\n")
    finally:
        pool.close()
