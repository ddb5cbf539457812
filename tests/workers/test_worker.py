"""Worker processes: real ones, that hang, spin, compute, crash and eat memory."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from making import SECRET, make_blueprint, make_config, make_packet, open_tamiyo
from troubles import (
    TROUBLES,
    HungLibrary,
    Scaler,
    complain,
    compute,
    crash,
    eat,
    leave,
    sleep,
    spin,
    trouble_metrics,
)

from tamiyo_jax.errors import (
    DeadlineExceededError,
    NoLegalActionError,
    PolicyFailureError,
    TamiyoError,
    WorkerUnavailableError,
)
from tamiyo_jax.service import Tamiyo
from tamiyo_jax.telemetry import MemorySink
from tamiyo_jax.workers import Load, WorkerPool, WorkerSpec, worker_environment
from tamiyo_jax.workers._messages import encode, receive, send

MEBIBYTE = 1 << 20
HASTY = {"inference_ms": 1_500.0, "metadata_ms": 1_500.0}


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def until(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)


@contextmanager
def nothing_left_over() -> Iterator[None]:
    """No thread and no child process outlives the block."""
    threads = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) <= threads
    assert not [child for child in psutil.Process().children() if "_start.py" in command(child)]


def command(process: psutil.Process) -> str:
    """Its command line; none once it is over."""
    try:
        return " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return ""


@contextmanager
def pool_of(
    factory: str, cache: Path, *, spares: int = 0, memory: int = 8192 * MEBIBYTE
) -> Iterator[WorkerPool]:
    pool = WorkerPool(
        WorkerSpec(
            stage="inference",
            load=Load(f"troubles:{factory}", {}, memory),
            failure=PolicyFailureError,
            environment=worker_environment("cpu", cache),
            logs=cache,
            spares=spares,
            warmup_s=60.0,
        )
    )
    with nothing_left_over():
        try:
            yield pool
        finally:
            pool.close()


def pool_pids(tamiyo: Tamiyo) -> list[int]:
    return tamiyo._steps.deployed.runner.pool.pids()  # type: ignore[attr-defined]


@contextmanager
def troubled(directory: Path, **arguments: Any) -> Iterator[Tamiyo]:
    config = arguments.pop("config", make_config(deadlines=HASTY))
    with (
        nothing_left_over(),
        open_tamiyo(
            directory,
            config=config,
            policy="troubles:Troubled",
            isolation="process",
            clock=time.time_ns,
            **arguments,
        ) as tamiyo,
    ):
        yield tamiyo


ENDS = {
    sleep: DeadlineExceededError,
    spin: DeadlineExceededError,
    compute: DeadlineExceededError,
    eat: DeadlineExceededError,
    crash: PolicyFailureError,
    leave: PolicyFailureError,
}


@pytest.mark.slow
def test_trouble_of_every_kind_is_ended_and_the_spare_answers_the_next_step(
    tmp_path: Path,
) -> None:
    sink = MemorySink()
    with troubled(tmp_path, sinks=(sink,)) as tamiyo:
        assert tamiyo.step(make_packet(0)).action
        for step, (trouble, error) in enumerate(ENDS.items(), 1):
            until(lambda: len(pool_pids(tamiyo)) == 2)
            victim, spare = pool_pids(tamiyo)
            before = tamiyo.state
            started = time.monotonic()
            with pytest.raises(error) as raised:
                tamiyo.step(make_packet(step, training_metrics=trouble_metrics(trouble)))
            took = time.monotonic() - started
            assert not alive(victim)
            assert took < HASTY["inference_ms"] / 1e3 + 5.0
            assert tamiyo.state.policy_state == before.policy_state
            assert tamiyo.state.steps == before.steps
            assert tamiyo.state.failures == before.failures + 1
            if error is DeadlineExceededError:
                assert raised.value.stage == "inference"
            assert tamiyo.step(make_packet(step)).report_id
            assert pool_pids(tamiyo)[0] == spare
        assert "SIGSEGV" in str(_failure(tamiyo, crash))
        assert "status 7" in str(_failure(tamiyo, leave))
    tamiyo_events = [event.name for packet in sink.packets for event in packet.events]
    assert tamiyo_events.count("step_failed") == len(ENDS) + 2


def _failure(tamiyo: Tamiyo, trouble: Callable[[], None]) -> TamiyoError:
    until(lambda: len(pool_pids(tamiyo)) == 2)
    with pytest.raises(TamiyoError) as raised:
        tamiyo.step(make_packet(90, training_metrics=trouble_metrics(trouble)))
    tamiyo.step(make_packet(91))  # the breaker counts failures in a row
    return raised.value


@pytest.mark.slow
def test_a_policy_that_raises_keeps_its_worker_and_the_error_says_what_it_raised(
    tmp_path: Path,
) -> None:
    with troubled(tmp_path) as tamiyo:
        tamiyo.step(make_packet(0))
        (pid, *_) = pool_pids(tamiyo)
        with pytest.raises(PolicyFailureError, match="does not like this packet") as raised:
            tamiyo.step(make_packet(1, training_metrics=trouble_metrics(complain)))
        assert "in complain" in str(raised.value.trace)
        assert pool_pids(tamiyo)[0] == pid
        assert tamiyo.step(make_packet(2)).report_id


@pytest.mark.slow
def test_without_a_warm_worker_a_step_raises_at_once_and_counts_nothing(tmp_path: Path) -> None:
    config = make_config(deadlines={**HASTY, "spares": 0}, breakers={"failures": 2})
    with troubled(tmp_path, config=config) as tamiyo:
        tamiyo.step(make_packet(0))
        with pytest.raises(PolicyFailureError):
            tamiyo.step(make_packet(1, training_metrics=trouble_metrics(leave)))
        before = tamiyo.state.risk.inference
        assert before.failures == 1
        started = time.monotonic()
        with pytest.raises(WorkerUnavailableError, match="starting"):
            tamiyo.step(make_packet(2))
        assert time.monotonic() - started < HASTY["inference_ms"] / 1e3
        assert tamiyo.state.risk.inference == before
        until(lambda: len(pool_pids(tamiyo)) == 1)
        assert tamiyo.step(make_packet(3)).report_id
        assert tamiyo.state.risk.inference.failures == 0


@pytest.mark.slow
def test_a_blueprint_that_cannot_be_fetched_in_time_ends_the_fetch_not_the_training(
    tmp_path: Path,
) -> None:
    library = HungLibrary(tmp_path / "blueprints.db")
    for name in ("host", "grow-a", "grow-b"):
        library.put(make_blueprint(name))
    with troubled(tmp_path / "run", library=library) as tamiyo:
        fetchers = tamiyo._parts.metadata
        assert fetchers is not None
        until(lambda: len(fetchers.pids()) == 2)
        started = time.monotonic()
        with pytest.raises(DeadlineExceededError) as raised:
            tamiyo.step(make_packet(0))
        assert raised.value.stage == "metadata"
        assert time.monotonic() - started < HASTY["metadata_ms"] / 1e3 + 5.0
        assert tamiyo.state.risk.metadata.failures == 1
        assert tamiyo.step(make_packet(1, candidate_blueprint_ids=("grow-a",))).report_id


_ORPHAN = """
import sys, time
sys.path[:0] = {path!r}
from pathlib import Path
from making import SECRET, make_config, make_packet, open_tamiyo
from troubles import sleep, trouble_metrics
tamiyo = open_tamiyo(
    Path({directory!r}), policy="troubles:Troubled", isolation="process", clock=time.time_ns
)
tamiyo.step(make_packet(0))
while len(tamiyo._steps.deployed.runner.pool.pids()) < 2:
    time.sleep(0.01)
