"""`Decision`: what a step returns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from html import escape

from tamiyo_jax.contracts import AdaptationCommand, Event
from tamiyo_jax.errors import PersistenceError
from tamiyo_jax.journal import Ticket

__all__ = ["Decision", "Latency", "RemoteTicket"]


@dataclass(frozen=True, slots=True)
class RemoteTicket:
    """What is known of a record's durability away from the process that keeps the journal.

    Attributes:
      sequence: of the record.
      done: whether the record was on disk when the decision was sent.
    """

    sequence: int
    done: bool

    def wait(self, timeout: float | None = None) -> bool:
        """True; see `Ticket.wait`.

        Raises:
          PersistenceError: it was not on disk by then, and nothing here can wait for it.
        """
        if not self.done:
            raise PersistenceError(
                f"record {self.sequence} was not on disk when the decision was sent, and its "
                "journal is another process's; call flush() on all processes",
                sequence=self.sequence,
            )
        return True


@dataclass(frozen=True, slots=True)
class Latency:
    """Where the time of a step went, in milliseconds."""

    step_ms: float
    metadata_ms: float
    encode_ms: float
    inference_ms: float
    append_ms: float


@dataclass(frozen=True, slots=True)
class Decision:
    """One decision.

    Attributes:
      decision_id: id of the decision; the command's id where there is a command.
      report_id: id of its report.
      action: what was decided, for instance ``GERMINATE``, ``PAUSE`` or ``WAIT``.
      command: what the host is to do; None for WAIT. Signed, unless `shadow`.
      reason: id of the most severe rule that had an effect, else of the policy's own rule, such
        as ``loss_spike`` or ``heuristic:plateau``.
      explanation: the reason in words, with its numbers.
      events: what happened on the way.
      coverage: share of expected input that was there, by node type and relation.
      value: the policy's estimate; None in guard mode.
      risk_score: the policy's risk score in [0, 1]; None in guard mode.
      latency: where the time went.
      shadow: the command is only what would have been done.
      escalate: a person must look.
      restorable: the state that the packet describes may be kept for a later ROLLBACK: the
        controller has no objection to it, and its losses are like those before.
      ticket: the durability of the decision's record; a `RemoteTicket` on a process that
        does not keep the journal (`tamiyo_jax.service.MultihostTamiyo`).
    """

    decision_id: str
    report_id: str
    action: str
    command: AdaptationCommand | None
    reason: str
    explanation: str
    events: tuple[Event, ...]
    coverage: Mapping[str, float]
    value: float | None
    risk_score: float | None
    latency: Latency
    shadow: bool
    escalate: bool
    restorable: bool
    ticket: Ticket | RemoteTicket

    def _repr_html_(self) -> str:
        """What a notebook shows: what was decided, why, and what happened on the way."""
        rows = {
            "reason": self.reason,
            "why": self.explanation,
            "command": "none" if self.command is None else self.command.command_type.name,
            "seed": "none" if self.command is None else self.command.target_seed_id or "none",
            "events": ", ".join(f"{event.level.name} {event.name}" for event in self.events)
            or "none",
            "latency": f"{self.latency.step_ms:.1f} ms",
        }
        cells = "".join(f"<tr><th>{k}</th><td>{escape(v)}</td></tr>" for k, v in rows.items())
        title = f"{'would ' if self.shadow else ''}{self.action}"
        return f"<table><caption><b>{escape(title)}</b></caption>{cells}</table>"
