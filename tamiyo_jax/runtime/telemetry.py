"""From outcomes to telemetry packets, and from packets to sinks.

A sink that is slow or fails never delays a step: packets wait in a bounded queue, the oldest
is dropped when it is full, and one thread hands them out.
"""

from __future__ import annotations

import collections
import json
import os
import threading
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Protocol

from tamiyo_jax.contracts import Event, Metric, TelemetryPacket

__all__ = ["JsonLinesSink", "MemorySink", "Sink", "Telemetry"]

QUEUE_PACKETS = 1024


class Sink(Protocol):
    """Where telemetry goes."""

    def emit(self, packet: TelemetryPacket) -> None:
        """Take one packet; called from the telemetry thread only.

        Raises:
          OSError: the packet is lost to this sink, which is counted, and others get it.
        """
        ...


class MemorySink:
    """Keeps the newest packets in memory."""

    def __init__(self, capacity: int = 4096) -> None:
        self.packets: collections.deque[TelemetryPacket] = collections.deque(maxlen=capacity)

    def emit(self, packet: TelemetryPacket) -> None:
        """See `Sink`."""
        self.packets.append(packet)

    @property
    def events(self) -> list[Event]:
        """Events of all packets kept."""
        return [event for packet in list(self.packets) for event in packet.events]


class JsonLinesSink:
    """Appends one JSON object per packet to a file."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = Path(path)

    def emit(self, packet: TelemetryPacket) -> None:
        """See `Sink`."""
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(packet), separators=(",", ":")) + "\n")


class Telemetry:
    """The bounded queue and the thread between the controller and its sinks."""

    def __init__(self, sinks: Iterable[Sink]) -> None:
        self._sinks = tuple(sinks)
        self._queue: collections.deque[TelemetryPacket] = collections.deque()
        self._changed = threading.Condition()
        self._busy = False
        self._closing = False
        self.dropped = 0
        self._thread = threading.Thread(target=self._deliver, name="telemetry", daemon=True)
        if self._sinks:
            self._thread.start()

    def emit(self, packet: TelemetryPacket) -> None:
        """Queue a packet; returns at once."""
        if not self._sinks:
            return
        with self._changed:
            if len(self._queue) >= QUEUE_PACKETS:
                self._queue.popleft()
                self.dropped += 1
            self._queue.append(packet)
            self._changed.notify_all()

    def metric(self) -> Metric:
        """How many packets sinks never got."""
        return Metric("tamiyo.telemetry.dropped_total", float(self.dropped), "packets")

    def flush(self, timeout: float) -> bool:
        """Wait until the queue is empty; False if `timeout` seconds were not enough."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._queue and not self._busy, timeout)

    def close(self, timeout: float = 5.0) -> None:
        """Hand out what is queued, for at most `timeout` seconds, and end the thread."""
        if not self._sinks:
            return
        self.flush(timeout)
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join(timeout)

    def _deliver(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._queue or self._closing)
                if not self._queue:
                    return
                packet = self._queue.popleft()
                self._busy = True
            for sink in self._sinks:
                try:
                    sink.emit(packet)
                except OSError:
                    self.dropped += 1
            with self._changed:
                self._busy = False
                self._changed.notify_all()
