"""Tables that map the fields of each dataclass to the fields of its Leyline message."""

from __future__ import annotations

from typing import cast

from google.protobuf.message import Message
from google.protobuf.struct_pb2 import Struct

from tamiyo_jax.contracts._codec import (
    Codec,
    Field,
    WireError,
    enumeration,
    mapping,
    one_of,
    optional,
    part,
    parts,
    plain,
    required,
    strings,
    time,
)
from tamiyo_jax.contracts._command import (
    AdaptationCommand,
    CircuitBreakerAdjustment,
    CircuitBreakerState,
    CommandType,
    OptimizerAdjustment,
    Rollback,
    SeedAdjustment,
    SeedOperation,
)
from tamiyo_jax.contracts._packet import HardwareContext, SeedStage, SeedState, SystemStatePacket
from tamiyo_jax.contracts._policy_update import PolicyUpdate
from tamiyo_jax.contracts._report import FieldReport, MitigationAction, ReportOutcome
from tamiyo_jax.contracts._telemetry import (
    Event,
    HealthStatus,
    Metric,
    SystemHealth,
    TelemetryLevel,
    TelemetryPacket,
)

__all__ = ["COMMAND", "PACKET", "POLICY_UPDATE", "REPORT", "TELEMETRY"]


def _put_entry(message: Message, name: str, value: str) -> None:
    cast(Struct, message).fields[name].string_value = value


def _get_entry(message: Message, name: str) -> str:
    entries = cast(Struct, message).fields
    if list(entries) != [name] or entries[name].WhichOneof("kind") != "string_value":
        raise WireError("", sorted(entries), f"a rollback names its {name}, and nothing else")
    return entries[name].string_value


_HARDWARE = Codec(
    HardwareContext,
    (
        plain("device_type"),
        plain("device_id"),
        optional("total_memory_gb"),
        optional("available_memory_gb"),
        optional("temperature_celsius"),
        optional("utilization_percent"),
        optional("compute_capability"),
    ),
)
_SEED = Codec(
    SeedState,
    (
        plain("seed_id"),
        enumeration("stage", SeedStage),
        optional("gradient_norm"),
        optional("learning_rate"),
        optional("layer_depth"),
        mapping("metrics"),
        optional("age_epochs"),
        optional("risk_score"),
    ),
)
PACKET = Codec(
    SystemStatePacket,
    (
        plain("current_epoch"),
        optional("validation_accuracy"),
        optional("validation_loss"),
        plain("timestamp_ns"),
        part("hardware", _HARDWARE, "hardware_context"),
        mapping("training_metrics"),
        parts("seeds", _SEED, "seed_states"),
        plain("packet_id"),
        plain("global_step"),
        optional("training_loss"),
        plain("source_subsystem"),
        plain("training_run_id"),
        plain("experiment_name"),
        plain("blueprint_id"),
        strings("candidate_blueprint_ids"),
        optional("optimizer_id"),
        optional("restorable_checkpoint"),
    ),
)
_SEED_ADJUSTMENT = Codec(
    SeedAdjustment,
    (
        enumeration("operation", SeedOperation),
        optional("blueprint_id"),
        mapping("parameters"),
    ),
)
_OPTIMIZER_ADJUSTMENT = Codec(
    OptimizerAdjustment, (plain("optimizer_id"), mapping("hyperparameters"))
)
_CIRCUIT_BREAKER = Codec(
    CircuitBreakerAdjustment,
    (enumeration("desired_state", CircuitBreakerState), plain("rationale")),
)
_ROLLBACK = Codec(Rollback, (Field("checkpoint", "checkpoint", _put_entry, _get_entry),))
COMMAND = Codec(
    AdaptationCommand,
    (
        plain("command_id"),
        enumeration("command_type", CommandType),
        optional("target_seed_id"),
        plain("execution_deadline_ms"),
        time("issued_at_ns", "issued_at"),
        plain("issued_by"),
        one_of(
            "payload",
            ("seed_operation", _SEED_ADJUSTMENT),
            ("optimizer_adjustment", _OPTIMIZER_ADJUSTMENT),
            ("circuit_breaker", _CIRCUIT_BREAKER),
            ("rollback_payload", _ROLLBACK),
        ),
        mapping("annotations"),
    ),
)
_MITIGATION = Codec(MitigationAction, (plain("action_type"), plain("rationale")))
REPORT = Codec(
    FieldReport,
    (
        plain("report_id"),
        plain("command_id"),
        plain("training_run_id"),
        plain("seed_id"),
        plain("blueprint_id"),
        enumeration("outcome", ReportOutcome),
        mapping("metrics"),
        plain("observation_window_epochs"),
        time("issued_at_ns", "issued_at"),
        plain("tamiyo_policy_version"),
        parts("follow_up_actions", _MITIGATION),
        plain("notes"),
    ),
)
POLICY_UPDATE = Codec(
    PolicyUpdate,
    (
        plain("policy_id"),
        plain("training_run_id"),
        time("issued_at_ns", "issued_at"),
        plain("policy_version", "tamiyo_policy_version"),
        plain("payload"),
        plain("schema_digest"),
        plain("signature"),
    ),
)
_METRIC = Codec(Metric, (plain("name"), plain("value"), plain("unit"), mapping("attributes")))
_EVENT = Codec(
    Event,
    (
        plain("event_id"),
        plain("name", "description"),
        enumeration("level", TelemetryLevel),
        mapping("attributes"),
    ),
)
_HEALTH = Codec(
    SystemHealth,
    (enumeration("status", HealthStatus), plain("summary"), mapping("indicators")),
)
TELEMETRY = Codec(
    TelemetryPacket,
    (
        plain("packet_id"),
        required(time("timestamp_ns", "timestamp")),
        plain("source_subsystem"),
        enumeration("level", TelemetryLevel),
        parts("metrics", _METRIC),
        parts("events", _EVENT),
        required(part("health", _HEALTH, "system_health")),
    ),
)
