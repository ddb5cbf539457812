"""Telemetry packets of decisions, and the sinks that receive them."""

from tamiyo_jax.telemetry._bus_sink import TELEMETRY, BusSink
from tamiyo_jax.telemetry._dispatch import JsonLinesSink, MemorySink, Sink, Telemetry
from tamiyo_jax.telemetry._opentelemetry import OpenTelemetrySink
from tamiyo_jax.telemetry._packets import (
    damage_events,
    failure_packet,
    outcome_packet,
    status_packet,
)
from tamiyo_jax.telemetry._prometheus import PrometheusSink
from tamiyo_jax.telemetry._tensorboard import TensorBoardSink
from tamiyo_jax.telemetry._wandb import WandbSink

__all__ = [
    "TELEMETRY",
    "BusSink",
    "JsonLinesSink",
    "MemorySink",
    "OpenTelemetrySink",
    "PrometheusSink",
    "Sink",
    "Telemetry",
    "TensorBoardSink",
    "WandbSink",
    "damage_events",
    "failure_packet",
    "outcome_packet",
    "status_packet",
]
