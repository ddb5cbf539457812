"""Telemetry for TensorBoard, beside the curves of the training."""

from __future__ import annotations

from typing import Protocol

from tamiyo_jax.contracts import Event, TelemetryPacket

__all__ = ["SummaryWriter", "TensorBoardSink"]


class SummaryWriter(Protocol):
    """The part of tensorboardX's writer that is used; the one of PyTorch has it too."""

    def add_scalar(self, tag: str, value: float, step: int, walltime: float, /) -> object:
        """Write one point of a curve; `walltime` in seconds since the epoch."""
        ...

    def add_text(self, tag: str, text: str, step: int, walltime: float, /) -> object:
        """Write a text of Markdown."""
        ...


class TensorBoardSink:
    """Writes metrics as curves and events as texts, over the optimiser steps of the training.

    A metric ``tamiyo.step.latency_ms`` has the tag ``tamiyo/step/latency_ms``, and an event
    ``step_failed`` the tag ``tamiyo/events/step_failed``. What happens between two steps is
    put at the one before.

    Args:
      writer: ``tensorboardX.SummaryWriter(directory)``, which ``tamiyo_jax[telemetry]``
        installs. The training may write to it too. Close it after the controller.
    """

    def __init__(self, writer: SummaryWriter) -> None:
        self._writer = writer
        self._step = 0

    def emit(self, packet: TelemetryPacket) -> None:
        """See `Sink`."""
        self._step = int(packet.health.indicators.get("global_step", self._step))
        seconds = packet.timestamp_ns / 1e9
        for metric in packet.metrics:
            tag = metric.name.replace(".", "/")
            self._writer.add_scalar(tag, metric.value, self._step, seconds)
        for event in packet.events:
            tag = f"tamiyo/events/{event.name}"
            self._writer.add_text(tag, _text(event), self._step, seconds)


def _text(event: Event) -> str:
    facts = (f"- {name}: {value}" for name, value in event.attributes.items())
    return "\n".join((f"**{event.level.name}**", "", *facts))
