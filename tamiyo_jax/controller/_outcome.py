"""What comes out of a step."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from tamiyo_jax.contracts import AdaptationCommand, Event, FieldReport, Priority, SystemHealth
from tamiyo_jax.controller._observe import Situation
from tamiyo_jax.policy import PolicyOutputs, Proposal
from tamiyo_jax.risk import Verdict

__all__ = ["Failure", "Mode", "Outcome"]


class Mode(StrEnum):
    """How much the controller may do."""

    ACT = "act"
    SHADOW = "shadow"
    GUARD = "guard"


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
      closed_windows: reports of the observation windows that the step closed.
      events: all events of the step, in the order in which they arose.
      priority: priority of the step's telemetry.
      health: health of the controller after the step.
      loss_delta: change of the validation loss.
      escalate: a person must look.
      restorable: the state that the packet describes may be kept for a later ROLLBACK.
    """

    situation: Situation
    outputs: PolicyOutputs | None
    proposal: Proposal | None
    verdict: Verdict
    command: AdaptationCommand | None
    report: FieldReport
    closed_windows: tuple[FieldReport, ...]
    events: tuple[Event, ...]
    priority: Priority
    health: SystemHealth
    loss_delta: float
    escalate: bool
    restorable: bool

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
