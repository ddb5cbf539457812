"""Second half of a step: a policy's answer becomes a decision, or a failure a record of it.

Pure: time and ids are arguments, and the state that comes in is never changed. The policy
runs between `observe` and `conclude`, wherever the caller wants it; `step` composes the
three for a caller that wants it right here.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TypeVar

from tamiyo_jax.config import TamiyoConfig
from tamiyo_jax.contracts import (
    AdaptationCommand,
    Blueprint,
    CircuitBreakerAdjustment,
    CircuitBreakerState,
    Event,
    HealthStatus,
    SystemStatePacket,
    TelemetryLevel,
)
from tamiyo_jax.controller._answer import Answer, ask
from tamiyo_jax.controller._command import find_evaluated_blueprint, make_command
from tamiyo_jax.controller._observe import Situation, observe
from tamiyo_jax.controller._outcome import Failure, Mode, Outcome
from tamiyo_jax.controller._report import failure_report, step_report
from tamiyo_jax.controller._runs import select_run
from tamiyo_jax.controller._state import TamiyoState, with_failure
from tamiyo_jax.controller._windows import watch
from tamiyo_jax.errors import TamiyoError
from tamiyo_jax.policy import Policy, Proposal, propose
from tamiyo_jax.risk import (
    Stage,
    apply_verdict,
    call_failed,
    climb,
    gate,
    guard,
    health,
    loss_delta,
    may_brake,
    priority,
    read_signals,
)

__all__ = ["GUARD_POLICY", "conclude", "fail", "step"]

GUARD_POLICY = "guard"

Params = TypeVar("Params")
PolicyState = TypeVar("PolicyState")


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
    shadow = mode is Mode.SHADOW
    # Where there is nothing to grow, shadow previews the guard: its rules, and its answers.
    previews = shadow and config.packet.seedless
    proposal = None if answer is None or previews else _propose(config, situation, answer)
    evaluated = find_evaluated_blueprint(situation, proposal)
    delta, risk = loss_delta(state.risk, packet)
    signals = read_signals(
        packet,
        loss_delta=delta,
        conservative=state.risk.conservative is not None,
        blueprint=evaluated,
        policy_risk_score=None if proposal is None else proposal.risk_score,
        coverage=situation.total_coverage,
    )
    free = may_brake(risk, state.run_steps, config.guard)
    if proposal is None:
        verdict = guard(signals, config.risk, may_brake=free)
    else:
        verdict = gate(
            proposal.command_type,
            proposal.operation,
            signals,
            config.risk,
            reason=proposal.reason,
            explanation=proposal.explanation,
        )
    ladder, rung = climb(
        risk.ladder,
        verdict,
        packet,
        config.guard,
        guards=proposal is None,
        seedless=config.packet.seedless,
        may_brake=free,
    )
    risk, verdict = replace(risk, ladder=ladder), rung.verdict
    command = make_command(
        config,
        situation,
        proposal,
        rung,
        policy_version=policy_version,
        command_id=command_id,
        now_ns=now_ns,
    )
    risk, risk_events, escalate = apply_verdict(
        risk, verdict, state.run_steps, shadow=shadow, config=config.risk
    )
    events = (*situation.events, *verdict.events, *rung.events, *risk_events)
    condition = health(events, verdict.command_type, verdict.reason)
    report = step_report(
        packet,
        evaluated,
        proposal,
        verdict,
        command,
        loss_delta=delta,
        inference_ms=None if answer is None else answer.latency_ms,
        policy_version=policy_version,
        now_ns=now_ns,
        report_id=report_id,
    )
    windows, closed_windows = watch(
        state.windows,
        report,
        epoch=packet.current_epoch,
        critical=condition.status is HealthStatus.CRITICAL,
        carried_out=command is not None and not shadow,
        config=config.storage,
    )
    after = replace(
        state,
        policy_state=state.policy_state if answer is None else answer.policy_state,
        registries=situation.registries,
        risk=risk,
        windows=windows,
        host_breaker=state.host_breaker if shadow else _host_breaker(state, command),
        missing_features=situation.missing,
        truncated=situation.truncated,
        layout=situation.layout,
        steps=state.steps + 1,
        run_steps=state.run_steps + 1,
    )
    return after, Outcome(
        situation=situation,
        outputs=None if answer is None else answer.outputs,
        proposal=proposal,
        verdict=verdict,
        command=command,
        report=report,
        closed_windows=closed_windows,
        events=events,
        priority=priority(events, verdict),
        health=condition,
        loss_delta=delta,
        escalate=escalate or rung.escalate,
        restorable=rung.restorable,
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
        risk, breaker_events = call_failed(risk, stage, now_ns, state.run_steps, config.breakers)
    events = (
        Event("step_failed", TelemetryLevel.CRITICAL, {"error": reason, "message": str(error)}),
        *breaker_events,
    )
    report = failure_report(
        packet, error, policy_version=policy_version, now_ns=now_ns, report_id=report_id
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
    state = select_run(state, packet.training_run_id, policy, max_runs=config.storage.max_runs)
    situation = observe(config, state, packet, blueprint, candidates)
    return conclude(
        config,
        state,
        situation,
        ask(policy, params, state.policy_state, situation.observation),
        mode=Mode.ACT,
        policy_version=policy_version,
        now_ns=now_ns,
        command_id=command_id,
        report_id=report_id,
    )


def _propose(config: TamiyoConfig, situation: Situation, answer: Answer[PolicyState]) -> Proposal:
    return propose(
        situation.packet,
        situation.nodes,
        answer.outputs,
        situation.legality,
        answer.selection,
        config.policy,
    )


def _host_breaker(
    state: TamiyoState[PolicyState], command: AdaptationCommand | None
) -> CircuitBreakerState:
    if command is not None and isinstance(command.payload, CircuitBreakerAdjustment):
        return command.payload.desired_state
    return state.host_breaker
