"""The contract of all sinks: each can be read back, and holds every action of an eventful run.

The run has a growth, a loss that is NaN, and a disk that is full. The expected actions are those
that the controller returned.
"""

from __future__ import annotations

import errno
import json
import os
import re
import struct
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from making import SECRET, make_packet, make_seed, open_tamiyo

from tamiyo_jax.bus import MemoryBus, open_envelope
from tamiyo_jax.contracts import Secret, SeedStage, TelemetryPacket, decode_telemetry
from tamiyo_jax.decision import Decision
from tamiyo_jax.errors import PersistenceError
from tamiyo_jax.telemetry import (
    TELEMETRY,
    BusSink,
    JsonLinesSink,
    MemorySink,
    OpenTelemetrySink,
    PrometheusSink,
    Sink,
    TensorBoardSink,
    WandbSink,
)

Found = set[tuple[str, str]]
"""What was read back: ("decision", action) and ("event", name)."""


class Opened(NamedTuple):
    """A sink, and how to read it back once the controller was closed."""

    sink: Sink
    read: Callable[[], Found]


def decisions_of(packets: list[TelemetryPacket]) -> Found:
    events = [event for packet in packets for event in packet.events]
    acted = {("decision", e.attributes["action"]) for e in events if e.name == "decision"}
    return acted | {("event", e.name) for e in events}


@contextmanager
def memory(directory: Path) -> Iterator[Opened]:
    sink = MemorySink()
    yield Opened(sink, lambda: decisions_of(list(sink.packets)))


@contextmanager
def json_lines(directory: Path) -> Iterator[Opened]:
    path = directory / "telemetry.jsonl"

    def read() -> Found:
        events = [e for line in path.read_text().splitlines() for e in json.loads(line)["events"]]
        acted = {("decision", e["attributes"].get("action", "")) for e in events}
        return {pair for pair in acted if pair[1]} | {("event", e["name"]) for e in events}

    yield Opened(JsonLinesSink(path), read)


@contextmanager
def bus(directory: Path) -> Iterator[Opened]:
    secret, queue = Secret(SECRET), MemoryBus()

    def read() -> Found:
        envelopes: list[bytes] = []
        queue.consume(TELEMETRY, "dashboards", envelopes.append)
        opened = [open_envelope(TELEMETRY, envelope, [secret]) for envelope in envelopes]
        return decisions_of([decode_telemetry(payload) for payload in opened])

    yield Opened(BusSink(queue, secret), read)


@contextmanager
def prometheus(directory: Path) -> Iterator[Opened]:
    from prometheus_client import CollectorRegistry, start_http_server
    from prometheus_client.parser import text_string_to_metric_families

    registry = CollectorRegistry()
    server, thread = start_http_server(0, "127.0.0.1", registry=registry)

    def read() -> Found:
        url = f"http://127.0.0.1:{server.server_port}/metrics"
        with urllib.request.urlopen(url, timeout=10) as response:
            text = response.read().decode()
        samples = [s for family in text_string_to_metric_families(text) for s in family.samples]
        acted = [s.labels for s in samples if s.name == "tamiyo_decisions_total"]
        assert all(labels["reason"] for labels in acted)
        found = {("decision", labels["action"]) for labels in acted}
        counted = [s.labels["event"] for s in samples if s.name == "tamiyo_events_total"]
        return found | {("event", name) for name in counted}

    try:
        yield Opened(PrometheusSink(registry), read)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def opentelemetry(directory: Path) -> Iterator[Opened]:
    from opentelemetry.sdk._logs import LoggerProvider
    from opentelemetry.sdk._logs.export import InMemoryLogRecordExporter, SimpleLogRecordProcessor
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import InMemoryMetricReader
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    reader, records, spans = (
        InMemoryMetricReader(),
        InMemoryLogRecordExporter(),
        InMemorySpanExporter(),
    )
    meters = MeterProvider([reader], shutdown_on_exit=False)
    logs = LoggerProvider(shutdown_on_exit=False)
    logs.add_log_record_processor(SimpleLogRecordProcessor(records))
    tracers = TracerProvider(shutdown_on_exit=False)
    tracers.add_span_processor(SimpleSpanProcessor(spans))

    def read() -> Found:
        facts = [dict(span.attributes or {}) for span in spans.get_finished_spans()]
        traced = {("decision", str(f["tamiyo.action"])) for f in facts if "tamiyo.action" in f}
        logged = [log.log_record for log in records.get_finished_logs()]
        acted = {
            ("decision", str((record.attributes or {})["tamiyo.action"]))
            for record in logged
            if record.body == "decision"
        }
        assert acted <= traced
        return acted | {("event", str(record.body)) for record in logged}

    try:
        yield Opened(OpenTelemetrySink(meters, logs, tracers), read)
    finally:
        meters.shutdown()
        logs.shutdown()
        tracers.shutdown()


