"""Telemetry packets of decided steps, failed steps, and changes between two steps."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator, Mapping

from tamiyo_jax.contracts import (
    AdaptationCommand,
    Event,
    HealthStatus,
    Metric,
    OptimizerAdjustment,
    Rollback,
    SeedAdjustment,
    SystemHealth,
    SystemStatePacket,
    TelemetryLevel,
    TelemetryPacket,
)
from tamiyo_jax.controller import Failure, Outcome, TamiyoState
from tamiyo_jax.decision import Decision
from tamiyo_jax.journal import Recovered

__all__ = ["damage_events", "failure_packet", "outcome_packet", "status_packet"]

Indicators = Mapping[str, str]

REPORTED_SEEDS = 16  # seeds with metrics of their own; their ids are labels of metrics


def outcome_packet(
    outcome: Outcome,
    state: TamiyoState[object],
    decision: Decision,
    indicators: Indicators,
    gauges: Iterable[Metric],
) -> TelemetryPacket:
    """Telemetry of a decided step.

    Its events are those of the step, and an event ``decision`` if the decision does something.

    Args:
      outcome: the result of the step.
      state: the controller's state after the step.
      decision: the decision that the caller receives.
      indicators: text by name that every packet of the controller carries.
      gauges: metrics of the controller's parts, such as its workers and its cache.
    """
    packet = outcome.situation.packet
    proposal = outcome.proposal
    facts = dict(indicators) | {
        "priority": outcome.priority.name,
        "action": decision.action,
        "reason": decision.reason,
        "explanation": decision.explanation,
    }
    metrics = [
        Metric("tamiyo.loss_delta", outcome.loss_delta, "loss"),
        Metric("tamiyo.conservative_mode", float(state.risk.conservative is not None)),
        Metric("tamiyo.inference.latency_ms", decision.latency.inference_ms, "ms"),
        Metric("tamiyo.step.latency_ms", decision.latency.step_ms, "ms"),
        Metric("tamiyo.metadata.latency_ms", decision.latency.metadata_ms, "ms"),
        Metric("tamiyo.encode.latency_ms", decision.latency.encode_ms, "ms"),
        Metric("tamiyo.journal.append_ms", decision.latency.append_ms, "ms"),
        Metric("tamiyo.gnn.feature_coverage", outcome.situation.total_coverage, "share"),
        *(
            Metric(f"tamiyo.gnn.feature_coverage.{group}", share, "share")
            for group, share in decision.coverage.items()
        ),
        *_training_metrics(packet),
        *gauges,
    ]
    if proposal is not None:
        facts["blending_method"] = proposal.blending_method
        metrics += [
            Metric("tamiyo.policy.value_estimate", proposal.value),
            Metric("tamiyo.policy.risk_index", float(proposal.risk_index)),
            Metric("tamiyo.policy.risk_score", proposal.risk_score),
            Metric("tamiyo.blending.method_index", float(proposal.blending_index)),
            Metric("tamiyo.blending.schedule_start", proposal.schedule_start, "fraction"),
            Metric("tamiyo.blending.schedule_end", proposal.schedule_end, "fraction"),
        ]
        selected = {
            "tamiyo.selection.seed_index": proposal.seed_index,
            "tamiyo.selection.seed_score": proposal.seed_score,
            "tamiyo.selection.blueprint_index": proposal.blueprint_index,
        }
        metrics += [Metric(name, float(v)) for name, v in selected.items() if v is not None]
    for name, breaker in (("inference", state.risk.inference), ("metadata", state.risk.metadata)):
        metrics.append(Metric(f"tamiyo.breaker.{name}_state", float(breaker.state)))
        metrics.append(Metric(f"tamiyo.breaker.{name}_failures", float(breaker.failures)))
    risk = outcome.situation.blueprint.effective_risk
    if risk is not None:
        metrics.append(Metric("tamiyo.blueprint.risk", risk))
    return TelemetryPacket(
        packet_id=str(uuid.uuid4()),
        timestamp_ns=outcome.report.issued_at_ns or 0,
        level=_level(outcome.events),
        metrics=tuple(metrics),
        events=(*outcome.events, *_decision_events(decision)),
        health=SystemHealth(outcome.health.status, outcome.health.summary, facts),
    )


def _training_metrics(packet: SystemStatePacket) -> Iterator[Metric]:
    """What the training loop reported of the network and of its seeds."""
    reported = (
        ("tamiyo.training_loss", packet.training_loss, "loss"),
        ("tamiyo.validation_loss", packet.validation_loss, "loss"),
        ("tamiyo.validation_accuracy", packet.validation_accuracy, "share"),
        ("tamiyo.live_parameters", packet.training_metrics.get("live_parameters"), "parameters"),
        ("tamiyo.lr_multiplier", packet.training_metrics.get("lr_multiplier"), ""),
    )
    for name, value, unit in reported:
        if value is not None:
            yield Metric(name, value, unit)
    for seed in packet.seeds[:REPORTED_SEEDS]:
        for name, unit in (("contribution", "loss"), ("alpha", "share")):
            if name in seed.metrics:
                yield Metric(f"tamiyo.seed.{name}.{seed.seed_id}", seed.metrics[name], unit)


def _decision_events(decision: Decision) -> Iterator[Event]:
    command = decision.command
    if command is not None:
        attributes = {
            "action": decision.action,
            "reason": decision.reason,
            "explanation": decision.explanation,
            "target": _target(command),
            "command_id": command.command_id,
            "shadow": str(decision.shadow).lower(),
        }
        yield Event("decision", TelemetryLevel.INFO, attributes)


def _target(command: AdaptationCommand) -> str:
    """What a command acts on; empty for a pause."""
    match command.payload:
        case SeedAdjustment(_, blueprint_id, _):
            return " with ".join(filter(None, (command.target_seed_id, blueprint_id)))
        case OptimizerAdjustment(optimizer_id):
            return optimizer_id
        case Rollback(checkpoint):
            return checkpoint
        case _:
            return ""


def failure_packet(failure: Failure, indicators: Indicators) -> TelemetryPacket:
    """Telemetry of a step that raised an error."""
    health = SystemHealth(failure.health.status, failure.health.summary, dict(indicators))
    return TelemetryPacket(
        packet_id=str(uuid.uuid4()),
        timestamp_ns=failure.report.issued_at_ns or 0,
        level=_level(failure.events),
        metrics=(),
        events=failure.events,
        health=health,
    )


def status_packet(
    events: tuple[Event, ...], indicators: Indicators, now_ns: int
) -> TelemetryPacket:
    """Telemetry of events between two decisions."""
    level = _level(events)
    status = {
        TelemetryLevel.CRITICAL: HealthStatus.CRITICAL,
        TelemetryLevel.ERROR: HealthStatus.UNHEALTHY,
        TelemetryLevel.WARNING: HealthStatus.DEGRADED,
    }.get(level, HealthStatus.HEALTHY)
    return TelemetryPacket(
        packet_id=str(uuid.uuid4()),
        timestamp_ns=now_ns,
        level=level,
        metrics=(),
        events=events,
        health=SystemHealth(status, events[-1].name, dict(indicators)),
    )


def damage_events(recovered: Recovered) -> tuple[Event, ...]:
    """Events for the damage that opening a journal found."""
    torn = tuple(
        Event("journal_torn", TelemetryLevel.INFO, {"what": str(damage)})
        for damage in recovered.torn
    )
    corrupt = tuple(
        Event("journal_corruption", TelemetryLevel.CRITICAL, {"what": str(damage)})
        for damage in recovered.corrupt
    )
    return (*torn, *corrupt)


def _level(events: tuple[Event, ...]) -> TelemetryLevel:
    return max((event.level for event in events), default=TelemetryLevel.INFO)
