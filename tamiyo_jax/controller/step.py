"""Second half of a step: a policy's answer becomes a decision, or a failure a record of it.

Pure: time and ids are arguments, and the state that comes in is never changed. The policy
runs between `observe` and `conclude`, wherever the caller wants it; `step` composes the
three for a caller that wants it right here.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Generic, TypeVar

import jax
import numpy as np

from tamiyo_jax.config import TamiyoConfig
from tamiyo_jax.contracts import (
    AdaptationCommand,
    Blueprint,
    CircuitBreakerAdjustment,
    CircuitBreakerState,
    Event,
    FieldReport,
    MitigationAction,
    Priority,
    ReportOutcome,
    SystemHealth,
    SystemStatePacket,
    TelemetryLevel,
)
from tamiyo_jax.controller.command import judged_blueprint, make_command
from tamiyo_jax.controller.observe import Situation, observe
from tamiyo_jax.controller.state import TamiyoState, with_failure
from tamiyo_jax.errors import TamiyoError
from tamiyo_jax.policy import Policy, PolicyOutputs, Proposal, propose, select
from tamiyo_jax.risk import (
    Signals,
    Stage,
    Verdict,
    after_verdict,
    call_failed,
    gate,
    guard,
    health,
    loss_delta,
    may_brake,
    priority,
    read_signals,
    report_outcome,
)

__all__ = ["GUARD_POLICY", "Answer", "Failure", "Mode", "Outcome", "conclude", "fail", "step"]

GUARD_POLICY = "guard"

Params = TypeVar("Params")
PolicyState = TypeVar("PolicyState")

_REPORT_LIMIT = float(np.finfo(np.float32).max)  # numbers of reports are f32 on the wire

_select = jax.jit(select)


class Mode(StrEnum):
    """How much the controller may do."""

    ACT = "act"
    SHADOW = "shadow"
    GUARD = "guard"


@dataclass(frozen=True, slots=True)
class Answer(Generic[PolicyState]):
    """What a policy answered: its next state, its outputs, and how long it took."""

    policy_state: PolicyState
    outputs: PolicyOutputs
    latency_ms: float


@dataclass(frozen=True, slots=True)
class Outcome:
    """All that follows from one step, before anything is signed or written.

    Attributes:
      situation: what was observed.
      outputs: the policy's outputs; None in guard mode.
      proposal: what the policy proposed; None in guard mode.
      verdict: what the gate made of it.
      command: the unsigned command; None for WAIT.
      report: the step's report.
      events: all events of the step, in the order in which they arose.
      priority: priority of the step's telemetry.
      health: health of the controller after the step.
      loss_delta: change of the validation loss.
      escalate: someone must look.
    """

    situation: Situation
    outputs: PolicyOutputs | None
    proposal: Proposal | None
    verdict: Verdict
    command: AdaptationCommand | None
    report: FieldReport
    events: tuple[Event, ...]
    priority: Priority
    health: SystemHealth
    loss_delta: float
    escalate: bool

    @property
    def action(self) -> str:
        """The action proposed, where the command still is that; else the command's type."""
        if self.command is None:
            return "WAIT"
        proposal = self.proposal
        if proposal is not None and proposal.command_type is self.command.command_type:
            return proposal.action.name
        return self.command.command_type.name


@dataclass(frozen=True, slots=True)
class Failure:
    """What follows from a step that raised: a report and events, never a command."""

    report: FieldReport
    events: tuple[Event, ...]
    health: SystemHealth


