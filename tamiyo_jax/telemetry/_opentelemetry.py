"""Telemetry for OpenTelemetry: metrics to a meter, events to a logger, steps to a tracer."""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import partial
from importlib.metadata import version
from typing import TYPE_CHECKING

from tamiyo_jax.contracts import Event, Metric, TelemetryLevel, TelemetryPacket
from tamiyo_jax.errors import ConfigurationError
from tamiyo_jax.telemetry._instruments import (
    DURATION_BUCKETS_S,
    DecisionLabels,
    Instrument,
    Kind,
    instrument_of,
    newest_metrics,
)

if TYPE_CHECKING:
    from opentelemetry._logs import LoggerProvider
    from opentelemetry.metrics import CallbackOptions, Histogram, MeterProvider, Observation
    from opentelemetry.trace import Tracer, TracerProvider

__all__ = ["OpenTelemetrySink"]

_SCOPE = "tamiyo_jax"
_NS_PER_MS = 1_000_000

# The first number of each range: OpenTelemetry, Logs Data Model, field SeverityNumber.
_SEVERITIES = {
    TelemetryLevel.UNSPECIFIED: 0,
    TelemetryLevel.INFO: 9,
    TelemetryLevel.WARNING: 13,
    TelemetryLevel.ERROR: 17,
    TelemetryLevel.CRITICAL: 21,
}


class OpenTelemetrySink:
    """Passes metrics to a meter, events to a logger and decided steps to a tracer.

    Exporting them is the providers' task.

    Names are those of the packets without unit and kind, which OpenTelemetry keeps beside the
    name; durations are histograms in seconds. Attributes of metrics have few values; packet ids and
    steps are attributes of log records and spans only. A decided step is a span
    ``tamiyo.step`` with a child for each stage: ``tamiyo.metadata``, ``tamiyo.encode``,
    ``tamiyo.inference`` and ``tamiyo.append``. Needs ``tamiyo_jax[telemetry]``.

    Args:
      meter_provider: makes the meter; for one sink, which may serve one controller after another.
      logger_provider: makes the logger, which gets one record for each event.
      tracer_provider: makes the tracer, which gets one span for each decided step; None for no
        spans.

    Raises:
      ConfigurationError: OpenTelemetry is not installed.
    """

    def __init__(
        self,
        meter_provider: MeterProvider,
        logger_provider: LoggerProvider,
        tracer_provider: TracerProvider | None = None,
    ) -> None:
        try:
            from opentelemetry._logs import SeverityNumber
        except ImportError as error:
            raise ConfigurationError(
                f"{type(self).__name__} needs opentelemetry-sdk; install tamiyo_jax[telemetry]"
            ) from error
        self._severities = {level: SeverityNumber(number) for level, number in _SEVERITIES.items()}
        self._meter = meter_provider.get_meter(_SCOPE, version(_SCOPE))
        self._logger = logger_provider.get_logger(_SCOPE, version(_SCOPE))
        self._events = self._meter.create_counter("tamiyo.events", "{event}", "Events of Tamiyo.")
        self._decisions = self._meter.create_counter(
            "tamiyo.decisions", "{decision}", "Decisions of Tamiyo, also those to wait."
        )
        self._labels = DecisionLabels()
        self._tracer = (
            None
            if tracer_provider is None
            else tracer_provider.get_tracer(_SCOPE, version("tamiyo_jax"))
        )
        self._observed: set[str] = set()
        self._durations: dict[str, Histogram] = {}
        self._metrics: tuple[Metric, ...] = ()

    def emit(self, packet: TelemetryPacket) -> None:
        """Take a packet; see `Sink`."""
        for event in packet.events:
            self._events.add(1, {"event": event.name, "level": event.level.name})
            self._log(event, packet)
        self._metrics = newest_metrics(self._metrics, packet)
        for metric in self._metrics:
            instrument = instrument_of(metric)
            if instrument.kind is not Kind.DURATION:
                self._observe(instrument)
        for metric in packet.metrics:
            instrument = instrument_of(metric)
            if instrument.kind is Kind.DURATION:
                self._duration(instrument).record(instrument.value(metric))
        labels = self._labels.of(packet)
        if labels is not None:
            self._decisions.add(1, dict(labels))
            if self._tracer is not None:
                _trace(self._tracer, packet)

    def _log(self, event: Event, packet: TelemetryPacket) -> None:
        facts = {**packet.health.indicators, **event.attributes, "packet_id": packet.packet_id}
        self._logger.emit(
            timestamp=packet.timestamp_ns,
            severity_number=self._severities[event.level],
            severity_text=event.level.name,
            body=event.name,
            event_name=f"tamiyo.{event.name}",
            attributes={f"tamiyo.{name}": fact for name, fact in facts.items()},
        )

    def _observe(self, instrument: Instrument) -> None:
        """Make an observable instrument, unless it was made before."""
        name = instrument.name
        if name in self._observed:
            return
        counts = instrument.kind is Kind.COUNTER
        make = (
            self._meter.create_observable_counter if counts else self._meter.create_observable_gauge
        )
        make(name, [partial(self._newest, name)], instrument.unit.ucum, _description(instrument))
        self._observed.add(name)

    def _newest(self, name: str, options: CallbackOptions) -> Iterable[Observation]:
        """The newest values of an instrument; called from the threads of exports."""
        from opentelemetry.metrics import Observation

        for metric in self._metrics:
            instrument = instrument_of(metric)
            # The SDK accepts finite numbers only, and warns of any other at each export.
            if instrument.name == name and math.isfinite(metric.value):
                yield Observation(instrument.value(metric), dict(instrument.labels))

    def _duration(self, instrument: Instrument) -> Histogram:
        name = instrument.name
        if name not in self._durations:
            self._durations[name] = self._meter.create_histogram(
                name,
                instrument.unit.ucum,
                _description(instrument),
                explicit_bucket_boundaries_advisory=DURATION_BUCKETS_S,
            )
        return self._durations[name]


def _trace(tracer: Tracer, packet: TelemetryPacket) -> None:
    """Spans of a decided step and of its stages.

    The packet carries the time of the decision and how long each stage took; the command is
    recorded after the decision, and everything else comes before it.
    """
    from opentelemetry.trace import set_span_in_context

    took = {
        metric.name: round(metric.value * _NS_PER_MS)
        for metric in packet.metrics
        if metric.unit == "ms"
    }
    append_ns, step_ns = took["tamiyo.journal.append_ms"], took["tamiyo.step.latency_ms"]
    end = packet.timestamp_ns + append_ns
    start = end - step_ns
    facts = {**packet.health.indicators, "packet_id": packet.packet_id}
    attributes = {f"tamiyo.{name}": fact for name, fact in facts.items()}
    step = tracer.start_span("tamiyo.step", start_time=start, attributes=attributes)
    context = set_span_in_context(step)
    begin = start
    for stage in ("metadata", "encode", "inference"):
        span = tracer.start_span(f"tamiyo.{stage}", context, start_time=begin)
        begin += took[f"tamiyo.{stage}.latency_ms"]
        span.end(begin)
    tracer.start_span("tamiyo.append", context, start_time=packet.timestamp_ns).end(end)
    step.end(end)


def _description(instrument: Instrument) -> str:
    return f"Tamiyo's metric {instrument.source}."
