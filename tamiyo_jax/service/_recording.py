"""Make a step's journal record and its `Decision`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from tamiyo_jax.contracts import AdaptationCommand, FieldReport, SystemStatePacket
from tamiyo_jax.controller import Mode, Outcome, TamiyoState, state_to_json
from tamiyo_jax.decision import Decision, Latency
from tamiyo_jax.journal import Ticket
from tamiyo_jax.storage import StepRecord

__all__ = ["failure_record", "make_decision", "outcome_record"]


def outcome_record(
    outcome: Outcome,
    command: AdaptationCommand | None,
    before: TamiyoState[Any],
    after: TamiyoState[Any],
    mode: Mode,
    *,
    with_packet: bool,
) -> StepRecord:
    """Make the record of a decided step.

    Args:
      outcome: what was decided.
      command: the command as the host gets it.
      before: the state before the step.
      after: the state after it.
      mode: act, shadow or guard.
      with_packet: keep what lets the journal be replayed: packet, masks and outputs.
    """
    replayable: dict[str, Any] = {}
    if with_packet:
        outputs = outcome.outputs
        replayable = {
            "packet": outcome.situation.packet,
            "mask": _arrays_by_name(outcome.situation.legality._asdict()),
            "outputs": None if outputs is None else _arrays_by_name(outputs.named_arrays()),
        }
    return StepRecord(
        report=outcome.report,
        action=outcome.action,
        mode=mode.value,
        state=state_to_json(after, registries=False, idle=False),
        command=command,
        blueprint_revision=outcome.situation.blueprint.revision,
        registry_additions=after.registries.additions(before.registries),
        closed_windows=outcome.closed_windows,
        explanation=outcome.verdict.explanation,
        **replayable,
    )


def failure_record(
    report: FieldReport, packet: SystemStatePacket | None, after: TamiyoState[Any], mode: Mode
) -> StepRecord:
    """Make the record of a step that raised; `packet` is None where it was invalid."""
    return StepRecord(
        report=report,
        action="",
        mode=mode.value,
        state=state_to_json(after, registries=False, idle=False),
        packet=packet,
    )


def make_decision(
    outcome: Outcome,
    command: AdaptationCommand | None,
    latency: Latency,
    ticket: Ticket,
    *,
    shadow: bool,
) -> Decision:
    """Make the decision that the caller gets."""
    proposal = outcome.proposal
    return Decision(
        decision_id=outcome.report.report_id if command is None else command.command_id,
        report_id=outcome.report.report_id,
        action=outcome.action,
        command=command,
        reason=outcome.verdict.reason,
        explanation=outcome.verdict.explanation,
        events=outcome.events,
        coverage=outcome.situation.coverage,
        value=None if proposal is None else proposal.value,
        risk_score=None if proposal is None else proposal.risk_score,
        latency=latency,
        shadow=shadow,
        escalate=outcome.escalate,
        restorable=outcome.restorable,
        ticket=ticket,
    )


def _arrays_by_name(arrays: Mapping[str, Any]) -> dict[str, np.ndarray]:
    return {name: np.asarray(array) for name, array in arrays.items()}
