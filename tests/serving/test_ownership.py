"""Servers that share the runs: killed, paused and drained, they lose nothing and repeat nothing."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from killed_servers import kill_at_random
from redis_server import RedisServer
from served import (
    CONFIG,
    ServerProcess,
    alone,
    client_of,
    count,
    insist,
    put_blueprints,
    redis_of,
    served,
    story_of,
    summarize,
    wait_for,
)

from tamiyo_jax.policy import init_params
from tamiyo_jax.serving._messages import RunKeys
from tamiyo_jax.serving._store import RunStore, Write


def test_a_run_moves_to_another_server_and_its_decisions_go_on(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    put_blueprints(redis_server.url)
    packets = story_of("run-1", 9)
    got: list[Any] = []
    for name, part in (("a", packets[:3]), ("b", packets[3:6]), ("a", packets[6:])):
        with (
            served(redis_server.url, tmp_path / name),
            client_of(redis_server.url, "run-1") as client,
        ):
            got += [summarize(client.step(packet)) for packet in part]
    assert got == alone(tmp_path / "alone", packets)


def test_an_owner_that_was_replaced_can_write_nothing(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    put_blueprints(redis_server.url)
    keys = RunKeys.of("run-1")
    first, second = RunStore(redis_server.url, "first"), RunStore(redis_server.url, "second")
    first.beat(60.0)
    held = first.take(keys)
    assert held is not None
    assert second.take(keys) is None  # the first is alive
    first.leave()
    taken = second.take(keys)
    assert taken is not None
    assert taken.token > held.token

    def write(token: int, state: str) -> Write:
        return Write(keys, token, "1-0", b"answer", 1, b"digest", state)

    assert first.write([write(held.token, "old"), write(taken.token, "new")]) == [False, True]
    with redis_of(redis_server) as redis:
        assert redis.hget(keys.state, "state") == b"new"
        assert redis.xlen(keys.answers) == 1
        first.release(keys, held.token, 0.0)  # nor can it give away what is not its own
        assert redis.hget(keys.state, "owner") == b"second"
    first.close()
    second.close()


def test_two_servers_share_the_runs_and_one_takes_all_when_the_other_leaves(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    put_blueprints(redis_server.url)
    runs = [f"run-{i}" for i in range(8)]
    stories = {run_id: story_of(run_id, 4) for run_id in runs}
    with served(redis_server.url, tmp_path / "a") as a:
        clients = {run_id: client_of(redis_server.url, run_id) for run_id in runs}
        got = {run_id: [summarize(insist(clients[run_id], stories[run_id][0]))] for run_id in runs}
        with served(redis_server.url, tmp_path / "b") as b:
            wait_for(lambda: owned(a) + owned(b) == 8 and owned(b) > 0)
            assert owned(a) > 0
            for run_id in runs:
                got[run_id] += [summarize(insist(clients[run_id], p)) for p in stories[run_id][1:3]]
        wait_for(lambda: owned(a) == 8)
        for run_id in runs:
            got[run_id].append(summarize(insist(clients[run_id], stories[run_id][3])))
            clients[run_id].close()
    expected = alone(tmp_path / "alone", stories["run-0"])
    for run_id in runs:
        assert [one[:6] for one in got[run_id]] == [one[:6] for one in expected]


def owned(metrics) -> float:
    return count(metrics, "tamiyo_server_runs")


@pytest.mark.slow
def test_packets_of_many_runs_share_a_pass_of_the_network_and_decide_alike(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    import jax

    put_blueprints(redis_server.url)
    params = init_params(CONFIG.policy, jax.random.key(0))
    graph: dict[str, Any] = {"policy": "graph", "params": params}
    runs = ["run-0", "run-1", "run-2"]
    stories = {run_id: story_of(run_id, 3, shift=2 * i) for i, run_id in enumerate(runs)}
    got: dict[str, list] = {run_id: [] for run_id in runs}

    def train(run_id: str) -> None:
        got[run_id] = [summarize(insist(clients[run_id], packet)) for packet in stories[run_id]]

    with served(redis_server.url, tmp_path / "served", **graph):
        clients = {run_id: client_of(redis_server.url, run_id) for run_id in runs}
        threads = [threading.Thread(target=train, args=[run_id]) for run_id in runs]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for client in clients.values():
            client.close()
    for run_id in runs:
        expected = alone(tmp_path / run_id, stories[run_id], **graph)
        for one, other in zip(got[run_id], expected, strict=True):
            assert one[:2] == other[:2]
            assert one[3:5] == pytest.approx(other[3:5], abs=1e-5)
            assert (one[5] and one[5][:2]) == (other[5] and other[5][:2])


@pytest.mark.slow
def test_a_paused_server_loses_its_runs_and_writes_nothing_when_it_goes_on(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    put_blueprints(redis_server.url)
    packets = story_of("run-1", 6)
    first = ServerProcess(redis_server.url, tmp_path / "a")
    second = None
    try:
        assert "serves" in first.first_line
        with client_of(redis_server.url, "run-1") as client:
            got = [summarize(insist(client, packet)) for packet in packets[:2]]
            first.send(signal.SIGSTOP)
            second = ServerProcess(redis_server.url, tmp_path / "b")
            got += [summarize(insist(client, packet)) for packet in packets[2:4]]
            with redis_of(redis_server) as redis:
                before = redis.hgetall(RunKeys.of("run-1").state)
                answers = redis.xlen(RunKeys.of("run-1").answers)
                first.send(signal.SIGCONT)
                time.sleep(0.5)  # what it had in hand comes now, if ever
                after = redis.hgetall(RunKeys.of("run-1").state)
                assert (after[b"state"], after[b"number"]) == (before[b"state"], before[b"number"])
                assert redis.xlen(RunKeys.of("run-1").answers) == answers
            got += [summarize(insist(client, packet)) for packet in packets[4:]]
    finally:
        first.end()
        if second is not None:
            second.end()
    assert got == alone(tmp_path / "alone", packets)


@pytest.mark.slow
def test_sigterm_drains_and_the_endpoints_say_how_it_goes(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    put_blueprints(redis_server.url)
    server = ServerProcess(redis_server.url, tmp_path / "a")
    try:
        assert "serves" in server.first_line
        with client_of(redis_server.url, "run-1") as client:
            for packet in story_of("run-1", 3):
                insist(client, packet)
            health = read(f"http://{server.address}/healthz")
            figures = read(f"http://{server.address}/metrics")
        assert '"ok"' in health
        assert 'tamiyo_server_answers_total{result="decision"} 3.0' in figures
        with pytest.raises(urllib.error.HTTPError, match="404"):
            read(f"http://{server.address}/other")
    finally:
        printed = server.end(signal.SIGTERM)
    assert server.process.returncode == 0
    assert "handed its runs on" in printed
    with redis_of(redis_server) as redis:
        assert redis.hget(RunKeys.of("run-1").state, "owner") == b""
        assert redis.zcard("tamiyo:servers") == 0
    journal = subprocess.run(
        [sys.executable, "-m", "tamiyo_jax", "journal", "verify", str(tmp_path / "a" / "run-1")],
        capture_output=True,
        text=True,
    )
    assert journal.returncode == 0, journal.stderr


def read(url: str) -> str:
    with urllib.request.urlopen(url, timeout=10) as reply:
        return reply.read().decode()


@pytest.mark.slow
def test_kills_of_servers_and_redis_lose_no_decision_and_change_none(
    own_redis_server: RedisServer, tmp_path: Path
) -> None:
    figures = kill_at_random(own_redis_server, tmp_path, kills=5, seed=1, pause_s=2.0)
    assert figures.decisions > 0
    assert (figures.different, figures.repeated, figures.changed) == (0, 0, 0)
