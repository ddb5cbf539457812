"""From outcomes to telemetry packets, and from packets to sinks.

A sink that is slow or fails never delays a step, nor another sink: its packets wait in a
bounded queue, the oldest is dropped when that is full, and a thread of its own hands them out.
"""

from __future__ import annotations

import collections
import json
import math
import os
import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Protocol

from tamiyo_jax.contracts import Event, Metric, TelemetryPacket
from tamiyo_jax.errors import TamiyoError

__all__ = ["JsonLinesSink", "MemorySink", "Sink", "Telemetry"]

QUEUE_PACKETS = 1024


class Sink(Protocol):
    """Where telemetry goes."""

    def emit(self, packet: TelemetryPacket) -> None:
        """Take one packet; called from one thread only.

        Raises:
          OSError, TamiyoError: the packet is lost to this sink, which is counted, and others
            get it.
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
    """Appends one JSON object per packet to a file; a loss that is not finite is null there.

    A line that an earlier write left incomplete is ended first, so that it does not take the next
    one with it.

    A full file gets ``.1`` at the end of its name, in place of the one that had it, and a new
    one begins.

    Args:
      path: the file; a relative path is resolved once, here.
      max_bytes: limit of each of the two files, bytes.
    """

    def __init__(self, path: str | os.PathLike[str], max_bytes: int = 64 << 20) -> None:
        self._path = Path(path).absolute()
        self._max_bytes = max_bytes

    def emit(self, packet: TelemetryPacket) -> None:
        """See `Sink`."""
        record = asdict(packet)
        for metric in record["metrics"]:
            if not math.isfinite(metric["value"]):
                metric["value"] = None  # JSON has no NaN and no infinity
        line = json.dumps(record, separators=(",", ":"), allow_nan=False).encode() + b"\n"
        with suppress(FileNotFoundError):
            if self._path.stat().st_size + len(line) > self._max_bytes:
                self._path.replace(self._path.with_name(self._path.name + ".1"))
        with self._path.open("a+b") as file:
            if file.tell() and os.pread(file.fileno(), 1, file.tell() - 1) != b"\n":
                line = b"\n" + line  # an earlier write was cut short
            file.write(line)


class _Channel:
    """One sink, its bounded queue and its thread."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._queue: collections.deque[TelemetryPacket] = collections.deque()
        self._changed = threading.Condition()
        self._busy = False
        self._closing = False
        self._over = False
        self.dropped = 0
        self._thread = threading.Thread(target=self._deliver, name="telemetry", daemon=True)
        self._thread.start()

    def emit(self, packet: TelemetryPacket) -> None:
        with self._changed:
            if self._over:
                self.dropped += 1
                return
            if len(self._queue) >= QUEUE_PACKETS:
                self._queue.popleft()
                self.dropped += 1
            self._queue.append(packet)
            self._changed.notify_all()

    def flush(self, timeout: float) -> bool:
        with self._changed:
            self._changed.wait_for(lambda: self._over or self._idle, timeout)
            return self._idle

    def close(self, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        self.flush(timeout)
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join(max(0.0, deadline - time.monotonic()))

    @property
    def _idle(self) -> bool:
        return not self._queue and not self._busy

    def _deliver(self) -> None:
        try:
            while (packet := self._next()) is not None:
                try:
                    self._sink.emit(packet)
                except (OSError, TamiyoError):
                    with self._changed:
                        self.dropped += 1
        finally:  # also where the sink raised something else, which Python reports
            with self._changed:
                self._over, self._busy = True, False
                self.dropped += len(self._queue)
                self._queue.clear()
                self._changed.notify_all()

    def _next(self) -> TelemetryPacket | None:
        with self._changed:
            self._busy = False
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._queue or self._closing)
            if not self._queue:
                return None
            self._busy = True
            return self._queue.popleft()


class Telemetry:
    """The way to the sinks: a bounded queue and a thread for each, so that none delays another.

    A sink that raises anything but `OSError` and `TamiyoError` is broken: the traceback goes
    where those of threads go, the sink gets no further packet, and what it misses is counted.
    """

    def __init__(self, sinks: Iterable[Sink]) -> None:
        self._channels = [_Channel(sink) for sink in sinks]

    @property
    def wanted(self) -> bool:
        """Whether there is any sink; without one no packet need be made."""
        return bool(self._channels)

    @property
    def dropped(self) -> int:
        """Packets that a sink never got, over all sinks."""
        return sum(channel.dropped for channel in self._channels)

    def emit(self, packet: TelemetryPacket) -> None:
        """Queue a packet; returns at once."""
        for channel in self._channels:
            channel.emit(packet)

    def metric(self) -> Metric:
        """How many packets sinks never got."""
        return Metric("tamiyo.telemetry.dropped_total", float(self.dropped), "packets")

    def flush(self, timeout: float) -> bool:
        """Wait until the queues are empty; False if `timeout` seconds each were not enough."""
        return all([channel.flush(timeout) for channel in self._channels])

    def close(self, timeout: float = 5.0) -> None:
        """Hand out what is queued, for at most `timeout` seconds each, and end the threads."""
        for channel in self._channels:
            channel.close(timeout)