@contextmanager
def tensorboard(directory: Path) -> Iterator[Opened]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboardX import SummaryWriter

    writer = SummaryWriter(str(directory / "board"))

    def read() -> Found:
        writer.close()
        everything = {"tensors": 0, "scalars": 0}
        reader = EventAccumulator(str(directory / "board"), size_guidance=everything)
        reader.Reload()
        tags = [tag.split("/") for tag in reader.Tags()["tensors"]]
        kinds = {"decisions": "decision", "events": "event"}
        return {(kinds[tag[1]], tag[2]) for tag in tags if tag[1] in kinds}

    yield Opened(TensorBoardSink(writer), read)


def wandb_records(directory: Path) -> Iterator[Any]:
    """Records of W&B's offline file: LevelDB's log format, in blocks of 32 KiB after 7 bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    (path,) = directory.glob("wandb/offline-run-*/run-*.wandb")
    data, at, parts = path.read_bytes(), 7, b""
    assert data[:4] == b":W&B"
    while at + 7 <= len(data):
        room = 32768 - at % 32768
        if room < 7:
            at += room
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        if at + 7 + length > len(data):
            return  # still being written
        parts += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in {1, 4}:  # whole, or the last part
            yield Record.FromString(parts)
            parts = b""


@contextmanager
def wandb(directory: Path) -> Iterator[Opened]:
    import wandb as library

    settings = library.Settings(
        silent=True, disable_git=True, disable_code=True, x_disable_stats=True
    )
    run = library.init(mode="offline", dir=str(directory), project="tamiyo", settings=settings)

    def read() -> Found:
        run.finish()
        until = time.monotonic() + 60.0
        while not any(item.HasField("exit") for item in wandb_records(directory)):
            assert time.monotonic() < until, "the file has no end"
            time.sleep(0.1)  # another process writes it
        items = [item for record in wandb_records(directory) for item in record.history.item]
        names = ["/".join(item.nested_key) or item.key for item in items]
        kinds = {"decisions": "decision", "events": "event"}
        found = [re.fullmatch(r"tamiyo/(decisions|events)/(\w+)", name) for name in names]
        return {(kinds[match[1]], match[2]) for match in found if match}

    try:
        yield Opened(WandbSink(run), read)
    finally:
        run.finish()


SINKS = {
    sink.__name__: sink
    for sink in (memory, json_lines, bus, prometheus, opentelemetry, tensorboard, wandb)
}


def run_with_trouble(
    directory: Path, sink: Sink, monkeypatch: pytest.MonkeyPatch
) -> list[Decision]:
    """A growth, a loss that is NaN, and a disk that is full."""
    decisions: list[Decision] = []

    def full(descriptor: int, data: memoryview) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with open_tamiyo(directory, sinks=(sink,)) as tamiyo:
        for step in range(7):
            seed = make_seed("s0", SeedStage.DORMANT if step < 6 else SeedStage.GERMINATED)
            decisions.append(tamiyo.step(make_packet(step, seeds=(seed,))))
        nan = {"validation_loss": float("nan"), "restorable_checkpoint": "step-60"}
        decisions.append(tamiyo.step(make_packet(7, **nan)))
        decisions.append(tamiyo.step(make_packet(8)))
        assert decisions[-1].ticket.wait(30.0)
        with monkeypatch.context() as disk:
            disk.setattr(os, "write", full)
            with pytest.raises(PersistenceError, match="disk is full"):
                tamiyo.step(make_packet(9))
        assert tamiyo._parts.telemetry.flush(30.0)
        assert tamiyo._parts.telemetry.dropped == 0
    return decisions


@pytest.mark.parametrize("name", SINKS)
def test_a_sink_holds_every_action_of_a_run_with_a_growth_a_nan_and_a_full_disk(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with SINKS[name](tmp_path) as (sink, read):
        decisions = run_with_trouble(tmp_path / "run", sink, monkeypatch)
        found = read()
    acted = {decision.action for decision in decisions if decision.command is not None}
    assert {"GERMINATE", "ADVANCE", "ROLLBACK", "PAUSE"} <= acted
    assert {("decision", action) for action in acted} <= found
    assert {("event", "nonfinite_loss"), ("event", "persistence_failure")} <= found
