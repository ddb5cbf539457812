"""Reports after the decision, through a whole controller: windows, buses, restarts."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from making import SECRET, make_config, make_library, make_packet, open_tamiyo, story

from tamiyo_jax.bus import FIELD_REPORTS, MemoryBus, ReportReader
from tamiyo_jax.contracts import FieldReport, Priority, Secret
from tamiyo_jax.errors import ConfigurationError, PublishError
from tamiyo_jax.journal import RecordType, read_journal
from tamiyo_jax.storage import decode_step
from tamiyo_jax.telemetry import MemorySink

IMPATIENT = {"backoff_ms": 1.0, "multiplier": 1.0}


class MoodyBus(MemoryBus):
    """A real bus that refuses the first attempts for each message."""

    def __init__(self, refusals: int) -> None:
        super().__init__()
        self.refusals = refusals
        self.attempts: dict[bytes, int] = {}

    def publish(self, topic: str, payload: bytes, priority: Priority) -> None:
        self.attempts[payload] = self.attempts.get(payload, 0) + 1
        if self.attempts[payload] <= self.refusals:
            raise PublishError(f"{topic}: not now", topic=topic)
        super().publish(topic, payload, priority)


def reader_of(seen: list[FieldReport]) -> ReportReader:
    def refuse(error: Exception, envelope: bytes) -> None:
        raise error

    return ReportReader(seen.append, secrets=(Secret(SECRET),), refuse=refuse)


def read_closed_windows(directory: Path) -> list[FieldReport]:
    steps = [record for record in read_journal(directory).records if record.type is RecordType.STEP]
    return [report for step in steps for report in decode_step(step.payload).closed_windows]


def test_a_window_with_a_restart_in_its_middle_yields_one_report(tmp_path: Path) -> None:
    config = make_config(storage={"observation_window_epochs": 5})
    packets = story(40)
    with open_tamiyo(tmp_path / "whole", config=config) as tamiyo:
        decisions = [tamiyo.step(packet) for packet in packets]
    commands = [decision.command.command_id for decision in decisions if decision.command]
    assert commands, "the story has commands to observe"
    whole = read_closed_windows(tmp_path / "whole")
    assert {report.command_id for report in whole} <= set(commands)
    for restart in range(1, len(packets), 3):
        directory = tmp_path / f"restarted-{restart}"
        for part in (packets[:restart], packets[restart:]):
            with open_tamiyo(directory, config=config) as tamiyo:
                for packet in part:
                    tamiyo.step(packet)
        reports = read_closed_windows(directory)
        assert len({report.report_id for report in reports}) == len(reports)
        assert [
            (report.outcome, dict(report.metrics), report.observation_window_epochs)
            for report in reports
        ] == [
            (decision.outcome, dict(decision.metrics), decision.observation_window_epochs)
            for decision in whole
        ]


def test_a_bus_that_fails_three_times_gets_each_report_and_the_consumer_each_once(
    tmp_path: Path,
) -> None:
    bus, seen = MoodyBus(refusals=3), []
    bus.consume(FIELD_REPORTS, "tests", reader_of(seen))
    config = make_config(publishing=IMPATIENT, storage={"observation_window_epochs": 3})
    with open_tamiyo(tmp_path, config=config, bus=bus, clock=time.time_ns) as tamiyo:
        report_ids = {tamiyo.step(packet).report_id for packet in story(25)}
        for _ in range(200):
            tamiyo.publish()
            if not tamiyo._storage.facts.pending:
                break
            time.sleep(0.01)
    bus.consume(FIELD_REPORTS, "tests", reader_of(seen))
    expected = report_ids | {report.report_id for report in read_closed_windows(tmp_path)}
    assert len(expected) > len(report_ids)
    assert sorted(report.report_id for report in seen) == sorted(expected)
    assert min(bus.attempts.values()) == 4


def test_what_was_not_published_goes_out_after_a_restart(tmp_path: Path) -> None:
    config = make_config(publishing={"backoff_ms": 100_000.0, "max_retries": 10})
    dead = MoodyBus(refusals=1_000)
    with open_tamiyo(tmp_path, config=config, bus=dead) as tamiyo:
        report_ids = [tamiyo.step(packet).report_id for packet in story(5)]
        tamiyo.publish()
    bus, seen = MemoryBus(), []
    bus.consume(FIELD_REPORTS, "tests", reader_of(seen))
    hour_later = 3_600_000_000_000 + 1_700_000_000_000_000_000
    with open_tamiyo(tmp_path, config=config, bus=bus, clock=lambda: hour_later) as tamiyo:
        tamiyo.publish()
    bus.consume(FIELD_REPORTS, "tests", reader_of(seen))
    assert sorted(report.report_id for report in seen) == sorted(report_ids)


def test_a_bus_that_never_works_loses_no_report_from_the_journal(tmp_path: Path) -> None:
    sink = MemorySink()
    config = make_config(publishing=IMPATIENT | {"max_retries": 1})
    arguments = {"config": config, "bus": MoodyBus(refusals=1_000), "sinks": (sink,)}
    with open_tamiyo(tmp_path, **arguments, clock=time.time_ns) as tamiyo:
        report_ids = tamiyo.step(make_packet())
        for _ in range(200):
            tamiyo.publish()
            if not tamiyo._storage.facts.pending:
                break
            time.sleep(0.01)
    events = [event.name for packet in sink.packets for event in packet.events]
    assert "field_report_drop" in events
    steps = [record for record in read_journal(tmp_path).records if record.type is RecordType.STEP]
    assert [decode_step(step.payload).report.report_id for step in steps] == [report_ids.report_id]


def test_publishing_without_a_bus_is_a_mistake_that_is_named(tmp_path: Path) -> None:
    with open_tamiyo(tmp_path) as tamiyo, pytest.raises(ConfigurationError, match="no bus"):
        tamiyo.publish()


def test_the_run_directory_is_prepared_for_the_blueprint_that_comes_next(tmp_path: Path) -> None:
    sink = MemorySink()
    library = make_library()
    with open_tamiyo(tmp_path, library=library, sinks=(sink,)) as tamiyo:
        tamiyo.prepare("grow-a")
        tamiyo.step(make_packet(blueprint_id="grow-a"))
    events = [event.name for packet in sink.packets for event in packet.events]
    assert events.count("layout_prepared") == 1
