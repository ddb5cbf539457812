"""Telemetry over buses: whole, signed, urgent first, and no worry of any step."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest
from making import SECRET, make_packet, open_tamiyo
from redis_server import RedisServer
from telemetry_runs import eventful_run

from tamiyo_jax.bus import Bus, MemoryBus, RedisBus
from tamiyo_jax.bus._memory import open_envelope
from tamiyo_jax.contracts import (
    HealthStatus,
    Secret,
    SystemHealth,
    TelemetryLevel,
    TelemetryPacket,
    decode_telemetry,
)
from tamiyo_jax.errors import SignatureError
from tamiyo_jax.telemetry import TELEMETRY, BusSink, MemorySink

MINE = Secret(SECRET)


def received(bus: Bus, secret: Secret = MINE) -> list[TelemetryPacket]:
    packets: list[TelemetryPacket] = []
    bus.consume(
        TELEMETRY,
        "watchers",
        lambda envelope: packets.append(
            decode_telemetry(open_envelope(TELEMETRY, envelope, (secret,)))
        ),
    )
    return packets


def by_id(packets: list[TelemetryPacket]) -> dict[str, str]:
    # As text, where a loss that is NaN equals itself.
    return {packet.packet_id: json.dumps(asdict(packet), sort_keys=True) for packet in packets}


@pytest.mark.parametrize("kind", ["memory", "redis"])
def test_all_packets_of_a_run_arrive(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if kind == "redis":
        server: RedisServer = request.getfixturevalue("redis_server")
        bus = RedisBus(server.url)
    else:
        bus = MemoryBus()
    sent = eventful_run(tmp_path, (BusSink(bus, MINE),), bus=bus)
    assert by_id(received(bus)) == by_id(sent)
    if isinstance(bus, RedisBus):
        bus.close()


def test_who_does_not_know_the_secret_cannot_have_sent_it(tmp_path: Path) -> None:
    bus = MemoryBus()
    eventful_run(tmp_path, (BusSink(bus, MINE),))
    with pytest.raises(SignatureError):
        received(bus, Secret(b"another secret, long enough"))


def test_the_critical_overtakes_the_rest() -> None:
    bus = MemoryBus()
    sink = BusSink(bus, MINE)
    packet: Callable[..., TelemetryPacket] = lambda name, level, **facts: TelemetryPacket(  # noqa: E731
        name, 1, level, (), (), SystemHealth(HealthStatus.HEALTHY, "", facts)
    )
    sink.emit(packet("ordinary", TelemetryLevel.INFO))
    sink.emit(packet("a rule's", TelemetryLevel.WARNING, priority="HIGH"))
    sink.emit(packet("decided", TelemetryLevel.WARNING, priority="NORMAL"))
    sink.emit(packet("failed", TelemetryLevel.CRITICAL))
    order = [packet.packet_id for packet in received(bus)]
    assert order == ["a rule's", "failed", "ordinary", "decided"]


def test_a_bus_that_refuses_costs_its_packets_and_nothing_else(tmp_path: Path) -> None:
    memory = MemorySink()
    sinks = (BusSink(MemoryBus(capacity=2), MINE), memory)
    with open_tamiyo(tmp_path, sinks=sinks) as tamiyo:
        for step in range(6):
            tamiyo.step(make_packet(step))
        telemetry = tamiyo._parts.telemetry
        assert telemetry.flush(30.0)
        assert telemetry.dropped == len(memory.packets) - 2
        assert len([packet for packet in memory.packets if packet.metrics]) == 6
