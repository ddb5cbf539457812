"""Outcomes, failures and findings as telemetry packets."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping

from tamiyo_jax.contracts import (
    Event,
    HealthStatus,
    Metric,
    SystemHealth,
    TelemetryLevel,
    TelemetryPacket,
)
from tamiyo_jax.controller import Failure, Outcome, TamiyoState
from tamiyo_jax.runtime.decision import Decision
from tamiyo_jax.storage import Recovered

__all__ = ["damage_events", "failure_packet", "outcome_packet", "status_packet"]

Indicators = Mapping[str, str]


def outcome_packet(
    outcome: Outcome,
    state: TamiyoState[object],
    decision: Decision,
    indicators: Indicators,
    gauges: Iterable[Metric],
) -> TelemetryPacket:
    """Telemetry of a decided step; `gauges` come from the parts of the controller."""
    packet = outcome.situation.packet
    proposal = outcome.proposal
    facts = dict(indicators) | {"priority": outcome.priority.name, "reason": decision.reason}
    metrics = [
        Metric("tamiyo.loss_delta", outcome.loss_delta, "loss"),
        Metric("tamiyo.conservative_mode", float(state.risk.conservative is not None)),
        Metric("tamiyo.inference.latency_ms", decision.latency.inference_ms, "ms"),
        Metric("tamiyo.step.latency_ms", decision.latency.step_ms, "ms"),
        Metric("tamiyo.encode.latency_ms", decision.latency.encode_ms, "ms"),
        Metric("tamiyo.journal.append_ms", decision.latency.append_ms, "ms"),
        Metric("tamiyo.gnn.feature_coverage", outcome.situation.total_coverage, "share"),
        *(
            Metric(f"tamiyo.gnn.feature_coverage.{group}", share, "share")
            for group, share in decision.coverage.items()
        ),
        *gauges,
    ]
    if packet.validation_loss is not None:
        metrics.append(Metric("tamiyo.validation_loss", packet.validation_loss, "loss"))
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
        events=outcome.events,
        health=SystemHealth(outcome.health.status, outcome.health.summary, facts),
    )


def failure_packet(failure: Failure, indicators: Indicators) -> TelemetryPacket:
    """Telemetry of a step that raised."""
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
    """Telemetry of what happens between two decisions."""
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
    """What opening a journal found damaged."""
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
