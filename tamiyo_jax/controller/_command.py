"""From proposal and verdict to a command and its annotations."""

from __future__ import annotations

import json

from tamiyo_jax.config import TamiyoConfig
from tamiyo_jax.contracts import (
    AdaptationCommand,
    Blueprint,
    CircuitBreakerAdjustment,
    CommandType,
    OptimizerAdjustment,
    Payload,
    Rollback,
    SeedAdjustment,
    SeedState,
)
from tamiyo_jax.controller._blend_mode import blend_annotations
from tamiyo_jax.controller._observe import Situation
from tamiyo_jax.errors import NoLegalActionError
from tamiyo_jax.policy import Action, Proposal
from tamiyo_jax.risk import Rung, clip_lr_delta

__all__ = ["find_evaluated_blueprint", "make_command"]


def find_evaluated_blueprint(situation: Situation, proposal: Proposal | None) -> Blueprint:
    """The selected candidate of a germination, the active blueprint otherwise."""
    if proposal is not None and proposal.action is Action.GERMINATE:
        for blueprint in situation.nodes:
            if blueprint.blueprint_id == proposal.blueprint_id:
                return blueprint
    return situation.blueprint


def make_command(
    config: TamiyoConfig,
    situation: Situation,
    proposal: Proposal | None,
    rung: Rung,
    *,
    policy_version: str,
    command_id: str,
    now_ns: int,
) -> AdaptationCommand | None:
    """The unsigned command of a verdict; None for WAIT.

    Every id in it is one of the packet's or of a resolved blueprint.

    Raises:
      NoLegalActionError: the verdict asks for what the packet does not offer.
    """
    verdict = rung.verdict
    if verdict.command_type is None:
        return None
    payload = _payload(config, situation, proposal, rung)
    seed = _target(situation, proposal) if isinstance(payload, SeedAdjustment) else None
    blueprint = find_evaluated_blueprint(situation, proposal)
    return AdaptationCommand(
        command_id=command_id,
        command_type=verdict.command_type,
        issued_at_ns=now_ns,
        execution_deadline_ms=config.deadlines.execution_ms,
        target_seed_id=None if seed is None else seed.seed_id,
        payload=payload,
        annotations={
            "risk_reason": verdict.reason,
            "policy_version": policy_version,
            "feature_coverage": f"{situation.total_coverage:.6f}",
            **_rollback_annotations(rung),
            "coverage_types": json.dumps(dict(situation.coverage), sort_keys=True),
            **_proposal_annotations(proposal),
            **_blueprint_annotations(blueprint),
            **({} if seed is None else blend_annotations(config.policy, seed, blueprint)),
        },
    )


def _target(situation: Situation, proposal: Proposal | None) -> SeedState | None:
    """The packet's seed that a proposal acts on."""
    if proposal is None or proposal.seed_index is None:
        return None
    return situation.packet.seeds[proposal.seed_index]


def _payload(
    config: TamiyoConfig, situation: Situation, proposal: Proposal | None, rung: Rung
) -> Payload | None:
    packet, verdict = situation.packet, rung.verdict
    match verdict.command_type:
        case CommandType.SEED if proposal is not None and proposal.operation is not None:
            return SeedAdjustment(proposal.operation, proposal.blueprint_id, proposal.parameters)
        case CommandType.OPTIMIZER if packet.optimizer_id is not None:
            delta = _lr_delta(config, proposal, rung)
            return OptimizerAdjustment(packet.optimizer_id, {"lr_delta": delta})
        case CommandType.CIRCUIT_BREAKER if proposal is not None and proposal.breaker:
            return CircuitBreakerAdjustment(proposal.breaker, verdict.reason)
        case CommandType.ROLLBACK if rung.checkpoint is not None:
            return Rollback(rung.checkpoint)
        case CommandType.PAUSE:
            return None
        case kind:
            raise NoLegalActionError(
                f"the verdict {kind} ({verdict.reason}) names something that packet "
                f"{packet.packet_id} does not offer",
                packet_id=packet.packet_id,
                reason=verdict.reason,
            )


def _lr_delta(config: TamiyoConfig, proposal: Proposal | None, rung: Rung) -> float:
    """The guard's brake or its release; or the policy's own change, never up under a downgrade."""
    verdict = rung.verdict
    if rung.lr_delta is not None:
        return rung.lr_delta
    if verdict.brakes or proposal is None:
        return -config.guard.brake
    return clip_lr_delta(proposal.lr_delta) if verdict.downgraded else proposal.lr_delta


def _rollback_annotations(rung: Rung) -> dict[str, str]:
    """What a host does besides restoring: skip the data in between, and brake."""
    if rung.verdict.command_type is not CommandType.ROLLBACK:
        return {}
    annotations = {"skip_data": "true"} if rung.skip_data else {}
    if rung.lr_delta is not None:
        annotations["lr_delta"] = _number(rung.lr_delta)
    return annotations


def _number(value: float) -> str:
    return f"{value:.9g}"


def _proposal_annotations(proposal: Proposal | None) -> dict[str, str]:
    if proposal is None:
        return {}
    optional = {
        "selected_seed": proposal.seed_id,
        "selected_blueprint": proposal.blueprint_id,
    }
    return {
        "policy_action": proposal.action.name,
        "policy_param_delta": _number(proposal.lr_delta),
        "policy_value_estimate": _number(proposal.value),
        "policy_risk_index": str(proposal.risk_index),
        "policy_risk_score": _number(proposal.risk_score),
        "blending_method": proposal.blending_method,
        "blending_schedule_start": _number(proposal.schedule_start),
        "blending_schedule_end": _number(proposal.schedule_end),
        "blending_schedule_units": "fraction_0_1",
        "breaker_open_score": _number(proposal.breaker_open_score),
        "breaker_close_score": _number(proposal.breaker_close_score),
        **{name: value for name, value in optional.items() if value is not None},
    }


def _blueprint_annotations(blueprint: Blueprint) -> dict[str, str]:
    annotations = {
        "blueprint_tier": blueprint.tier.name,
        "blueprint_stage": str(blueprint.stage),
    }
    if blueprint.effective_risk is not None:
        annotations["blueprint_risk"] = _number(blueprint.effective_risk)
    sheet = blueprint.safety
    if sheet is not None:
        annotations |= {
            "bsds_hazard_band": sheet.hazard_band.value,
            "bsds_handling_class": sheet.handling_class.value,
            "bsds_resource_profile": sheet.resource_profile,
            "bsds_provenance": sheet.provenance,
            "bsds_risk": _number(sheet.risk_score),
        }
    return annotations
