"""Telemetry for OpenTelemetry: metrics to a meter, events to a logger."""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import partial
from importlib.metadata import version
from typing import TYPE_CHECKING

from tamiyo_jax.contracts import Event, Metric, TelemetryLevel, TelemetryPacket
from tamiyo_jax.errors import ConfigurationError
from tamiyo_jax.runtime.instruments import (
    DURATION_BUCKETS_S,
    Instrument,
    Kind,
    instrument_of,
    newest_metrics,
)

if TYPE_CHECKING:
    from opentelemetry._logs import LoggerProvider
    from opentelemetry.metrics import CallbackOptions, Histogram, MeterProvider, Observation

__all__ = ["OpenTelemetrySink"]

_SCOPE = "tamiyo_jax"

# The first number of each range: OpenTelemetry, Logs Data Model, field SeverityNumber.
_SEVERITIES = {
    TelemetryLevel.UNSPECIFIED: 0,
    TelemetryLevel.INFO: 9,
    TelemetryLevel.WARNING: 13,
    TelemetryLevel.ERROR: 17,
    TelemetryLevel.CRITICAL: 21,
}


class OpenTelemetrySink:
    """Hands metrics to a meter and events to a logger; exporting them is the providers' task.

    Names are those of the packets without unit and kind, which OpenTelemetry keeps beside the
    name; durations are histograms in seconds. Attributes of metrics have few values; packet and
    step stand on the log records alone. Needs ``tamiyo_jax[telemetry]``.

    Args:
      meter_provider: of one sink only, which may be handed to one controller after the other.
      logger_provider: takes one record for each event.

    Raises:
      ConfigurationError: OpenTelemetry is not installed.
    """

    def __init__(self, meter_provider: MeterProvider, logger_provider: LoggerProvider) -> None:
        try:
            from opentelemetry._logs import SeverityNumber
        except ImportError as error:
            raise ConfigurationError(
                f"{type(self).__name__} needs opentelemetry-sdk; install tamiyo_jax[telemetry]"
            ) from error
        self._severities = {level: SeverityNumber(one) for level, one in _SEVERITIES.items()}
        self._meter = meter_provider.get_meter(_SCOPE, version(_SCOPE))
        self._logger = logger_provider.get_logger(_SCOPE, version(_SCOPE))
        self._events = self._meter.create_counter("tamiyo.events", "{event}", "Events of Tamiyo.")
        self._observed: set[str] = set()
        self._durations: dict[str, Histogram] = {}
        self._metrics: tuple[Metric, ...] = ()

    def emit(self, packet: TelemetryPacket) -> None:
        """See `Sink`."""
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
        """Let exports ask for an instrument, if they do not yet."""
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
        """What an instrument shows now; called from the threads of exports."""
        from opentelemetry.metrics import Observation

        for metric in self._metrics:
            instrument = instrument_of(metric)
            # The SDK takes finite numbers alone, and warns of a loss that is none at each export.
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


def _description(instrument: Instrument) -> str:
    return f"Tamiyo's metric {instrument.source}."
