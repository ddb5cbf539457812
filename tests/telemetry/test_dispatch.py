"""Sinks that work, are slow, fail, or are broken."""

from __future__ import annotations

import contextlib
import json
import math
import signal
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from tamiyo_jax.contracts import HealthStatus, Metric, SystemHealth, TelemetryLevel, TelemetryPacket
from tamiyo_jax.telemetry import JsonLinesSink, MemorySink, Telemetry
from tamiyo_jax.telemetry._dispatch import QUEUE_PACKETS


def packet(number: int) -> TelemetryPacket:
    health = SystemHealth(HealthStatus.HEALTHY, "fine", {})
    return TelemetryPacket(str(number), 1, TelemetryLevel.INFO, (), (), health)


class Full:
    def emit(self, packet: TelemetryPacket) -> None:
        raise OSError("no space left on device")


class Broken:
    def emit(self, packet: TelemetryPacket) -> None:
        raise KeyError("a mistake in a sink")


class Stuck:
    def __init__(self) -> None:
        self.release = threading.Event()

    def emit(self, packet: TelemetryPacket) -> None:
        self.release.wait(60)


def test_a_sink_that_cannot_write_loses_its_packets_and_no_other_sink_does() -> None:
    memory = MemorySink()
    telemetry = Telemetry((Full(), memory))
    for number in range(10):
        telemetry.emit(packet(number))
    telemetry.close()
    assert [packet.packet_id for packet in memory.packets] == [str(number) for number in range(10)]
    assert telemetry.dropped == 10


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_broken_sink_is_given_up_and_no_other_sink_waits_for_it() -> None:
    memory = MemorySink()
    telemetry = Telemetry((Broken(), memory))
    for number in range(10):
        telemetry.emit(packet(number))
        assert telemetry.flush(10.0)
    telemetry.close()
    assert len(memory.packets) == 10
    assert telemetry.dropped == 9  # all but the one that broke it


def test_a_slow_sink_delays_no_step_and_loses_the_oldest_packets() -> None:
    memory, stuck = MemorySink(), Stuck()
    telemetry = Telemetry((stuck, memory))
    count = QUEUE_PACKETS + 100
    for number in range(count):
        telemetry.emit(packet(number))
        assert telemetry.flush(0.0) in (True, False)
    telemetry._channels[1].flush(10.0)
    assert memory.packets[-1].packet_id == str(count - 1)
    assert telemetry.metric().value >= 99
    stuck.release.set()
    telemetry.close()


def test_json_lines_are_one_packet_each(tmp_path: Path) -> None:
    telemetry = Telemetry((JsonLinesSink(tmp_path / "t.jsonl"),))
    telemetry.emit(packet(1))
    telemetry.emit(packet(2))
    telemetry.close()
    assert len((tmp_path / "t.jsonl").read_text().splitlines()) == 2


def test_json_lines_are_json_to_every_reader_when_the_loss_is_none(tmp_path: Path) -> None:
    def refuse(name: str) -> None:
        raise ValueError(f"{name} is no JSON")

    values = (0.5, math.nan, -math.inf)
    metrics = tuple(Metric("tamiyo.validation_loss", value) for value in values)
    JsonLinesSink(tmp_path / "t.jsonl").emit(replace(packet(1), metrics=metrics))
    read = json.loads((tmp_path / "t.jsonl").read_text(), parse_constant=refuse)
    assert [metric["value"] for metric in read["metrics"]] == [0.5, None, None]


def test_json_lines_keep_the_newest_packets_within_two_files_of_the_limit(tmp_path: Path) -> None:
    path, older = tmp_path / "t.jsonl", tmp_path / "t.jsonl.1"
    sink = JsonLinesSink(path)
    sink.emit(packet(0))
    limit = 4 * path.stat().st_size
    sink = JsonLinesSink(path, max_bytes=limit)  # goes on in the file of before
    for number in range(1, 10):
        sink.emit(packet(number))
        assert max(path.stat().st_size for path in tmp_path.iterdir()) <= limit
    assert sorted(tmp_path.iterdir()) == [path, older]
    lines = (older.read_text() + path.read_text()).splitlines()
    assert [json.loads(line)["packet_id"] for line in lines] == [str(n) for n in range(4, 10)]


def read_whole_lines(path: Path) -> list[int]:
    """Sequence numbers of the packets in the lines that are JSON."""
    found: list[int] = []
    for line in path.read_bytes().splitlines():
        with contextlib.suppress(json.JSONDecodeError):
            found.append(int(json.loads(line)["packet_id"]))
    return found


def test_a_torn_line_does_not_take_the_next_one_with_it(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    sink = JsonLinesSink(path)
    sink.emit(packet(1))
    sink.emit(packet(2))
    path.write_bytes(path.read_bytes()[:-20])  # a process died while it wrote
    sink.emit(packet(3))
    sink.emit(packet(4))
    assert read_whole_lines(path) == [1, 3, 4]
    assert len(path.read_bytes().splitlines()) == 4


def test_a_write_that_failed_half_way_does_not_take_the_next_line_with_it(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    path = tmp_path / "t.jsonl"
    sink = JsonLinesSink(path)
    sink.emit(packet(1))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 10, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            sink.emit(packet(2))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, ignored)
    assert not path.read_bytes().endswith(b"\n")
    sink.emit(packet(3))
    assert read_whole_lines(path) == [1, 3]


def test_a_sink_writes_where_it_was_opened_after_a_change_of_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    sink = JsonLinesSink("t.jsonl")
    monkeypatch.chdir(tmp_path / "elsewhere")
    sink.emit(packet(1))
    assert read_whole_lines(tmp_path / "t.jsonl") == [1]
