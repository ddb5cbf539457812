"""Instruments of monitoring systems for Tamiyo's metrics: kind, unit and labels of each.

A packet holds numbers by name. Prometheus and OpenTelemetry distinguish counters, gauges and
durations, expect seconds, and use labels where names are enumerated. The tables hold these facts; a
metric that no table lists is a gauge of its own name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache

from tamiyo_jax.contracts import Metric, TelemetryPacket

__all__ = [
    "DURATION_BUCKETS_S",
    "DecisionLabels",
    "Instrument",
    "Kind",
    "Unit",
    "instrument_of",
    "newest_metrics",
]

DURATION_BUCKETS_S = (
    *(0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05),
    *(0.1, 0.25, 0.5, 1.0, 2.5, 10.0),
)
"""Upper bounds of the histograms in seconds: from an encoding to a compilation."""


class Kind(Enum):
    """How a number may be added up."""

    GAUGE = "gauge"
    COUNTER = "counter"
    DURATION = "duration"


@dataclass(frozen=True, slots=True)
class Unit:
    """A unit of monitoring systems.

    Attributes:
      ucum: its symbol in the Unified Code for Units of Measure, as OpenTelemetry wants it.
      suffix: what it adds to a name in Prometheus.
      factor: how much of it is one of the unit in the packet.
    """

    ucum: str = "1"
    suffix: str = ""
    factor: float = 1.0


@dataclass(frozen=True, slots=True)
class Instrument:
    """What one metric is measured with.

    Attributes:
      name: without unit and kind, its parts separated by dots.
      source: the metric as the documentation lists it.
      kind: how its numbers may be added up.
      unit: what they are converted to.
      labels: by name; their values are few.
    """

    name: str
    source: str
    kind: Kind
    unit: Unit
    labels: Mapping[str, str]

    def value(self, metric: Metric) -> float:
        """A metric's number in the instrument's unit."""
        return metric.value * self.unit.factor


_UNITS = {
    "ms": Unit("s", "_seconds", 1e-3),
    "share": Unit(suffix="_ratio"),
    "fraction": Unit(suffix="_ratio"),
    "parameters": Unit("{parameter}"),
    "packets": Unit("{packet}"),
    "reports": Unit("{report}"),
    "blueprints": Unit("{blueprint}"),
    "changes": Unit("{change}"),
}

# Totals since opening. They begin again with a controller that is opened again, as both systems
# expect of counters. How many reports are pending is none, whatever its name.
_COUNTERS = {
    "tamiyo.blueprint_cache.hits",
    "tamiyo.blueprint_cache.misses",
    "tamiyo.worker.restarts",
    "tamiyo.metadata_worker.restarts",
    "tamiyo.field_reports.published_total",
    "tamiyo.field_reports.retries_total",
    "tamiyo.field_reports.dropped_total",
    "tamiyo.telemetry.dropped_total",
}

# Metrics whose names enumerate something, and the name that they share.
_FAMILIES = {
    "tamiyo.gnn.feature_coverage.<group>": "tamiyo.gnn.feature_coverage_by_group",
    "tamiyo.seed.contribution.<seed>": "tamiyo.seed.contribution",
    "tamiyo.seed.alpha.<seed>": "tamiyo.seed.alpha",
    "tamiyo.breaker.<stage>_state": "tamiyo.breaker.state",
    "tamiyo.breaker.<stage>_failures": "tamiyo.breaker.failures",
}


class DecisionLabels:
    """Labels of decisions, with a bounded number of values.

    Reasons are ids of rules. A policy that makes up reasons as it goes would make a label without
    bound, so after the first `MOST_REASONS` a new one is counted as ``other``.
    """

    MOST_REASONS = 64

    def __init__(self) -> None:
        self._reasons: set[str] = set()

    def of(self, packet: TelemetryPacket) -> Mapping[str, str] | None:
        """Action and reason of a decided step; None for any other packet."""
        facts = packet.health.indicators
        if "action" not in facts:
            return None
        reason = facts["reason"]
        if len(self._reasons) < self.MOST_REASONS:
            self._reasons.add(reason)
        known = reason in self._reasons
        return {"action": facts["action"], "reason": reason if known else "other"}


def instrument_of(metric: Metric) -> Instrument:
    """The instrument of a metric."""
    return _instrument(metric.name, metric.unit)


def newest_metrics(before: tuple[Metric, ...], packet: TelemetryPacket) -> tuple[Metric, ...]:
    """What gauges and counters show after a packet.

    Args:
      before: what they showed before it.
      packet: the packet; only that of a decided step has metrics.

    Returns:
      The packet's health, and then the metrics of the newest decided step and no other: what
      that one did not measure is not shown.
    """
    health = Metric("tamiyo.health_status", float(packet.health.status))
    return (health, *(packet.metrics or before[1:]))


@lru_cache(maxsize=1024)
def _instrument(name: str, unit: str) -> Instrument:
    source, shared, labels = _family(name)
    kind = Kind.COUNTER if name in _COUNTERS else Kind.GAUGE
    return Instrument(
        name=shared.removesuffix("_ms").removesuffix("_total"),
        source=source,
        kind=Kind.DURATION if unit == "ms" else kind,
        unit=_UNITS.get(unit, Unit()),
        labels=labels,
    )


def _family(name: str) -> tuple[str, str, Mapping[str, str]]:
    for source, shared in _FAMILIES.items():
        pattern = re.sub(r"<(\w+)>", r"(?P<\1>.+)", source.replace(".", r"\."))
        if match := re.fullmatch(pattern, name):
            return source, shared, match.groupdict()
    return name, name, {}
