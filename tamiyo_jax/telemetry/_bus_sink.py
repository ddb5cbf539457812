"""Telemetry over a bus, for a monitor of many runs."""

from __future__ import annotations

from tamiyo_jax.bus import Bus, seal
from tamiyo_jax.contracts import Priority, Secret, TelemetryLevel, TelemetryPacket, encode_telemetry

__all__ = ["TELEMETRY", "BusSink"]

TELEMETRY = "tamiyo.telemetry"
"""The topic of telemetry."""


class BusSink:
    """Publishes packets in signed envelopes; urgent ones overtake others.

    What the bus does not take is lost and counted. What must not be lost is in the reports,
    which wait in the journal until the bus has them.

    Args:
      bus: where packets go; may be the one of the reports.
      secret: signs the envelopes.
    """

    def __init__(self, bus: Bus, secret: Secret) -> None:
        self._bus = bus
        self._secret = secret

    def emit(self, packet: TelemetryPacket) -> None:
        """See `Sink`.

        Raises:
          PublishError: the bus did not take the packet.
        """
        envelope = seal(TELEMETRY, encode_telemetry(packet), self._secret)
        self._bus.publish(TELEMETRY, envelope, _priority(packet))


def _priority(packet: TelemetryPacket) -> Priority:
    """That of the step, which the risk rules set; between steps, what is critical is urgent."""
    if "priority" in packet.health.indicators:
        return Priority[packet.health.indicators["priority"]]
    return Priority.CRITICAL if packet.level is TelemetryLevel.CRITICAL else Priority.NORMAL