def conclude(
    config: TamiyoConfig,
    state: TamiyoState[PolicyState],
    situation: Situation,
    answer: Answer[PolicyState] | None,
    *,
    mode: Mode,
    policy_version: str,
    now_ns: int,
    command_id: str,
    report_id: str,
) -> tuple[TamiyoState[PolicyState], Outcome]:
    """Turn an answer into an outcome and the next state.

    Args:
      config: the configuration.
      state: the state that `observe` saw.
      situation: what `observe` made.
      answer: the policy's answer; None in guard mode, which has no policy.
      mode: act, shadow or guard.
      policy_version: names the policy in annotations and reports.
      now_ns: nanoseconds since the epoch.
      command_id: id of the command, should there be one.
      report_id: id of the report.

    Raises:
      NonFiniteOutputError: the policy's outputs hold NaN or infinity.
      NoLegalActionError: the policy's choice is not legal.
    """
    packet = situation.packet
    proposal = None if answer is None else _propose(config, situation, answer.outputs)
    delta, risk = loss_delta(state.risk, packet)
    signals = read_signals(
        packet,
        loss_delta=delta,
        conservative=state.risk.conservative is not None,
        blueprint=judged_blueprint(situation, proposal),
        policy_risk_score=None if proposal is None else proposal.risk_score,
        coverage=situation.total_coverage,
    )
    if proposal is None:
        free = may_brake(risk, state.steps, config.guard)
        verdict = guard(signals, config.risk, may_brake=free)
    else:
        verdict = gate(proposal.command_type, proposal.operation, signals, config.risk)
    command = make_command(
        config,
        situation,
        proposal,
        verdict,
        policy_version=policy_version,
        command_id=command_id,
        now_ns=now_ns,
    )
    shadow = mode is Mode.SHADOW
    risk, risk_events, escalate = after_verdict(
        risk, verdict, state.steps, shadow=shadow, config=config.risk
    )
    events = (*situation.events, *verdict.events, *risk_events)
    after = replace(
        state,
        policy_state=state.policy_state if answer is None else answer.policy_state,
        registries=situation.registries,
        risk=risk,
        host_breaker=state.host_breaker if shadow else _host_breaker(state, command),
        missing_features=situation.missing,
        truncated=situation.truncated,
        layout=situation.observation.layout,
        steps=state.steps + 1,
    )
    return after, Outcome(
        situation=situation,
        outputs=None if answer is None else answer.outputs,
        proposal=proposal,
        verdict=verdict,
        command=command,
        report=_report(
            situation,
            proposal,
            verdict,
            command,
            metrics=_metrics(packet, signals, proposal, answer),
            policy_version=policy_version,
            now_ns=now_ns,
            report_id=report_id,
        ),
        events=events,
        priority=priority(events, verdict),
        health=health(events, verdict.command_type, verdict.reason),
        loss_delta=delta,
        escalate=escalate,
    )


def fail(
    config: TamiyoConfig,
    state: TamiyoState[PolicyState],
    packet: SystemStatePacket,
    error: TamiyoError,
    *,
    stage: Stage | None,
    policy_version: str,
    now_ns: int,
    report_id: str,
) -> tuple[TamiyoState[PolicyState], Failure]:
    """Record a step that raised: CRITICAL event, ABORTED report, nothing else changed.

    Args:
      config: the configuration.
      state: the state before the step.
      packet: the packet as it came, valid or not.
      error: what was raised.
      stage: the stage whose breaker counts this failure; None where none does.
      policy_version: names the policy.
      now_ns: nanoseconds since the epoch.
      report_id: id of the report.
    """
    reason = type(error).__name__
    risk, breaker_events = state.risk, ()
    if stage is not None:
        risk, breaker_events = call_failed(risk, stage, now_ns, state.steps, config.breakers)
    events = (
        Event("step_failed", TelemetryLevel.CRITICAL, {"error": reason, "message": str(error)}),
        *breaker_events,
    )
    report = FieldReport(
        report_id=report_id,
        command_id="",
        training_run_id=_text(getattr(packet, "training_run_id", None)),
        seed_id="",
        blueprint_id=_text(getattr(packet, "blueprint_id", None)),
        outcome=ReportOutcome.ABORTED,
        issued_at_ns=now_ns,
        tamiyo_policy_version=policy_version,
        notes=f"{reason}: {_text(str(error))}",
    )
    return with_failure(state, risk), Failure(report, events, health(events, None, reason))


