"""Events, metrics and the telemetry packet."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum

__all__ = [
    "Event",
    "HealthStatus",
    "Metric",
    "Priority",
    "SystemHealth",
    "TelemetryLevel",
    "TelemetryPacket",
]


class TelemetryLevel(IntEnum):
    """Severity of an event."""

    UNSPECIFIED = 0
    INFO = 1
    WARNING = 2
    ERROR = 3
    CRITICAL = 4


class HealthStatus(IntEnum):
    """Health of the controller."""

    UNKNOWN = 0
    HEALTHY = 1
    DEGRADED = 2
    UNHEALTHY = 3
    CRITICAL = 4


class Priority(IntEnum):
    """Priority of a message."""

    UNSPECIFIED = 0
    LOW = 1
    NORMAL = 2
    HIGH = 3
    CRITICAL = 4


@dataclass(frozen=True, slots=True)
class Event:
    """An event by name; attributes are text, `event_id` is empty unless a peer gave an id."""

    name: str
    level: TelemetryLevel
    attributes: Mapping[str, str] = field(default_factory=dict[str, str])
    event_id: str = ""


@dataclass(frozen=True, slots=True)
class Metric:
    """One measured number and its unit."""

    name: str
    value: float
    unit: str = ""
    attributes: Mapping[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True, slots=True)
class SystemHealth:
    """Health with its summary (the reason) and indicators."""

    status: HealthStatus
    summary: str
    indicators: Mapping[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True, slots=True)
class TelemetryPacket:
    """The events, metrics and health of a step."""

    packet_id: str
    timestamp_ns: int
    level: TelemetryLevel
    metrics: tuple[Metric, ...]
    events: tuple[Event, ...]
    health: SystemHealth
    source_subsystem: str = "tamiyo"
