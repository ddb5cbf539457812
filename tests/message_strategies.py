"""Messages of every kind, as a host or a peer could make them."""

from __future__ import annotations

from hypothesis import strategies as st

from tamiyo_jax.contracts import (
    AdaptationCommand,
    CircuitBreakerAdjustment,
    CircuitBreakerState,
    CommandType,
    Event,
    FieldReport,
    HardwareContext,
    HealthStatus,
    Metric,
    MitigationAction,
    OptimizerAdjustment,
    PolicyUpdate,
    ReportOutcome,
    Rollback,
    SeedAdjustment,
    SeedOperation,
    SeedStage,
    SeedState,
    SystemHealth,
    SystemStatePacket,
    TelemetryLevel,
    TelemetryPacket,
)

text = st.text(max_size=12)
numbers = st.floats(width=32, allow_nan=False)
u32 = st.integers(0, 2**32 - 1)
u64 = st.integers(0, 2**64 - 1)
times = st.integers(-(2**62), 2**62)
metrics = st.dictionaries(text, numbers, max_size=4)
attributes = st.dictionaries(text, text, max_size=4)


def tuples(values: st.SearchStrategy) -> st.SearchStrategy:
    return st.lists(values, max_size=3).map(tuple)


hardware = st.builds(
    HardwareContext,
    text,
    text,
    *(st.none() | numbers for _ in range(4)),
    st.none() | u32,
)
seeds = st.builds(
    SeedState,
    text,
    st.sampled_from(SeedStage),
    *(st.none() | numbers for _ in range(3)),
    *(st.none() | u32 for _ in range(2)),
    metrics,
)
packets = st.builds(
    SystemStatePacket,
    packet_id=text,
    training_run_id=text,
    blueprint_id=text,
    candidate_blueprint_ids=tuples(text),
    current_epoch=u32,
    global_step=u64,
    validation_loss=st.none() | numbers,
    validation_accuracy=st.none() | numbers,
    training_loss=st.none() | numbers,
    training_metrics=metrics,
    seeds=tuples(seeds),
    optimizer_id=st.none() | text,
    restorable_checkpoint=st.none() | text,
    hardware=st.none() | hardware,
    source_subsystem=text,
    experiment_name=text,
    timestamp_ns=u64,
)
payloads = st.one_of(
    st.none(),
    st.builds(SeedAdjustment, st.sampled_from(SeedOperation), st.none() | text, metrics),
    st.builds(OptimizerAdjustment, text, metrics),
    st.builds(CircuitBreakerAdjustment, st.sampled_from(CircuitBreakerState), text),
    st.builds(Rollback, text),
)
commands = st.builds(
    AdaptationCommand,
    command_id=text,
    command_type=st.sampled_from(CommandType),
    issued_at_ns=st.none() | times,
    execution_deadline_ms=u32,
    target_seed_id=st.none() | text,
    issued_by=text,
    payload=payloads,
    annotations=attributes,
)
reports = st.builds(
    FieldReport,
    *(text for _ in range(5)),
    st.sampled_from(ReportOutcome),
    st.none() | times,
    metrics=metrics,
    observation_window_epochs=u32,
    tamiyo_policy_version=text,
    follow_up_actions=tuples(st.builds(MitigationAction, text, text)),
    notes=text,
)
updates = st.builds(
    PolicyUpdate,
    text,
    text,
    st.none() | times,
    text,
    st.binary(max_size=32),
    text,
    text,
)
telemetry = st.builds(
    TelemetryPacket,
    text,
    times,
    st.sampled_from(TelemetryLevel),
    tuples(st.builds(Metric, text, st.floats(allow_nan=False), text, attributes)),
    tuples(st.builds(Event, text, st.sampled_from(TelemetryLevel), attributes, text)),
    st.builds(SystemHealth, st.sampled_from(HealthStatus), text, attributes),
    text,
)
