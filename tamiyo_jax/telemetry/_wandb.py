"""Telemetry for Weights & Biases, beside what the training loop logs to the same run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from tamiyo_jax.contracts import Event, TelemetryPacket

__all__ = ["WandbRun", "WandbSink"]

_STEP = "tamiyo/global_step"


class WandbRun(Protocol):
    """The methods of ``wandb.Run`` that the sink calls."""

    def define_metric(self, name: str, /, *, step_metric: str) -> object:
        """Plot the metrics of that name over another metric."""
        ...

    def log(self, data: dict[str, Any], /) -> object:
        """Add a row to the history of the run."""
        ...


class WandbSink:
    """Logs metrics as numbers and events as text, over the steps of the training loop.

    A metric ``tamiyo.step.latency_ms`` has the name ``tamiyo/step/latency_ms``, an event
    ``step_failed`` is text under ``tamiyo/events/step_failed``, and a decision that does something
    is text under its action, ``tamiyo/decisions/GERMINATE``. Each packet is one row of the history.
    All are plotted over ``tamiyo/global_step``, so the training loop may log to the same run with
    steps of its own.

    Args:
      run: what ``wandb.init(mode="offline")`` or ``wandb.init()`` returns, with
        ``tamiyo_jax[wandb]``. Finish it after the controller was closed.
    """

    def __init__(self, run: WandbRun) -> None:
        self._run = run
        self._step = 0
        run.define_metric("tamiyo/*", step_metric=_STEP)

    def emit(self, packet: TelemetryPacket) -> None:
        """Take a packet; see `Sink`."""
        self._step = int(packet.health.indicators.get("global_step", self._step))
        row: dict[str, Any] = {_STEP: self._step}
        row |= {metric.name.replace(".", "/"): metric.value for metric in packet.metrics}
        for event in packet.events:
            name, text = _name(event), _text(event.attributes)
            row[name] = f"{row[name]}\n{text}" if name in row else text
        self._run.log(row)


def _name(event: Event) -> str:
    if event.name == "decision":
        return f"tamiyo/decisions/{event.attributes['action']}"
    return f"tamiyo/events/{event.name}"


def _text(attributes: Mapping[str, str]) -> str:
    return "; ".join(f"{name}: {value}" for name, value in attributes.items())
