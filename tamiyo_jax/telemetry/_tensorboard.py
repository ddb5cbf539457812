"""Telemetry for TensorBoard, beside the curves of the training loop."""

from __future__ import annotations

from typing import Protocol

from tamiyo_jax.contracts import Event, TelemetryPacket

__all__ = ["SummaryWriter", "TensorBoardSink"]


class SummaryWriter(Protocol):
    """The methods of tensorboardX's writer that the sink calls; PyTorch's writer has them too."""

    def add_scalar(self, tag: str, value: float, step: int, walltime: float, /) -> object:
        """Write one point of a curve; `walltime` in seconds since the epoch."""
        ...

    def add_text(self, tag: str, text: str, step: int, walltime: float, /) -> object:
        """Write a text of Markdown."""
        ...


class TensorBoardSink:
    """Writes metrics as curves and events as texts, over the steps of the training loop.

    A metric ``tamiyo.step.latency_ms`` has the tag ``tamiyo/step/latency_ms``, and an event
    ``step_failed`` the tag ``tamiyo/events/step_failed``. A decision that does something is a text
    under its action, ``tamiyo/decisions/GERMINATE``. An event between two steps has the number of
    the step before it.

    Args:
      writer: ``tensorboardX.SummaryWriter(directory)``, which ``tamiyo_jax[telemetry]``
        installs. The training may write to it too. Close it after the controller.
    """

    def __init__(self, writer: SummaryWriter) -> None:
        self._writer = writer
        self._step = 0

    def emit(self, packet: TelemetryPacket) -> None:
        """Take a packet; see `Sink`."""
        self._step = int(packet.health.indicators.get("global_step", self._step))
        seconds = packet.timestamp_ns / 1e9
        for metric in packet.metrics:
            tag = metric.name.replace(".", "/")
            self._writer.add_scalar(tag, metric.value, self._step, seconds)
        for event in packet.events:
            self._writer.add_text(_tag(event), _text(event), self._step, seconds)


def _tag(event: Event) -> str:
    if event.name == "decision":
        return f"tamiyo/decisions/{event.attributes['action']}"
    return f"tamiyo/events/{event.name}"


def _text(event: Event) -> str:
    facts = (f"- {name}: {value}" for name, value in event.attributes.items())
    return "\n".join((f"**{event.level.name}**", "", *facts))
