"""What holds for every sink, and that none needs its library before it is made."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from making import SECRET, make_blueprint, make_packet, open_tamiyo
from telemetry_runs import DECISIONS, eventful_run

from tamiyo_jax.bus import MemoryBus
from tamiyo_jax.contracts import Secret
from tamiyo_jax.library import SqliteBlueprintLibrary
from tamiyo_jax.telemetry import (
    BusSink,
    JsonLinesSink,
    MemorySink,
    OpenTelemetrySink,
    PrometheusSink,
    Sink,
    TensorBoardSink,
)


def prometheus(directory: Path) -> Sink:
    from prometheus_client import CollectorRegistry

    return PrometheusSink(CollectorRegistry())


def opentelemetry(directory: Path) -> Sink:
    from opentelemetry.sdk._logs import LoggerProvider
    from opentelemetry.sdk.metrics import MeterProvider

    return OpenTelemetrySink(
        MeterProvider(shutdown_on_exit=False), LoggerProvider(shutdown_on_exit=False)
    )


def tensorboard(directory: Path) -> Sink:
    from tensorboardX import SummaryWriter

    return TensorBoardSink(SummaryWriter(str(directory / "board")))


SINKS: dict[str, Callable[[Path], Sink]] = {
    "memory": lambda directory: MemorySink(),
    "json lines": lambda directory: JsonLinesSink(directory / "telemetry.jsonl"),
    "prometheus": prometheus,
    "opentelemetry": opentelemetry,
    "tensorboard": tensorboard,
    "bus": lambda directory: BusSink(MemoryBus(), Secret(SECRET)),
}


@pytest.mark.parametrize("make", SINKS.values(), ids=SINKS)
def test_a_sink_takes_every_packet_that_a_controller_emits(
    make: Callable[[Path], Sink], tmp_path: Path
) -> None:
    packets = eventful_run(tmp_path / "run", (make(tmp_path),))  # which looks that none is lost
    assert len([packet for packet in packets if packet.metrics]) == DECISIONS


@pytest.mark.parametrize("make", SINKS.values(), ids=SINKS)
def test_a_sink_may_be_handed_to_one_controller_after_the_other(
    make: Callable[[Path], Sink], tmp_path: Path
) -> None:
    sink = make(tmp_path)
    for _ in range(2):
        with open_tamiyo(tmp_path / "run", sinks=(sink,)) as tamiyo:
            tamiyo.step(make_packet())
            assert tamiyo._parts.telemetry.flush(30.0)
            assert tamiyo._parts.telemetry.dropped == 0


def test_making_a_sink_without_its_library_says_what_to_install() -> None:
    code = """
import sys
for name in ("prometheus_client", "opentelemetry", "tensorboardX"):
    sys.modules[name] = None  # as if it were not installed
from tamiyo_jax.errors import ConfigurationError
from tamiyo_jax.telemetry import OpenTelemetrySink, PrometheusSink
for make in (lambda: PrometheusSink(None), lambda: OpenTelemetrySink(None, None)):
    try:
        make()
    except ConfigurationError as error:
        print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        "PrometheusSink needs prometheus_client; install tamiyo_jax[telemetry]",
        "OpenTelemetrySink needs opentelemetry-sdk; install tamiyo_jax[telemetry]",
    ]


def test_steps_go_on_while_an_exporter_hangs(tmp_path: Path) -> None:
    from opentelemetry.sdk._logs import LoggerProvider
    from opentelemetry.sdk._logs.export import LogRecordExporter, SimpleLogRecordProcessor
    from opentelemetry.sdk.metrics import MeterProvider

    release = threading.Event()

    class Hanging(LogRecordExporter):
        def export(self, batch: Any) -> Any:
            release.wait(60)

        def shutdown(self) -> None: ...

        def force_flush(self, timeout_millis: int = 0) -> bool:
            return True

    logs, memory = LoggerProvider(shutdown_on_exit=False), MemorySink()
    logs.add_log_record_processor(SimpleLogRecordProcessor(Hanging()))
    sink = OpenTelemetrySink(MeterProvider(shutdown_on_exit=False), logs)
    with open_tamiyo(tmp_path, sinks=(sink, memory)) as tamiyo:
        tamiyo.set_mode("guard")  # an event
        tamiyo.set_mode("shadow")
        for step in range(5):
            tamiyo.step(make_packet(step))
        assert not tamiyo._parts.telemetry.flush(0.0)  # the sink is still at the first event
        until = time.monotonic() + 30.0
        while len(memory.packets) < 7:
            assert time.monotonic() < until, "the other sink waits too"
            time.sleep(0.01)
        release.set()
        assert tamiyo._parts.telemetry.flush(30.0)
        assert tamiyo._parts.telemetry.dropped == 0


def test_a_step_reports_the_workers_that_fetch_blueprints(tmp_path: Path) -> None:
    memory, library = MemorySink(), SqliteBlueprintLibrary(tmp_path / "blueprints.db")
    for name in ("host", "grow-a", "grow-b"):
        library.put(make_blueprint(name))
    arguments: dict[str, Any] = {"library": library, "mode": "guard", "isolation": "process"}
    with open_tamiyo(tmp_path / "run", sinks=(memory,), **arguments) as tamiyo:
        tamiyo.step(make_packet())
        assert tamiyo._parts.telemetry.flush(30.0)
    reported = {m.name: m.value for packet in memory.packets for m in packet.metrics}
    assert reported["tamiyo.metadata_worker.restarts"] == 0.0
    assert 0.0 <= reported["tamiyo.metadata_worker.spares_ready"] <= 1.0
    assert "tamiyo.worker.restarts" not in reported  # on guard no policy runs
