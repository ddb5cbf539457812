"""Entries that are not a client's: refused, counted, and no other client waits for them."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

import pytest
from making import SECRET
from redis import Redis
from redis.exceptions import NoPermissionError
from redis_server import RedisServer
from served import (
    CONFIG,
    QUICK,
    client_of,
    count,
    put_blueprints,
    redis_of,
    served,
    story_of,
    wait_for,
)

from tamiyo_jax.contracts import Secret, encode_packet
from tamiyo_jax.errors import (
    ConfigurationError,
    DeadlineExceededError,
    MissingSecretError,
    WorkerUnavailableError,
)
from tamiyo_jax.serving import Limits, Metrics, connect, run_key
from tamiyo_jax.serving._messages import Request, RunKeys, seal_request

HOSTILE, HONEST = "run-hostile", "run-honest"


def stream(run_id: str) -> str:
    return f"tamiyo:run:{run_id}:packets"


def refused(metrics: Metrics, reason: str) -> float:
    return count(metrics, "tamiyo_server_refused_total", reason=reason)


def test_what_is_not_signed_whole_and_new_is_refused_and_counted(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    put_blueprints(redis_server.url)
    limits = Limits(lease_s=0.5, entry_bytes=10_000, packets_per_s=1_000.0)
    first, second = story_of(HOSTILE, 2)
    with (
        served(redis_server.url, tmp_path, limits=limits) as metrics,
        client_of(redis_server.url, HONEST) as other,
        redis_of(redis_server) as redis,
    ):
        keys, secret = RunKeys.of(HOSTILE), Secret(run_key(SECRET, HOSTILE))
        requests = [Request(i, 60_000, encode_packet(p)) for i, p in ((1, first), (2, second))]
        earlier, genuine = (seal_request(keys, request, secret) for request in requests)
        for message in (earlier, genuine):
            redis.xadd(stream(HOSTILE), {"m": message})
        wait_for(lambda: redis.hget(keys.state, "number") == b"2")
        state = redis.hget(keys.state, "state")
        entries = {
            "foreign": [{"x": b"1"}, {"m": b"1", "n": b"2"}],
            "forged": [{"m": b""}, {"m": secrets.token_bytes(200)}, {"m": genuine[:-1] + b"!"}],
            "replayed": [{"m": earlier}],
            "repeated": [{"m": genuine}],
            "oversized": [{"m": os.urandom(1 << 20)}] * 3,
        }
        for group in entries.values():
            for entry in group:
                redis.xadd(stream(HOSTILE), entry)
        redis.xadd(stream(HONEST), {"m": genuine})  # another run's
        for packet in story_of(HONEST, 3):
            assert other.step(packet).action
        for reason, group in entries.items():
            expected = len(group) + (reason == "forged")
            wait_for(lambda: refused(metrics, reason) == expected)  # noqa: B023
        wait_for(lambda: redis.xlen(keys.packets) == 0)
        assert redis.hget(keys.state, "state") == state
        assert redis.xlen(keys.answers) == 2


def test_a_flood_is_refused_beyond_the_quota_while_others_are_answered(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    put_blueprints(redis_server.url)
    with (
        served(redis_server.url, tmp_path) as metrics,
        client_of(redis_server.url, HONEST) as other,
        redis_of(redis_server) as redis,
    ):
        pipe = redis.pipeline()
        for _ in range(300):
            pipe.xadd(stream(HOSTILE), {"m": b"noise"})
        pipe.execute()
        for packet in story_of(HONEST, 5):
            assert other.step(packet).action
        wait_for(lambda: refused(metrics, "over_quota") > 0)
        wait_for(lambda: redis.xlen(stream(HOSTILE)) == 0)
        assert refused(metrics, "over_quota") + refused(metrics, "forged") == 300
    assert not (tmp_path / HOSTILE).exists()  # nothing is made for a run that never spoke


def test_a_packet_that_nobody_waits_for_is_not_decided_on(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    put_blueprints(redis_server.url)
    first, second = story_of(HONEST, 2)
    with served(redis_server.url, tmp_path):
        client = client_of(redis_server.url, HONEST)
        client.step(first)
    with redis_of(redis_server) as redis:
        before = redis.hgetall(f"tamiyo:run:{HONEST}:state")
    client._budget_ms = 50.0
    with pytest.raises(DeadlineExceededError) as raised:
        client.step(second)  # no server runs
    assert raised.value.stage == "server"
    with served(redis_server.url, tmp_path) as metrics, redis_of(redis_server) as redis:
        wait_for(lambda: refused(metrics, "expired") == 1)
        after = redis.hgetall(f"tamiyo:run:{HONEST}:state")
        assert (after[b"state"], after[b"number"]) == (before[b"state"], before[b"number"])
        client._budget_ms = 10_000.0
        assert client.step(second).action
    client.close()


def test_a_client_with_the_key_of_another_run_is_not_served(
    redis_server: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tamiyo_jax.serving._client._PATIENCE_S", 1.5)
    with (
        served(redis_server.url, tmp_path) as metrics,
        pytest.raises(WorkerUnavailableError, match="key"),
    ):
        connect(redis_server.url, HOSTILE, secret=run_key(SECRET, HONEST), config=CONFIG)
    assert refused(metrics, "forged") > 0


def test_a_user_of_the_access_list_reaches_its_own_run_alone(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    put_blueprints(redis_server.url)
    with redis_of(redis_server) as admin:
        admin.execute_command(
            *("ACL", "SETUSER", HOSTILE, "reset", "on", ">a-password"),
            *(f"%RW~{stream(HOSTILE)}", f"%R~tamiyo:run:{HOSTILE}:answers"),
            *("+xadd", "+xread", "+xrevrange"),
        )
    url = redis_server.url.replace("redis://", f"redis://{HOSTILE}:a-password@")
    with served(redis_server.url, tmp_path), client_of(url, HOSTILE) as client:
        (packet,) = story_of(HOSTILE, 1)
        assert client.step(packet).action
        assert "a-password" not in repr(client)
        with Redis.from_url(url) as hostile:
            for forbidden in (
                lambda: hostile.xadd(stream(HONEST), {"m": b"x"}),
                lambda: hostile.hset(f"tamiyo:run:{HOSTILE}:state", "owner", "me"),
                lambda: hostile.xadd(f"tamiyo:run:{HOSTILE}:answers", {"m": b"x"}),
                lambda: hostile.hgetall("{tamiyo}:blueprints"),
                lambda: hostile.flushall(),
                lambda: hostile.delete(stream(HOSTILE)),
            ):
                with pytest.raises(NoPermissionError):
                    forbidden()
    with redis_of(redis_server) as admin:
        admin.execute_command("ACL", "DELUSER", HOSTILE)


def test_keys_of_runs_differ_and_need_a_secret_and_a_name() -> None:
    assert run_key(SECRET, HONEST) != run_key(SECRET, HOSTILE)
    with pytest.raises(MissingSecretError):
        run_key(b"short", HONEST)
    for name in ("", "a b", "../x", "*", "a:b", "x" * 129, ".hidden"):
        with pytest.raises(ConfigurationError, match="run_id"):
            run_key(SECRET, name)


def test_a_run_that_was_idle_is_put_away_and_goes_on_where_it_was(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    put_blueprints(redis_server.url)
    first, second = story_of(HONEST, 2)
    limits = Limits(lease_s=QUICK.lease_s, idle_s=0.2)
    with (
        served(redis_server.url, tmp_path, limits=limits) as metrics,
        client_of(redis_server.url, HONEST) as client,
        redis_of(redis_server) as redis,
    ):
        client.step(first)
        wait_for(lambda: count(metrics, "tamiyo_server_runs") == 0)
        assert not redis.exists(stream(HONEST))
        assert redis.ttl(f"tamiyo:run:{HONEST}:state") > 0
        assert client.step(second).action
        assert redis.hget(f"tamiyo:run:{HONEST}:state", "number") == b"2"