print(*tamiyo._steps.deployed.runner.pool.pids(), flush=True)
tamiyo.step(make_packet(1, training_metrics=trouble_metrics(sleep)))
"""


@pytest.mark.slow
def test_workers_die_with_a_parent_that_is_killed_even_where_they_hang(tmp_path: Path) -> None:
    script = _ORPHAN.format(path=[entry for entry in sys.path if entry], directory=str(tmp_path))
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pids = [int(pid) for pid in parent.stdout.readline().split()]
    assert len(pids) == 2
    assert all(map(alive, pids))
    time.sleep(0.5)  # it hangs by now
    parent.kill()
    parent.communicate()
    until(lambda: not any(map(alive, pids)), 10.0)


def test_messages_arrive_as_they_were_whatever_their_size(tmp_path: Path) -> None:
    with pool_of("echo", tmp_path) as pool:
        pool.wait_ready()
        for size in (0, 1, 100, 5_000, 3_000_000):
            message = {"array": np.arange(size, dtype=np.float32), "name": "x" * size}
            reply = pool.call(message, 60_000.0)
            np.testing.assert_array_equal(reply["array"], message["array"])
            assert reply["name"] == message["name"]


def test_a_message_that_is_encoded_once_arrives_every_time_it_is_sent() -> None:
    large = np.arange(1 << 16, dtype=np.float32)
    message = encode({"large": large, "small": "x"})
    ours, theirs = socket.socketpair()
    with ours, theirs:
        for _ in range(3):
            sender = threading.Thread(target=send, args=(ours, message))
            sender.start()
            received = receive(theirs)
            sender.join()
            assert received["small"] == "x"
            np.testing.assert_array_equal(received["large"], large)


def test_a_worker_sees_no_secret_and_is_the_first_to_go_when_memory_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TAMIYO_SECRET", SECRET.decode())
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "something else that workers must not see")
    with pool_of("environment", tmp_path) as pool:
        pool.wait_ready()
        seen = pool.call(None, 60_000.0)
    assert seen["JAX_PLATFORMS"] == "cpu"
    assert not [name for name in seen if "SECRET" in name]
    with pool_of("oom_score", tmp_path) as pool:
        pool.wait_ready()
        assert pool.call(None, 60_000.0) == "1000"


def test_a_worker_cannot_take_more_memory_than_it_may(tmp_path: Path) -> None:
    with pool_of("allocate", tmp_path, memory=4096 * MEBIBYTE) as pool:
        pool.wait_ready()
        assert pool.call(MEBIBYTE, 60_000.0) == MEBIBYTE
        with pytest.raises(PolicyFailureError, match="MemoryError"):
            pool.call(8192 * MEBIBYTE, 60_000.0)


def test_a_call_that_expires_in_the_queue_kills_no_worker(tmp_path: Path) -> None:
    with pool_of("naps", tmp_path) as pool:
        pool.wait_ready()
        pool.call(0.0, 60_000.0)
        (pid,) = pool.pids()
        first = threading.Thread(target=pool.call, args=(0.6, 60_000.0))
        first.start()
        time.sleep(0.1)
        with pytest.raises(DeadlineExceededError, match="never left the queue"):
            pool.call(0.0, 50.0)
        first.join()
        assert pool.pids() == [pid]
        assert pool.call(0.0, 60_000.0) == 0.0


def test_an_answer_that_comes_late_is_never_anybodys_answer(tmp_path: Path) -> None:
    with pool_of("naps", tmp_path, spares=1) as pool:
        until(lambda: len(pool.pids()) == 2)
        with pytest.raises(DeadlineExceededError):
            pool.call(0.3, 100.0)
        time.sleep(0.4)
        assert pool.call(0.01, 60_000.0) == 0.01


def test_what_is_done_meanwhile_takes_no_time_of_its_own(tmp_path: Path) -> None:
    with pool_of("naps", tmp_path) as pool:
        pool.wait_ready()
        started = time.monotonic()
        assert pool.call(1.5, 60_000.0, lambda: time.sleep(1.5)) == 1.5
        assert time.monotonic() - started < 2.8


@pytest.mark.slow
def test_an_answer_that_came_is_taken_however_long_was_done_else_meanwhile(tmp_path: Path) -> None:
    with pool_of("naps", tmp_path) as pool:
        pool.wait_ready()
        (pid,) = pool.pids()
        pool._margin_s = 1.6  # so an answer had to come within 2.4 s
        assert pool.call(0.0, 4_000.0, lambda: time.sleep(2.5)) == 0.0
        assert pool.pids() == [pid]


def test_an_answer_is_nobodys_where_what_was_done_meanwhile_failed(tmp_path: Path) -> None:
    def fail() -> None:
        raise NoLegalActionError("meanwhile")

    with pool_of("naps", tmp_path, spares=1) as pool:
        until(lambda: len(pool.pids()) == 2)
        with pytest.raises(NoLegalActionError, match="meanwhile"):
            pool.call(0.01, 60_000.0, fail)
        assert pool.call(0.02, 60_000.0) == 0.02


def test_a_call_that_leaves_the_queue_too_late_kills_no_worker(tmp_path: Path) -> None:
    with pool_of("naps", tmp_path) as pool:
        pool.wait_ready()
        (pid,) = pool.pids()
        pool._margin_s = 0.4  # of a second, so the second call had to begin within 0.6 s
        first = threading.Thread(target=pool.call, args=(0.9, 60_000.0))
        first.start()
        time.sleep(0.1)
        with pytest.raises(DeadlineExceededError, match="never left the queue"):
            pool.call(0.0, 1_000.0)
        first.join()
        assert pool.pids() == [pid]


@pytest.mark.slow
def test_an_answer_that_cannot_be_read_is_a_failure_and_the_pool_goes_on(tmp_path: Path) -> None:
    with pool_of("unreadable_at_home", tmp_path, spares=1) as pool:
        until(lambda: len(pool.pids()) == 2)
        for _ in range(2):
            with pytest.raises(PolicyFailureError, match="LookupError: far from home"):
                pool.call("an object", 60_000.0)
            until(lambda: len(pool.pids()) == 2)
        assert pool.call("ready", 60_000.0) == "ready"


def test_objects_of_other_packages_are_rebuilt_as_they_were(tmp_path: Path) -> None:
    with pool_of("echo", tmp_path) as pool:
        pool.wait_ready()
        assert pool.call(Scaler(3.0), 60_000.0).scale == 6.0


def test_a_worker_that_cannot_begin_says_why(tmp_path: Path) -> None:
    with pool_of("unwilling", tmp_path) as pool:
        with pytest.raises(WorkerUnavailableError, match="cannot begin") as raised:
            pool.wait_ready()
        assert isinstance(raised.value.__cause__, NoLegalActionError)


@pytest.mark.slow
def test_every_later_worker_is_prepared_like_the_first(tmp_path: Path) -> None:
    with pool_of("naps", tmp_path, spares=1) as pool:
        pool.wait_ready()
        assert pool.prepare("a", 0.5) == 0.5
        with pytest.raises(DeadlineExceededError):
            pool.call(5.0, 50.0)
        # A spare that is not prepared yet does not serve.
        until(lambda: len(pool.pids()) == 2)
        assert pool.call(0.0, 60_000.0) == 0.0
        assert pool.restarts == 1


def test_closing_does_not_wait_for_a_worker_that_starts(tmp_path: Path) -> None:
    with pool_of("naps", tmp_path, spares=3) as pool:
        started = time.monotonic()
    assert pool.pids() == []
    assert time.monotonic() - started < 10.0


def test_a_pool_that_closes_while_its_workers_start_or_fail_leaves_no_descriptor_open(
    tmp_path: Path,
) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    for factory, nap in (("naps", 0.0), ("naps", 0.3), ("unwilling", 2.0)):
        with pool_of(factory, tmp_path, spares=2):
            time.sleep(nap)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


@pytest.mark.slow
def test_a_worker_that_died_idle_is_replaced_and_is_no_failure(tmp_path: Path) -> None:
    with pool_of("naps", tmp_path, spares=1) as pool:
        until(lambda: len(pool.pids()) == 2)
        pool.call(0.0, 60_000.0)
        active, spare = pool.pids()
        os.kill(active, signal.SIGKILL)
        time.sleep(0.2)
        assert pool.call(0.0, 60_000.0) == 0.0
        assert pool.pids()[0] == spare
        until(lambda: len(pool.pids()) == 2)
        for pid in pool.pids():
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.2)
        with pytest.raises(WorkerUnavailableError):
            pool.call(0.0, 60_000.0)
        until(lambda: pool.spares_ready > 0)
        assert pool.call(0.0, 60_000.0) == 0.0


def test_every_trouble_is_tried() -> None:
    assert {*ENDS, complain} == set(TROUBLES)
