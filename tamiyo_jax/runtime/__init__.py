"""The effectful shell around the controller."""

from tamiyo_jax.policy import Policy
from tamiyo_jax.runtime.decision import Decision, Latency
from tamiyo_jax.runtime.library import (
    BlueprintLibrary,
    Change,
    ChangeKind,
    MemoryBlueprintLibrary,
    SqliteBlueprintLibrary,
)
from tamiyo_jax.runtime.service import Tamiyo
from tamiyo_jax.runtime.telemetry import JsonLinesSink, MemorySink, Sink

__all__ = [
    "BlueprintLibrary",
    "Change",
    "ChangeKind",
    "Decision",
    "JsonLinesSink",
    "Latency",
    "MemoryBlueprintLibrary",
    "MemorySink",
    "Policy",
    "Sink",
    "SqliteBlueprintLibrary",
    "Tamiyo",
]
