"""Reports: of a step that decided, and of one that failed."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from tamiyo_jax.contracts import (
    AdaptationCommand,
    Blueprint,
    FieldReport,
    MitigationAction,
    ReportOutcome,
    SystemStatePacket,
)
from tamiyo_jax.errors import TamiyoError
from tamiyo_jax.policy import Proposal
from tamiyo_jax.risk import Verdict, report_outcome

__all__ = ["failure_report", "select_reportable", "step_report"]

_LIMIT = float(np.finfo(np.float32).max)  # numbers of reports are f32 on the wire


def step_report(
    packet: SystemStatePacket,
    blueprint: Blueprint,
    proposal: Proposal | None,
    verdict: Verdict,
    command: AdaptationCommand | None,
    *,
    loss_delta: float,
    inference_ms: float | None,
    policy_version: str,
    now_ns: int,
    report_id: str,
) -> FieldReport:
    """The report of a step that decided, also where it decided to wait.

    Args:
      packet: what was decided on.
      blueprint: the blueprint that the risk rules evaluated.
      proposal: what the policy proposed; None in guard mode.
      verdict: what the gate made of it.
      command: the command; None for WAIT.
      loss_delta: rise of the validation loss.
      inference_ms: how long the policy took; None in guard mode.
      policy_version: the policy that decided.
      now_ns: nanoseconds since the epoch.
      report_id: its id.
    """
    metrics = {"loss_delta": loss_delta}
    if proposal is not None:
        metrics |= _describe_proposal(proposal)
    optional = {
        "inference_ms": inference_ms,
        "blueprint_risk": blueprint.effective_risk,
        "hook_latency_ms": packet.training_metrics.get("hook_latency_ms"),
    }
    metrics |= {name: value for name, value in optional.items() if value is not None}
    target = None if command is None else command.target_seed_id
    follow_up = (
        (MitigationAction("CONSERVATIVE_MODE", verdict.reason),)
        if verdict.enters_conservative
        else ()
    )
    return FieldReport(
        report_id=report_id,
        command_id="" if command is None else command.command_id,
        training_run_id=packet.training_run_id,
        seed_id="" if target is None else target,
        blueprint_id=blueprint.blueprint_id,
        outcome=report_outcome(verdict),
        issued_at_ns=now_ns,
        metrics=select_reportable(metrics),
        tamiyo_policy_version=policy_version,
        follow_up_actions=follow_up,
        notes=verdict.reason,
    )


def failure_report(
    packet: SystemStatePacket,
    error: TamiyoError,
    *,
    policy_version: str,
    now_ns: int,
    report_id: str,
) -> FieldReport:
    """The report of a step that raised `error`; the packet may be anything."""
    return FieldReport(
        report_id=report_id,
        command_id="",
        training_run_id=_text(getattr(packet, "training_run_id", None)),
        seed_id="",
        blueprint_id=_text(getattr(packet, "blueprint_id", None)),
        outcome=ReportOutcome.ABORTED,
        issued_at_ns=now_ns,
        tamiyo_policy_version=policy_version,
        notes=f"{type(error).__name__}: {_text(str(error))}",
    )


def select_reportable(metrics: Mapping[str, float]) -> dict[str, float]:
    """The numbers that a report can carry: one that is not finite, or beyond f32, is left out."""
    return {name: value for name, value in metrics.items() if abs(value) <= _LIMIT}


def _describe_proposal(proposal: Proposal) -> dict[str, float]:
    metrics = {
        "param_delta": proposal.lr_delta,
        "value_estimate": proposal.value,
        "risk_index": float(proposal.risk_index),
        "risk_score": proposal.risk_score,
        "blending_index": float(proposal.blending_index),
        "blending_schedule_start": proposal.schedule_start,
        "blending_schedule_end": proposal.schedule_end,
    }
    if proposal.seed_score is not None:
        metrics["selected_seed_score"] = proposal.seed_score
    return metrics


def _text(value: object) -> str:
    """Text of an invalid packet as it can be written down; empty where it is no text."""
    return value.encode(errors="replace").decode()[:1024] if isinstance(value, str) else ""
