"""Telemetry for Prometheus, which scrapes it over HTTP."""

# The types of prometheus_client are partial.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from tamiyo_jax.contracts import Metric, TelemetryPacket
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
    from prometheus_client import CollectorRegistry, Histogram
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
    from prometheus_client.metrics_core import Metric as MetricFamily

__all__ = ["PrometheusSink"]

_ABOUT = ("policy", "policy_arch", "mode")  # indicators that seldom change


class PrometheusSink:
    """Keeps what a scrape reads: newest metrics, duration histograms, and counts.

    Names are those of the packets with underscores, and end in the unit: milliseconds become
    ``_seconds``, shares and fractions ``_ratio``, counters end in ``_total``. It opens no port:
    ``prometheus_client.start_http_server(port, registry=registry)`` does. Needs
    ``tamiyo_jax[telemetry]``.

    Args:
      registry: the registry that scrapes read; it takes one sink, which may serve one controller
        after another.

    Raises:
      ConfigurationError: prometheus_client is not installed, or the registry has such names.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        try:
            from prometheus_client import Counter
        except ImportError as error:
            raise ConfigurationError(
                f"{type(self).__name__} needs prometheus_client; install tamiyo_jax[telemetry]"
            ) from error
        try:
            self._events = Counter(
                "tamiyo_events", "Events of Tamiyo.", ("event", "level"), registry=registry
            )
            self._decisions = Counter(
                "tamiyo_decisions",
                "Decisions of Tamiyo, also those to wait.",
                ("action", "reason"),
                registry=registry,
            )
        except ValueError as error:
            raise ConfigurationError(
                f"the registry cannot take a {type(self).__name__}: {error}; "
                "make one sink for a registry"
            ) from error
        self._registry = registry
        self._labels = DecisionLabels()
        self._durations: dict[str, Histogram] = {}
        self._metrics: tuple[Metric, ...] = ()
        self._about: dict[str, str] = {}
        registry.register(self)

    def emit(self, packet: TelemetryPacket) -> None:
        """Take a packet; see `Sink`."""
        for event in packet.events:
            self._events.labels(event.name, event.level.name).inc()
        labels = self._labels.of(packet)
        if labels is not None:
            self._decisions.labels(**labels).inc()
        for metric in packet.metrics:
            instrument = instrument_of(metric)
            if instrument.kind is Kind.DURATION:
                self._duration(instrument).observe(instrument.value(metric))
        self._metrics = newest_metrics(self._metrics, packet)
        known = packet.health.indicators
        self._about = self._about | {name: known[name] for name in _ABOUT if name in known}

    def collect(self) -> Iterator[MetricFamily]:
        """Gauges, counters and the policy, for the registry; called by threads of scrapes."""
        from prometheus_client.core import (
            CounterMetricFamily,
            GaugeMetricFamily,
            InfoMetricFamily,
        )

        if self._about:
            yield InfoMetricFamily(
                "tamiyo", "The policy that decides, and its mode.", dict(self._about)
            )
        families: dict[str, GaugeMetricFamily | CounterMetricFamily] = {}
        for metric in self._metrics:
            instrument = instrument_of(metric)
            if instrument.kind is Kind.DURATION:
                continue
            name = _name(instrument)
            if name not in families:
                make = CounterMetricFamily if instrument.kind is Kind.COUNTER else GaugeMetricFamily
                families[name] = make(name, _help(instrument), labels=tuple(instrument.labels))
            families[name].add_metric(tuple(instrument.labels.values()), instrument.value(metric))
        yield from families.values()

    def _duration(self, instrument: Instrument) -> Histogram:
        from prometheus_client import Histogram

        name = _name(instrument)
        if name not in self._durations:
            self._durations[name] = Histogram(
                name, _help(instrument), buckets=DURATION_BUCKETS_S, registry=self._registry
            )
        return self._durations[name]


def _name(instrument: Instrument) -> str:
    return instrument.name.replace(".", "_") + instrument.unit.suffix


def _help(instrument: Instrument) -> str:
    return f"Tamiyo's metric {instrument.source}."
