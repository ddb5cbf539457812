"""The effectful shell around the controller."""

from tamiyo_jax.policy import Policy
from tamiyo_jax.runtime.decision import Decision, Latency
from tamiyo_jax.runtime.library import (
    BlueprintLibrary,
    Change,
    ChangeKind,
    MemoryBlueprintLibrary,
)
from tamiyo_jax.runtime.redis_library import RedisBlueprintLibrary
from tamiyo_jax.runtime.service import Tamiyo
from tamiyo_jax.runtime.sqlite_library import SqliteBlueprintLibrary
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
    "RedisBlueprintLibrary",
    "Sink",
    "SqliteBlueprintLibrary",
    "Tamiyo",
]
