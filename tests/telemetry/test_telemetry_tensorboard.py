"""What TensorBoard reads: event files of real runs, parsed record by record."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from telemetry_runs import DECISIONS, FAILED_AT, eventful_run, values
from tensorboardX import SummaryWriter
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.record_writer import masked_crc32c

from tamiyo_jax.contracts import TelemetryPacket
from tamiyo_jax.telemetry import TensorBoardSink


def read(directory: Path) -> Iterator[Event]:
    """Records of TFRecord files: length, its checksum, the event, its checksum."""
    for path in sorted(directory.iterdir()):
        data = path.read_bytes()
        while data:
            length, checksum = struct.unpack("<QI", data[:12])
            payload, tail = data[12 : 12 + length], data[12 + length : 16 + length]
            assert checksum == masked_crc32c(data[:8])
            assert struct.unpack("<I", tail) == (masked_crc32c(payload),)
            yield Event.FromString(payload)
            data = data[16 + length :]


Run = tuple[list[TelemetryPacket], list[Event]]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    directory = tmp_path_factory.mktemp("tensorboard")
    writer = SummaryWriter(str(directory / "board"))
    packets = eventful_run(directory / "run", (TensorBoardSink(writer),))
    writer.close()
    return packets, [event for event in read(directory / "board") if event.summary.value]


def curve(events: list[Event], tag: str) -> list[tuple[int, float]]:
    points = [(event.step, value) for event in events for value in event.summary.value]
    return [(step, value.simple_value) for step, value in points if value.tag == tag]


def test_metrics_are_curves_over_the_steps_of_the_optimiser(run: Run) -> None:
    packets, events = run
    latency = curve(events, "tamiyo/step/latency_ms")
    assert [step for step, _ in latency] == [10 * step for step in range(DECISIONS)]
    reported = values(packets, "tamiyo.step.latency_ms")
    assert [value for _, value in latency] == pytest.approx(reported)
    assert math.isnan(curve(events, "tamiyo/validation_loss")[-1][1])


def test_every_metric_of_every_packet_is_there_under_the_packets_own_time(run: Run) -> None:
    packets, events = run
    scalars = [e for e in events if not e.summary.value[0].metadata.plugin_data.plugin_name]
    assert len(scalars) == sum(len(packet.metrics) for packet in packets)
    assert {scalar.wall_time for scalar in scalars} == {
        packet.timestamp_ns / 1e9 for packet in packets if packet.metrics
    }
    assert all(event.summary.value[0].tag.startswith("tamiyo/") for event in events)


def test_events_are_texts_at_their_step(run: Run) -> None:
    packets, events = run
    texts = {
        value.tag: (event.step, value.tensor.string_val[0].decode())
        for event in events
        for value in event.summary.value
        if value.metadata.plugin_data.plugin_name == "text"
    }
    step, failed = texts["tamiyo/events/step_failed/text_summary"]
    assert step == FAILED_AT
    assert failed.startswith("**CRITICAL**\n\n- ")
    assert "nowhere" in failed
    step, _ = texts["tamiyo/events/mode_changed/text_summary"]
    assert step == FAILED_AT  # between two steps: at the one before
    events = [event for packet in packets for event in packet.events]
    acted = {e.attributes["action"] for e in events if e.name == "decision"}
    assert {tag.split("/")[2] for tag in texts if "/events/" in tag} | {"decision"} == {
        event.name for event in events
    }
    assert {tag.split("/")[2] for tag in texts if "/decisions/" in tag} == acted
