"""A bus on a real server loses nothing: not to dead consumers, and not to a dead server."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from making import SECRET, make_config, make_packet, open_tamiyo
from redis import Redis
from redis_server import RedisServer
from summaries import consume_all

from tamiyo_jax.bus import FIELD_REPORTS, RedisBus, ReportReader
from tamiyo_jax.contracts import Priority, Secret
from tamiyo_jax.errors import ConfigurationError, PublishError
from tamiyo_jax.journal import RecordType, read_journal
from tamiyo_jax.storage import recover_facts

TOPIC = "a topic"


@contextmanager
def redis_bus(server: RedisServer, claim_after_s: float = 60.0) -> Iterator[RedisBus]:
    bus = RedisBus(server.url, claim_after_s=claim_after_s)
    try:
        yield bus
    finally:
        bus.close()


def publish(bus: RedisBus, *messages: bytes) -> None:
    for message in messages:
        bus.publish(TOPIC, message, Priority.NORMAL)


def consume(bus: RedisBus, group: str = "group") -> list[bytes]:
    return consume_all(bus, TOPIC, group)


def count_messages(server: RedisServer) -> int:
    """How many messages are on the server, of whatever topic."""
    with Redis.from_url(server.url) as client:
        return sum(client.xlen(stream) for stream in client.keys("tamiyo:bus:*"))


def start_consumer(server: RedisServer, what: str) -> subprocess.Popen[str]:
    """Another process that is ready to consume."""
    child = subprocess.Popen(
        [sys.executable, __file__, server.url, what],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    return child


def finish(*children: subprocess.Popen[str]) -> list[list[str]]:
    """Let consumers begin, all at once, and wait for what each of them got."""
    for child in children:
        assert child.stdin is not None
        child.stdin.write("go\n")
        child.stdin.flush()
    return [child.communicate(timeout=60)[0].split() for child in children]


@pytest.mark.slow
def test_two_processes_of_a_group_share_its_messages(redis_server: RedisServer) -> None:
    messages = [str(index) for index in range(100)]
    children = [start_consumer(redis_server, "share") for _ in range(2)]
    with redis_bus(redis_server) as bus:
        publish(bus, *(message.encode() for message in messages))
    shares = finish(*children)
    assert [child.returncode for child in children] == [0, 0]
    assert all(shares), "each of them has a share"
    assert sorted(shares[0] + shares[1]) == sorted(messages)


def test_the_message_of_a_consumer_that_died_goes_to_another(redis_server: RedisServer) -> None:
    with redis_bus(redis_server, claim_after_s=0.3) as bus:
        publish(bus, b"1", b"2")
        child = start_consumer(redis_server, "die")
        finish(child)
        assert child.returncode == -signal.SIGKILL
        time.sleep(0.35)
        assert consume(bus) == [b"1", b"2"]
        assert consume(bus) == []


def test_the_message_of_a_busy_consumer_goes_to_no_other(
    redis_server: RedisServer,
) -> None:
    with redis_bus(redis_server) as bus, redis_bus(redis_server) as other:
        publish(bus, b"1", b"2")
        seen: list[bytes] = []
        by_the_other: list[bytes] = []

        def handle(message: bytes) -> None:
            by_the_other.extend(consume(other))
            seen.append(message)

        assert bus.consume(TOPIC, "group", handle) == 1
        assert (seen, by_the_other) == ([b"1"], [b"2"])


def test_a_message_that_failed_elsewhere_is_there_at_once(redis_server: RedisServer) -> None:
    def fail(message: bytes) -> None:
        raise ZeroDivisionError

    with redis_bus(redis_server) as bus, redis_bus(redis_server) as other:
        publish(bus, b"1", b"2")
        with pytest.raises(ZeroDivisionError):
            bus.consume(TOPIC, "group", fail)
        assert consume(other) == [b"1", b"2"]


def test_many_messages_in_other_hands_hide_none_that_is_to_be_claimed(
    redis_server: RedisServer,
) -> None:
    """Redis looks at ten of the messages that are out per call."""
    held: list[bytes] = []
    rest: list[bytes] = []

    def fail(message: bytes) -> None:
        raise ZeroDivisionError

    with redis_bus(redis_server) as bus:
        publish(bus, *(str(index).encode() for index in range(32)))

        def hold(message: bytes) -> None:
            held.append(message)
            if len(held) < 30:
                bus.consume(TOPIC, "group", hold)
                return
            with pytest.raises(ZeroDivisionError):
                bus.consume(TOPIC, "group", fail)
            rest.extend(consume(bus))

        assert bus.consume(TOPIC, "group", hold) == 1
        assert len(held) == 30
        assert rest == [b"30", b"31"]


def test_what_all_groups_acknowledged_is_removed_and_nothing_else(
    redis_server: RedisServer,
) -> None:
    with redis_bus(redis_server) as bus:
        consume(bus, "slow")
        publish(bus, b"1", b"2", b"3")
        bus.publish(TOPIC, b"urgent", Priority.CRITICAL)
        assert consume(bus, "fast") == [b"urgent", b"1", b"2", b"3"]
        assert count_messages(redis_server) == 4
        seen: list[bytes] = []

        def handle(message: bytes) -> None:
            if message == b"2":
                raise ZeroDivisionError
            seen.append(message)

        with pytest.raises(ZeroDivisionError):
            bus.consume(TOPIC, "slow", handle)
        publish(bus, b"4")
        assert consume(bus, "fast") == [b"4"]
        assert count_messages(redis_server) == 3
        assert consume(bus, "late") == [b"2", b"3", b"4"]
        assert consume(bus, "slow") == [b"2", b"3", b"4"]
        assert count_messages(redis_server) == 0


def test_a_group_that_joins_while_messages_are_removed_keeps_what_it_was_handed(
    redis_server: RedisServer,
) -> None:
    def fail(message: bytes) -> None:
        raise ZeroDivisionError

    class Slow(RedisBus):
        """A bus during whose trimming another group joins."""

        def _find_first_open(self, stream: str, group: dict[str, Any]) -> tuple[int, int]:
            first = super()._find_first_open(stream, group)
            if "ordinary" in stream:
                with redis_bus(redis_server) as other, suppress(ZeroDivisionError):
                    other.consume(TOPIC, "late", fail)
            return first

    slow = Slow(redis_server.url)
    with redis_bus(redis_server) as bus:
        publish(bus, b"1", b"2")
        assert consume(slow) == [b"1", b"2"]
        assert consume(bus, "late") == [b"1", b"2"]
    slow.close()


def test_a_server_that_is_killed_and_started_again_has_all_that_was_published(
    own_redis_server: RedisServer,
) -> None:
    with redis_bus(own_redis_server) as bus:
        publish(bus, *(str(index).encode() for index in range(100)))
        own_redis_server.kill()
        with pytest.raises(PublishError, match="127") as raised:
            publish(bus, b"refused")
        assert raised.value.topic == TOPIC
        with pytest.raises(PublishError, match="127"):
            consume(bus)
        own_redis_server.start()
        publish(bus, b"after")
        assert consume(bus) == [*(str(index).encode() for index in range(100)), b"after"]


def test_a_server_that_dies_while_a_message_is_handled_hands_it_out_again(
    own_redis_server: RedisServer,
) -> None:
    with redis_bus(own_redis_server, claim_after_s=0.2) as bus:
        publish(bus, b"1", b"2")
        with pytest.raises(PublishError):
            bus.consume(TOPIC, "group", lambda message: own_redis_server.kill())
        own_redis_server.start()
        time.sleep(0.25)

        def fail(message: bytes) -> None:
            own_redis_server.kill()
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):  # and not that it could not be released
            bus.consume(TOPIC, "group", fail)
        own_redis_server.start()
        time.sleep(0.25)
        assert consume(bus) == [b"1", b"2"]


def test_a_bus_is_made_without_its_server_and_a_hanging_one_is_given_up(
    own_redis_server: RedisServer,
) -> None:
    own_redis_server.kill()
    with redis_bus(own_redis_server) as bus:
        own_redis_server.start()
        publish(bus, b"1")
        own_redis_server.freeze()
        started = time.monotonic()
        with pytest.raises(PublishError, match="Timeout"):
            publish(bus, b"perhaps")
        assert time.monotonic() - started < 30.0
        own_redis_server.thaw()
        assert consume(bus)[0] == b"1"


def test_a_server_that_is_full_refuses(own_redis_server: RedisServer) -> None:
    with redis_bus(own_redis_server) as bus, Redis.from_url(own_redis_server.url) as client:
        publish(bus, b"1")
        client.config_set("maxmemory", "1")
        with pytest.raises(PublishError, match="maxmemory"):
            publish(bus, b"2")
        client.config_set("maxmemory", "0")
        assert consume(bus) == [b"1"]


def test_what_others_write_to_a_stream_is_refused_by_the_reader_and_holds_nothing_up(
    redis_server: RedisServer,
) -> None:
    refused: list[Exception] = []
    reader = ReportReader(
        pytest.fail, secrets=[Secret(SECRET)], refuse=lambda error, _: refused.append(error)
    )
    with redis_bus(redis_server) as bus, Redis.from_url(redis_server.url) as client:
        bus.publish(FIELD_REPORTS, b"forged", Priority.NORMAL)
        (stream,) = client.keys("tamiyo:bus:*")
        client.xadd(stream, {"another": "field"})
        assert bus.consume(FIELD_REPORTS, "group", reader) == 2
    assert len(refused) == 2


def test_passwords_are_never_shown_and_a_bad_url_is_a_configuration_error(
    redis_server: RedisServer,
) -> None:
    bus = RedisBus(redis_server.url.replace("redis://", "redis://user:hunter2@"))
    with pytest.raises(PublishError) as refused:
        publish(bus, b"1")
    shown = str(refused.value) + repr(refused.value.context) + repr(bus)
    assert "hunter2" not in shown
    assert f"127.0.0.1:{redis_server.port}" in shown
    with pytest.raises(ConfigurationError, match="cannot be read"):
        RedisBus("http://user:hunter2@nowhere")


def test_without_redis_py_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "redis", None)
    with pytest.raises(ConfigurationError, match=r"RedisBus .* tamiyo_jax\[redis\]"):
        RedisBus("redis://127.0.0.1:1/0")


def test_a_controller_whose_bus_is_killed_and_comes_back_gets_every_report_through(
    own_redis_server: RedisServer, tmp_path: Path
) -> None:
    config = make_config(publishing={"backoff_ms": 20.0, "multiplier": 1.0, "max_retries": 10_000})
    seen: list[str] = []
    reader = ReportReader(
        lambda report: seen.append(report.report_id), secrets=[Secret(SECRET)], refuse=pytest.fail
    )
    reports: list[str] = []
    run = tmp_path / "run"
    with redis_bus(own_redis_server) as bus, redis_bus(own_redis_server) as consumer:
        arguments = {"config": config, "clock": time.time_ns, "bus": bus}
        with open_tamiyo(run, **arguments) as tamiyo:
            for step in range(60):
                if step in (20, 40):
                    own_redis_server.kill()
                if step in (30, 50):
                    own_redis_server.start()
                    consumer.consume(FIELD_REPORTS, "analysis", reader)
                reports.append(tamiyo.step(make_packet(step)).report_id)
            until = time.monotonic() + 30.0
            while recover_facts(read_journal(run)).pending:
                assert time.monotonic() < until, "reports are still pending"
                time.sleep(0.01)
        consumer.consume(FIELD_REPORTS, "analysis", reader)
    assert sorted(seen) == sorted(reports)
    assert len(set(seen)) == 60
    retries = [record for record in read_journal(run).records if record.type is RecordType.RETRY]
    assert retries, "the bus never failed"


def run_consumer(url: str, what: str) -> None:
    """The child of tests above: a consumer that prints its share, or is killed over the first."""

    def handle(message: bytes) -> None:
        if what == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        sys.stdout.write(f"{message.decode()}\n")
        time.sleep(0.01)

    bus = RedisBus(url)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    sys.stdin.readline()
    bus.consume(TOPIC, "group", handle)
    bus.close()


if __name__ == "__main__":
    run_consumer(*sys.argv[1:])
