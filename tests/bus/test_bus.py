"""Buses deliver at least once, to every group; envelopes are believed only when signed."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from summaries import consume_all

from tamiyo_jax.bus import Bus, MemoryBus, RedisBus, seal
from tamiyo_jax.bus._memory import open_envelope
from tamiyo_jax.contracts import Priority, Secret
from tamiyo_jax.errors import PublishError, SignatureError

SECRET = Secret(b"a secret of tests, long enough")
OTHER = Secret(b"another secret, just as long")
TOPIC = "a topic"


@pytest.fixture(params=["memory", "redis"])
def bus(request: pytest.FixtureRequest) -> Iterator[Bus]:
    """A bus of each kind, with nothing on it."""
    if request.param == "memory":
        yield MemoryBus()
        return
    redis_bus = RedisBus(request.getfixturevalue("redis_server").url)
    yield redis_bus
    redis_bus.close()


def publish(bus: Bus, *messages: bytes, priority: Priority = Priority.NORMAL) -> None:
    for message in messages:
        bus.publish(TOPIC, message, priority)


def consume(bus: Bus, group: str, topic: str = TOPIC) -> list[bytes]:
    return consume_all(bus, topic, group)


def test_every_group_gets_every_message_once_and_in_order(bus: Bus) -> None:
    publish(bus, b"1", b"2")
    assert consume(bus, "first") == [b"1", b"2"]
    assert consume(bus, "second") == []
    publish(bus, b"3", b"4")
    assert consume(bus, "second") == [b"3", b"4"]
    assert consume(bus, "first") == [b"3", b"4"]
    assert consume(bus, "first") == consume(bus, "first", "another topic") == []


def test_a_message_whose_handler_raised_waits_for_its_group_again(bus: Bus) -> None:
    publish(bus, b"1", b"2", b"3")
    seen: list[bytes] = []

    def handle(message: bytes) -> None:
        if message == b"2" and seen.count(b"2") < 2:
            seen.append(message)
            raise ZeroDivisionError
        seen.append(message)

    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            bus.consume(TOPIC, "group", handle)
    assert bus.consume(TOPIC, "group", handle) == 2
    assert seen == [b"1", b"2", b"2", b"2", b"3"]


def test_urgent_messages_overtake_others_and_keep_their_own_order(bus: Bus) -> None:
    publish(bus, b"1", priority=Priority.LOW)
    publish(bus, b"2", priority=Priority.NORMAL)
    publish(bus, b"3", priority=Priority.HIGH)
    publish(bus, b"4", priority=Priority.CRITICAL)
    publish(bus, b"5", priority=Priority.HIGH)
    assert consume(bus, "group") == [b"3", b"4", b"5", b"1", b"2"]


def test_an_urgent_message_overtakes_one_whose_handler_raised(bus: Bus) -> None:
    publish(bus, b"1", b"2")

    def fail(message: bytes) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        bus.consume(TOPIC, "group", fail)
    publish(bus, b"3", priority=Priority.HIGH)
    assert consume(bus, "group") == [b"3", b"1", b"2"]


def test_what_a_handler_publishes_is_consumed_too_and_urgent_news_comes_next(bus: Bus) -> None:
    publish(bus, b"1", b"2")
    seen: list[bytes] = []

    def handle(message: bytes) -> None:
        seen.append(message)
        if message == b"1":
            publish(bus, b"3")
            publish(bus, b"4", priority=Priority.CRITICAL)

    assert bus.consume(TOPIC, "group", handle) == 4
    assert seen == [b"1", b"4", b"2", b"3"]


@pytest.mark.parametrize("size", [0, 1, 1 << 20])
def test_any_bytes_arrive_as_they_were(bus: Bus, size: int) -> None:
    payload = bytes(range(256)) * (size // 256 + 1)
    publish(bus, payload[:size])
    assert consume(bus, "group") == [payload[:size]]


def test_topics_and_groups_of_any_name_keep_apart(bus: Bus) -> None:
    names = ["a", "a:b", "{a}", "emergency:a", "ein Übel 🌱", ""]
    for name in names:
        bus.publish(name, name.encode(), Priority.NORMAL)
        bus.publish(name, b"urgent", Priority.HIGH)
    for name in names:
        assert consume(bus, name, topic=name) == [b"urgent", name.encode()]


def test_a_full_bus_in_memory_refuses_and_loses_nothing_it_took() -> None:
    bus = MemoryBus(capacity=2)
    publish(bus, b"1", b"2")
    with pytest.raises(PublishError, match="a first consumer") as raised:
        publish(bus, b"3")
    assert raised.value.capacity == 2
    assert consume(bus, "fast") == [b"1", b"2"]
    consume(bus, "slow")
    publish(bus, b"4", b"5")
    assert consume(bus, "fast") == [b"4", b"5"]
    with pytest.raises(PublishError, match="slow"):
        publish(bus, b"6")
    assert consume(bus, "fast") == []  # a refused message reaches no group
    assert consume(bus, "slow") == [b"4", b"5"]


def test_consumers_of_one_group_share_its_messages(bus: Bus) -> None:
    consume(bus, "group")
    seen: list[bytes] = []
    done = threading.Event()

    def consume_until_empty() -> None:
        while not done.is_set():
            bus.consume(TOPIC, "group", seen.append)
        bus.consume(TOPIC, "group", seen.append)

    threads = [threading.Thread(target=consume_until_empty) for _ in range(4)]
    for thread in threads:
        thread.start()
    messages = [str(index).encode() for index in range(400)]
    publish(bus, *messages)
    done.set()
    for thread in threads:
        thread.join()
    assert sorted(seen) == sorted(messages)


@given(st.text(), st.binary())
def test_an_envelope_opens_to_its_payload_with_any_of_the_keys(topic: str, payload: bytes) -> None:
    envelope = seal(topic, payload, SECRET)
    assert open_envelope(topic, envelope, [SECRET]) == payload
    assert open_envelope(topic, envelope, [OTHER, SECRET]) == payload


@given(payload=st.binary(), place=st.integers(0, 10**6), bit=st.integers(0, 7))
def test_an_envelope_with_any_bit_changed_does_not_open(
    payload: bytes, place: int, bit: int
) -> None:
    altered = bytearray(seal(TOPIC, payload, SECRET))
    altered[place % len(altered)] ^= 1 << bit
    with pytest.raises(SignatureError):
        open_envelope(TOPIC, bytes(altered), [SECRET])


def test_an_envelope_of_another_key_or_topic_or_cut_short_does_not_open() -> None:
    envelope = seal(TOPIC, b"payload", SECRET)
    for topic, given_envelope, secrets in (
        (TOPIC, envelope, [OTHER]),
        ("another topic", envelope, [SECRET]),
        (TOPIC, b"", [SECRET]),
        (TOPIC, envelope[:-1], [SECRET]),
        (TOPIC, envelope[:40], [SECRET]),
        (TOPIC, b"payload", [SECRET]),
    ):
        with pytest.raises(SignatureError):
            open_envelope(topic, given_envelope, secrets)
