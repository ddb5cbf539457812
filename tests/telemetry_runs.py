"""A short run in which everything happens that sinks receive."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from making import make_packet, make_seed, open_tamiyo

from tamiyo_jax.bus import MemoryBus
from tamiyo_jax.contracts import Metric, SeedStage, TelemetryPacket
from tamiyo_jax.errors import UnknownBlueprintError
from tamiyo_jax.telemetry import MemorySink, Sink

DECISIONS = 12
FAILED_AT = 1_000


def eventful_run(
    directory: Path, sinks: Iterable[Sink] = (), **arguments: Any
) -> list[TelemetryPacket]:
    """Decides twelve times, the last time on a loss that is NaN; fails once; switches mode.

    Returns:
      The packets that the sinks received; none was lost.
    """
    memory = MemorySink()
    arguments = {"bus": MemoryBus(), **arguments}
    with open_tamiyo(directory, sinks=(*sinks, memory), **arguments) as tamiyo:
        for step in range(DECISIONS - 2):
            tamiyo.step(make_packet(step, seeds=(make_seed(),)))
        with pytest.raises(UnknownBlueprintError):
            tamiyo.step(make_packet(blueprint_id="nowhere", global_step=FAILED_AT))
        tamiyo.set_mode("shadow")
        tamiyo.step(make_packet(DECISIONS - 2))
        grown = make_seed("s0", SeedStage.BLENDING, metrics={"alpha": 0.5, "contribution": 0.01})
        metrics = {**make_packet().training_metrics, "live_parameters": 330.0, "lr_multiplier": 0.5}
        last = {"validation_loss": float("nan"), "validation_accuracy": 0.5, "seeds": (grown,)}
        tamiyo.step(make_packet(DECISIONS - 1, training_metrics=metrics, **last))
        telemetry = tamiyo._parts.telemetry
        assert telemetry.flush(30.0)
        assert telemetry.dropped == 0
    return list(memory.packets)


def values(packets: Iterable[TelemetryPacket], name: str) -> list[float]:
    """What a metric was in every packet that has it."""
    metrics: list[Metric] = [metric for packet in packets for metric in packet.metrics]
    return [metric.value for metric in metrics if metric.name == name]


def newest(packets: Iterable[TelemetryPacket]) -> dict[str, float]:
    """The metrics of the last decided step."""
    *_, last = (packet for packet in packets if packet.metrics)
    return {metric.name: metric.value for metric in last.metrics}