def step(
    config: TamiyoConfig,
    policy: Policy[Params, PolicyState],
    params: Params,
    state: TamiyoState[PolicyState],
    packet: SystemStatePacket,
    blueprint: Blueprint,
    candidates: tuple[Blueprint, ...],
    *,
    policy_version: str,
    now_ns: int,
    command_id: str,
    report_id: str,
) -> tuple[TamiyoState[PolicyState], Outcome]:
    """One whole decision in this process, as a pure function.

    Raises:
      TamiyoError: whatever `observe`, the policy and `conclude` raise; the state that came
        in is untouched.
    """
    situation = observe(config, state, packet, blueprint, candidates)
    policy_state, outputs = policy.decide(params, state.policy_state, situation.observation)
    return conclude(
        config,
        state,
        situation,
        Answer(policy_state, outputs, 0.0),
        mode=Mode.ACT,
        policy_version=policy_version,
        now_ns=now_ns,
        command_id=command_id,
        report_id=report_id,
    )


def _propose(config: TamiyoConfig, situation: Situation, outputs: PolicyOutputs) -> Proposal:
    legality = situation.observation.legality
    selection = jax.tree.map(np.asarray, _select(outputs, legality))
    return propose(situation.packet, situation.nodes, outputs, legality, selection, config.policy)


def _host_breaker(
    state: TamiyoState[PolicyState], command: AdaptationCommand | None
) -> CircuitBreakerState:
    if command is not None and isinstance(command.payload, CircuitBreakerAdjustment):
        return command.payload.desired_state
    return state.host_breaker


def _metrics(
    packet: SystemStatePacket,
    signals: Signals,
    proposal: Proposal | None,
    answer: Answer[PolicyState] | None,
) -> dict[str, float]:
    """Numbers of the report; one that is not finite, or not on the wire, is left out."""
    metrics = {"loss_delta": signals.loss_delta}
    if proposal is not None and answer is not None:
        metrics |= {
            "param_delta": proposal.lr_delta,
            "value_estimate": proposal.value,
            "risk_index": float(proposal.risk_index),
            "risk_score": proposal.risk_score,
            "blending_index": float(proposal.blending_index),
            "blending_schedule_start": proposal.schedule_start,
            "blending_schedule_end": proposal.schedule_end,
            "inference_ms": answer.latency_ms,
        }
        if proposal.seed_score is not None:
            metrics["selected_seed_score"] = proposal.seed_score
    blueprint = signals.blueprint
    if blueprint is not None and blueprint.effective_risk is not None:
        metrics["blueprint_risk"] = blueprint.effective_risk
    hook = packet.training_metrics.get("hook_latency_ms")
    if hook is not None:
        metrics["hook_latency_ms"] = hook
    return {name: value for name, value in metrics.items() if abs(value) <= _REPORT_LIMIT}


def _report(
    situation: Situation,
    proposal: Proposal | None,
    verdict: Verdict,
    command: AdaptationCommand | None,
    *,
    metrics: dict[str, float],
    policy_version: str,
    now_ns: int,
    report_id: str,
) -> FieldReport:
    target = None if command is None else command.target_seed_id
    follow_up = (
        (MitigationAction("CONSERVATIVE_MODE", verdict.reason),)
        if verdict.enters_conservative
        else ()
    )
    return FieldReport(
        report_id=report_id,
        command_id="" if command is None else command.command_id,
        training_run_id=situation.packet.training_run_id,
        seed_id="" if target is None else target,
        blueprint_id=judged_blueprint(situation, proposal).blueprint_id,
        outcome=report_outcome(verdict),
        issued_at_ns=now_ns,
        metrics=metrics,
        tamiyo_policy_version=policy_version,
        follow_up_actions=follow_up,
        notes=verdict.reason,
    )


def _text(value: object) -> str:
    """Text of an invalid packet as it can be written down; empty where it is no text."""
    return value.encode(errors="replace").decode()[:1024] if isinstance(value, str) else ""
