"""What OpenTelemetry exports: the SDK's own readers and exporters, upon real runs."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from opentelemetry.sdk._logs import LoggerProvider, ReadableLogRecord
from opentelemetry.sdk._logs.export import InMemoryLogRecordExporter, SimpleLogRecordProcessor
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import Gauge, Histogram, InMemoryMetricReader, Metric, Sum
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from telemetry_runs import DECISIONS, FAILED_AT, eventful_run, newest, values

from tamiyo_jax.contracts import TelemetryPacket
from tamiyo_jax.telemetry import OpenTelemetrySink
from tamiyo_jax.telemetry._instruments import DURATION_BUCKETS_S


class Exported(NamedTuple):
    packets: list[TelemetryPacket]
    metrics: dict[str, Metric]
    logs: tuple[ReadableLogRecord, ...]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Exported]:
    reader, exporter = InMemoryMetricReader(), InMemoryLogRecordExporter()
    meters = MeterProvider([reader], shutdown_on_exit=False)
    logs = LoggerProvider(shutdown_on_exit=False)
    logs.add_log_record_processor(SimpleLogRecordProcessor(exporter))
    packets = eventful_run(tmp_path_factory.mktemp("run"), (OpenTelemetrySink(meters, logs),))
    yield Exported(packets, export(reader), exporter.get_finished_logs())
    meters.shutdown()
    logs.shutdown()


def export(reader: InMemoryMetricReader) -> dict[str, Metric]:
    data = reader.get_metrics_data()
    assert data is not None
    ((scope,),) = (resource.scope_metrics for resource in data.resource_metrics)
    assert scope.scope.name == "tamiyo_jax"
    return {metric.name: metric for metric in scope.metrics}


def points(metric: Metric) -> dict[tuple[Any, ...], Any]:
    return {tuple((p.attributes or {}).values()): p for p in metric.data.data_points}


def test_durations_are_histograms_in_seconds(run: Exported) -> None:
    metric = run.metrics["tamiyo.step.latency"]
    point = points(metric)[()]
    taken = [1e-3 * value for value in values(run.packets, "tamiyo.step.latency_ms")]
    assert (metric.unit, type(metric.data)) == ("s", Histogram)
    assert (point.count, point.explicit_bounds) == (DECISIONS, DURATION_BUCKETS_S)
    assert point.sum == pytest.approx(sum(taken))


def test_totals_are_monotonic_sums_and_what_is_pending_is_not(run: Exported) -> None:
    hits = run.metrics["tamiyo.blueprint_cache.hits"]
    assert isinstance(hits.data, Sum)
    assert hits.data.is_monotonic
    assert hits.unit == "{blueprint}"
    assert points(hits)[()].value == newest(run.packets)["tamiyo.blueprint_cache.hits"] > 0
    pending = run.metrics["tamiyo.field_reports.pending"]
    assert (pending.unit, type(pending.data)) == ("{report}", Gauge)


def test_gauges_show_the_newest_step_by_stage_and_group(run: Exported) -> None:
    reported = newest(run.packets)
    coverage = points(run.metrics["tamiyo.gnn.feature_coverage_by_group"])
    assert coverage["node.seed",].value == reported["tamiyo.gnn.feature_coverage.node.seed"]
    assert set(points(run.metrics["tamiyo.breaker.state"])) == {("inference",), ("metadata",)}
    health = points(run.metrics["tamiyo.health_status"])[()]
    assert health.value == run.packets[-1].health.status


def test_a_loss_that_is_no_number_is_left_out_without_a_warning(
    run: Exported, caplog: pytest.LogCaptureFixture
) -> None:
    assert math.isnan(newest(run.packets)["tamiyo.validation_loss"])
    assert "tamiyo.validation_loss" not in run.metrics
    reader = InMemoryMetricReader()
    meters = MeterProvider([reader], shutdown_on_exit=False)
    sink = OpenTelemetrySink(meters, LoggerProvider(shutdown_on_exit=False))
    losses = {}
    for packet in run.packets:
        sink.emit(packet)
        metric = export(reader).get("tamiyo.validation_loss")
        if packet.metrics and metric is not None:
            losses[newest([packet])["tamiyo.validation_loss"]] = points(metric)[()].value
    meters.shutdown()
    assert losses == {0.9: 0.9}
    assert not caplog.records


def test_attributes_of_metrics_have_few_values(run: Exported) -> None:
    names = {
        name
        for metric in run.metrics.values()
        for point in metric.data.data_points
        for name in point.attributes or {}
    }
    assert names == {"group", "stage", "seed", "event", "level", "action", "reason"}
    counted = points(run.metrics["tamiyo.events"])
    assert counted["step_failed", "CRITICAL"].value == 1


def test_every_event_is_a_log_record(run: Exported) -> None:
    reported = [(packet, event) for packet in run.packets for event in packet.events]
    records = [log.log_record for log in run.logs]
    assert [record.body for record in records] == [event.name for _, event in reported]
    assert [record.timestamp for record in records] == [p.timestamp_ns for p, _ in reported]
    assert [record.severity_text for record in records] == [e.level.name for _, e in reported]


def test_a_failed_step_is_a_fatal_event_that_says_where_and_why(run: Exported) -> None:
    (failed,) = (log.log_record for log in run.logs if log.log_record.body == "step_failed")
    assert failed.event_name == "tamiyo.step_failed"
    assert failed.severity_number is not None
    assert failed.severity_number.name == "FATAL"
    assert failed.attributes is not None
    facts = dict(failed.attributes)
    assert facts["tamiyo.global_step"] == str(FAILED_AT)
    assert "nowhere" in "".join(str(value) for value in facts.values())
    assert facts["tamiyo.packet_id"] in [packet.packet_id for packet in run.packets]


def test_a_decided_step_is_a_span_with_its_stages_inside(tmp_path: Path) -> None:
    exporter = InMemorySpanExporter()
    tracers = TracerProvider(shutdown_on_exit=False)
    tracers.add_span_processor(SimpleSpanProcessor(exporter))
    meters, logs = MeterProvider(shutdown_on_exit=False), LoggerProvider(shutdown_on_exit=False)
    packets = eventful_run(tmp_path, (OpenTelemetrySink(meters, logs, tracers),))
    spans = exporter.get_finished_spans()
    steps = [span for span in spans if span.name == "tamiyo.step"]
    assert len(steps) == DECISIONS
    assert {dict(span.attributes or {})["tamiyo.action"] for span in steps} >= {"WAIT", "PAUSE"}
    taken = [value for value in values(packets, "tamiyo.step.latency_ms")]
    lengths = [(span.end_time or 0) - (span.start_time or 0) for span in steps]
    assert lengths == pytest.approx([1e6 * value for value in taken], abs=1.0)
    for step in steps:
        inside = [s for s in spans if s.parent and s.parent.span_id == step.context.span_id]
        assert [span.name.removeprefix("tamiyo.") for span in inside] == [
            *("metadata", "encode", "inference", "append")
        ]
        assert min(span.start_time or 0 for span in inside) == step.start_time
        assert max(span.end_time or 0 for span in inside) == step.end_time


def test_an_export_may_come_at_any_time(tmp_path: Path, run: Exported) -> None:
    reader = InMemoryMetricReader()
    meters = MeterProvider([reader], shutdown_on_exit=False)
    sink = OpenTelemetrySink(meters, LoggerProvider(shutdown_on_exit=False))
    for packet in run.packets:
        sink.emit(packet)
        reported = export(reader)
        if packet.metrics:
            seed = newest([packet]).get("tamiyo.selection.seed_index")
            shown = reported.get("tamiyo.selection.seed_index")
            assert (None if shown is None else points(shown)[()].value) == seed
    meters.shutdown()
