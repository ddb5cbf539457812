"""What Prometheus reads: real scrapes of real runs."""

from __future__ import annotations

import math
import re
import threading
import urllib.request
from pathlib import Path

import pytest
from making import make_packet, open_tamiyo
from prometheus_client import CollectorRegistry, generate_latest, start_http_server
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse
from telemetry_runs import DECISIONS, eventful_run, newest, values

from tamiyo_jax.contracts import HealthStatus, Metric, SystemHealth, TelemetryLevel, TelemetryPacket
from tamiyo_jax.errors import ConfigurationError
from tamiyo_jax.telemetry import MemorySink, PrometheusSink
from tamiyo_jax.telemetry._instruments import instrument_of

DOCS = Path(__file__).parents[2] / "docs" / "telemetry.md"


Run = tuple[CollectorRegistry, list[TelemetryPacket]]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    registry = CollectorRegistry()
    return registry, eventful_run(tmp_path_factory.mktemp("run"), (PrometheusSink(registry),))


def families(registry: CollectorRegistry) -> dict[str, Family]:
    return {family.name: family for family in parse(generate_latest(registry).decode())}


def test_a_scrape_over_http_reads_the_newest_step(run: Run) -> None:
    registry, packets = run
    server, thread = start_http_server(0, "127.0.0.1", registry=registry)
    try:
        url = f"http://127.0.0.1:{server.server_port}/metrics"
        with urllib.request.urlopen(url, timeout=10) as response:
            text = response.read().decode()
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
    read = {
        (sample.name, tuple(sample.labels.values())): sample.value
        for family in parse(text)
        for sample in family.samples
    }
    reported = newest(packets)
    assert math.isnan(read["tamiyo_validation_loss", ()])
    assert read["tamiyo_gnn_feature_coverage_ratio", ()] == reported["tamiyo.gnn.feature_coverage"]
    assert read["tamiyo_breaker_state", ("metadata",)] == reported["tamiyo.breaker.metadata_state"]
    assert (
        read["tamiyo_blueprint_cache_hits_total", ()] == reported["tamiyo.blueprint_cache.hits"] > 0
    )
    group = "tamiyo_gnn_feature_coverage_by_group_ratio", ("node.seed",)
    assert read[group] == reported["tamiyo.gnn.feature_coverage.node.seed"]


def test_durations_are_histograms_in_seconds(run: Run) -> None:
    registry, packets = run
    read = families(registry)["tamiyo_step_latency_seconds"]
    samples = {sample.name: sample.value for sample in read.samples}
    taken = [1e-3 * value for value in values(packets, "tamiyo.step.latency_ms")]
    assert read.type == "histogram"
    assert samples["tamiyo_step_latency_seconds_count"] == DECISIONS
    assert samples["tamiyo_step_latency_seconds_sum"] == pytest.approx(sum(taken))
    below = {float(s.labels["le"]): s.value for s in read.samples if "le" in s.labels}
    assert below == {bound: sum(seconds <= bound for seconds in taken) for bound in below}


def test_events_are_counted_by_name_and_level(run: Run) -> None:
    registry, packets = run
    samples = families(registry)["tamiyo_events"].samples
    read = {
        (sample.labels["event"], sample.labels["level"]): sample.value
        for sample in samples
        if sample.name == "tamiyo_events_total"
    }
    assert read["step_failed", "CRITICAL"] == 1
    assert read["mode_changed", "INFO"] == 1
    assert sum(read.values()) == sum(len(packet.events) for packet in packets)


def test_health_and_mode_are_those_of_the_newest_packet(run: Run) -> None:
    registry, packets = run
    about = {"policy": packets[-1].health.indicators["policy"], "mode": "shadow"}
    about["policy_arch"] = "HeuristicPolicy"
    assert registry.get_sample_value("tamiyo_health_status") == packets[-1].health.status
    assert registry.get_sample_value("tamiyo_info", about) == 1


def test_a_failed_step_shows_in_the_health_and_leaves_the_metrics_be(tmp_path: Path) -> None:
    registry = CollectorRegistry()
    sink = PrometheusSink(registry)
    packets = eventful_run(tmp_path)
    names = [[event.name for event in packet.events] for packet in packets]
    failed = next(number for number, name in enumerate(names) if "step_failed" in name)
    for packet in packets[: failed + 1]:
        sink.emit(packet)
    loss = registry.get_sample_value("tamiyo_validation_loss")
    assert registry.get_sample_value("tamiyo_health_status") == HealthStatus.CRITICAL
    assert loss == newest(packets[:failed])["tamiyo.validation_loss"]


