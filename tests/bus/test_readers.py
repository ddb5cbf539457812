"""Consumers refuse what is forged, keep it for a person to look at, and go on."""

from __future__ import annotations

from pathlib import Path

import pytest
from making import SECRET, make_packet, open_tamiyo
from redis import Redis
from redis_server import RedisServer

from tamiyo_jax.bus import FIELD_REPORTS, EnvelopeReader, RedisBus, ReportReader, seal
from tamiyo_jax.contracts import FieldReport, Priority, Secret, TelemetryPacket, decode_telemetry
from tamiyo_jax.telemetry import TELEMETRY, BusSink

MINE = Secret(SECRET)
STRANGER = Secret(b"a secret of another, long enough")


@pytest.mark.parametrize("topic", [TELEMETRY, FIELD_REPORTS])
def test_forged_messages_go_to_the_dead_letters_and_hold_nothing_up(
    topic: str, tmp_path: Path, redis_server: RedisServer
) -> None:
    bus = RedisBus(redis_server.url)
    forged = [b"", b"\xff" * 99, seal(topic, b"\xff\xff", MINE), seal(topic, b"", STRANGER)]
    for message in forged:
        bus.publish(topic, message, Priority.CRITICAL)
    with Redis.from_url(redis_server.url) as client:
        client.xadd(f"tamiyo:bus:ordinary:{topic}", {"another": "program"})
    with open_tamiyo(tmp_path, sinks=(BusSink(bus, MINE),), bus=bus) as tamiyo:
        tamiyo.step(make_packet(0))
        tamiyo.publish()
    seen: list[TelemetryPacket | FieldReport] = []
    refuse = bus.dead_letters(topic)
    reader = (
        EnvelopeReader(topic, decode_telemetry, seen.append, secrets=[MINE], refuse=refuse)
        if topic == TELEMETRY
        else ReportReader(seen.append, secrets=[MINE], refuse=refuse)
    )
    assert bus.consume(topic, "dashboards", reader) == len(forged) + 1 + len(seen)
    assert seen
    with Redis.from_url(redis_server.url) as client:
        letters = [fields for _, fields in client.xrange(f"tamiyo:bus:dead:{topic}")]
    assert sorted(letter[b"payload"] for letter in letters) == sorted([*forged, b""])
    errors = {letter[b"error"] for letter in letters}
    assert errors - {b"InvalidMessageError", b"InvalidReportError"} == {b"SignatureError"}
    assert all(letter[b"message"] for letter in letters)
    bus.close()


def test_dead_letters_are_bounded_and_the_newest_are_kept(redis_server: RedisServer) -> None:
    bus = RedisBus(redis_server.url)
    reader = ReportReader(
        pytest.fail, secrets=[MINE], refuse=bus.dead_letters(FIELD_REPORTS, capacity=3)
    )
    for index in range(10):
        reader(b"forged %d" % index)
    with Redis.from_url(redis_server.url) as client:
        letters = client.xrange(f"tamiyo:bus:dead:{FIELD_REPORTS}")
    assert [fields[b"payload"] for _, fields in letters] == [b"forged 7", b"forged 8", b"forged 9"]
    bus.close()
