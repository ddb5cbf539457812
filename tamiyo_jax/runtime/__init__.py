"""The effectful shell around the controller."""

from tamiyo_jax.policy import Policy
from tamiyo_jax.runtime.bus import Bus, MemoryBus
from tamiyo_jax.runtime.bus_sink import TELEMETRY, BusSink
from tamiyo_jax.runtime.decision import Decision, Latency
from tamiyo_jax.runtime.history import read_history
from tamiyo_jax.runtime.library import (
    BlueprintLibrary,
    Change,
    ChangeKind,
    MemoryBlueprintLibrary,
)
from tamiyo_jax.runtime.opentelemetry_sink import OpenTelemetrySink
from tamiyo_jax.runtime.policies import choose_policy
from tamiyo_jax.runtime.prometheus_sink import PrometheusSink
from tamiyo_jax.runtime.publishing import FIELD_REPORTS, ReportReader
from tamiyo_jax.runtime.redis_bus import RedisBus
from tamiyo_jax.runtime.redis_library import RedisBlueprintLibrary
from tamiyo_jax.runtime.replay import Replay
from tamiyo_jax.runtime.service import Tamiyo
from tamiyo_jax.runtime.sqlite_library import SqliteBlueprintLibrary
from tamiyo_jax.runtime.telemetry import JsonLinesSink, MemorySink, Sink
from tamiyo_jax.runtime.tensorboard_sink import TensorBoardSink
from tamiyo_jax.runtime.what_if import what_if

__all__ = [
    "FIELD_REPORTS",
    "TELEMETRY",
    "BlueprintLibrary",
    "Bus",
    "BusSink",
    "Change",
    "ChangeKind",
    "Decision",
    "JsonLinesSink",
    "Latency",
    "MemoryBlueprintLibrary",
    "MemoryBus",
    "MemorySink",
    "OpenTelemetrySink",
    "Policy",
    "PrometheusSink",
    "RedisBlueprintLibrary",
    "RedisBus",
    "Replay",
    "ReportReader",
    "Sink",
    "SqliteBlueprintLibrary",
    "Tamiyo",
    "TensorBoardSink",
    "choose_policy",
    "read_history",
    "what_if",
]
