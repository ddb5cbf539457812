"""What the journal keeps of a step, and what the caller is told of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from tamiyo_jax.contracts import AdaptationCommand, FieldReport, SystemStatePacket
from tamiyo_jax.controller import Mode, Outcome, TamiyoState, state_to_json
from tamiyo_jax.runtime.decision import Decision, Latency
from tamiyo_jax.storage import StepRecord, Ticket

__all__ = ["decided", "failure_record", "outcome_record"]


def outcome_record(
    outcome: Outcome,
    command: AdaptationCommand | None,
    before: TamiyoState[Any],
    after: TamiyoState[Any],
    mode: Mode,
    *,
    with_packet: bool,
) -> StepRecord:
    """The record of a decided step.

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
            "mask": _named(outcome.situation.observation.legality._asdict()),
            "outputs": None if outputs is None else _named(outputs._asdict()),
        }
    return StepRecord(
        report=outcome.report,
        action=outcome.action,
        mode=mode.value,
        state=state_to_json(after, registries=False),
        command=command,
        blueprint_revision=outcome.situation.blueprint.revision,
        registry_additions=after.registries.additions(before.registries),
        closed_windows=outcome.closed_windows,
        **replayable,
    )


def failure_record(
    report: FieldReport, packet: SystemStatePacket | None, after: TamiyoState[Any], mode: Mode
) -> StepRecord:
    """The record of a step that raised; `packet` is None where it was invalid."""
    return StepRecord(
        report=report,
        action="",
        mode=mode.value,
        state=state_to_json(after, registries=False),
        packet=packet,
    )


def decided(
    outcome: Outcome,
    command: AdaptationCommand | None,
    latency: Latency,
    ticket: Ticket,
    *,
    shadow: bool,
) -> Decision:
    """The answer to the caller."""
    proposal = outcome.proposal
    return Decision(
        decision_id=outcome.report.report_id if command is None else command.command_id,
        report_id=outcome.report.report_id,
        action=outcome.action,
        command=command,
        reason=outcome.verdict.reason,
        events=outcome.events,
        coverage=outcome.situation.coverage,
        value=None if proposal is None else proposal.value,
        risk_score=None if proposal is None else proposal.risk_score,
        latency=latency,
        shadow=shadow,
        escalate=outcome.escalate,
        ticket=ticket,
    )


def _named(arrays: Mapping[str, Any]) -> dict[str, np.ndarray]:
    return {name: np.asarray(array) for name, array in arrays.items()}