def test_what_the_newest_step_did_not_measure_is_not_shown() -> None:
    registry = CollectorRegistry()
    sink = PrometheusSink(registry)
    delta, seed = Metric("tamiyo.loss_delta", 0.5), Metric("tamiyo.selection.seed_index", 1.0)
    for metrics, shown in (((delta, seed), 1.0), ((delta,), None)):
        health = SystemHealth(HealthStatus.HEALTHY, "fine")
        sink.emit(TelemetryPacket("p", 1, TelemetryLevel.INFO, metrics, (), health))
        assert registry.get_sample_value("tamiyo_loss_delta") == 0.5
        assert registry.get_sample_value("tamiyo_selection_seed_index") == shown


def test_nothing_unbounded_becomes_a_label(run: Run) -> None:
    registry, packets = run
    text = generate_latest(registry).decode()
    labels = set(re.findall(r'(\w+)="', text))
    decisions = {"action", "reason"}
    of_packets = {"event", "level", "group", "stage", "seed"}
    assert labels == decisions | of_packets | {"le", "policy", "policy_arch", "mode"}
    assert not [packet.packet_id for packet in packets if packet.packet_id in text]


def test_decisions_are_counted_by_action_and_reason_and_made_up_reasons_share_a_label() -> None:
    registry = CollectorRegistry()
    sink = PrometheusSink(registry)
    for number in range(100):
        facts = {"action": "WAIT", "reason": f"mine:{number}"}
        health = SystemHealth(HealthStatus.HEALTHY, "fine", facts)
        sink.emit(TelemetryPacket("p", 1, TelemetryLevel.INFO, (), (), health))
    counted = {
        sample.labels["reason"]: sample.value
        for sample in families(registry)["tamiyo_decisions"].samples
        if sample.name == "tamiyo_decisions_total"
    }
    assert len(counted) == 65
    assert counted["mine:3"] == 1
    assert counted["other"] == 36


def test_the_strict_parser_of_openmetrics_takes_it(run: Run) -> None:
    registry, _ = run
    read = {
        family.name: family for family in parse_openmetrics(generate_openmetrics(registry).decode())
    }
    assert read["tamiyo_field_reports_published"].type == "counter"
    assert read["tamiyo_field_reports_pending"].type == "gauge"
    assert read["tamiyo_telemetry_dropped"].type == "counter"


def test_the_documented_names_are_those_of_scrapes(run: Run) -> None:
    _, packets = run
    registry = CollectorRegistry()
    sink, shown = PrometheusSink(registry), set[tuple[str, str]]()
    for packet in packets:
        sink.emit(packet)
        for family in families(registry).values():
            total = "_total" if family.type == "counter" else ""
            shown.add((family.name + total, family.type))
    documented = set[tuple[str, ...]]()
    _, _, table = DOCS.read_text(encoding="utf-8").partition("| metric |")
    for row in table.partition("\n\n")[0].splitlines()[2:]:
        metric, *_, reported = row.strip("| ").split(" | ")
        if "worker" not in metric:  # there is none in this process
            documented.add(tuple(reported.replace("`", "").split()))
    beside = {
        ("tamiyo_decisions_total", "counter"),
        ("tamiyo_events_total", "counter"),
        ("tamiyo_health_status", "gauge"),
    }
    own = {name for name in shown if not name[0].endswith(("_info", "_created"))}
    assert own == documented | beside


def test_counters_begin_again_with_a_controller_that_is_opened_again(tmp_path: Path) -> None:
    registry, memory = CollectorRegistry(), MemorySink()
    sink, hits = PrometheusSink(registry), []
    for steps in (3, 1):
        with open_tamiyo(tmp_path, sinks=(sink, memory)) as tamiyo:
            for step in range(steps):
                tamiyo.step(make_packet(step))
        hits.append(registry.get_sample_value("tamiyo_blueprint_cache_hits_total"))
    assert hits[1] == newest(memory.packets)["tamiyo.blueprint_cache.hits"] < hits[0]
    assert registry.get_sample_value("tamiyo_step_latency_seconds_count") == 4


def test_a_registry_takes_one_sink_and_says_so() -> None:
    registry = CollectorRegistry()
    PrometheusSink(registry)
    with pytest.raises(ConfigurationError, match="make one sink for a registry"):
        PrometheusSink(registry)


def test_scrapes_may_come_at_any_time(run: Run) -> None:
    _, packets = run
    registry, done = CollectorRegistry(), threading.Event()
    sink, scraped = PrometheusSink(registry), 0

    def emit() -> None:
        for _ in range(20):
            for packet in packets:
                sink.emit(packet)
        done.set()

    thread = threading.Thread(target=emit)
    thread.start()
    while not done.is_set() or not scraped:
        generate_latest(registry)
        scraped += 1
    thread.join()
    count = registry.get_sample_value("tamiyo_step_latency_seconds_count")
    assert count == 20 * DECISIONS


def test_a_metric_that_no_table_lists_is_a_gauge_of_its_own_name() -> None:
    instrument = instrument_of(Metric("tamiyo.something.new", 2.0, "apples"))
    assert (instrument.name, instrument.kind.value) == ("tamiyo.something.new", "gauge")
