"""`Decision`: what a step answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tamiyo_jax.contracts import AdaptationCommand, Event
from tamiyo_jax.errors import PersistenceError
from tamiyo_jax.storage import Ticket

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
      reason: the most severe rule that had an effect, ``policy`` where none had.
      events: what happened on the way.
      coverage: share of expected input that was there, by node type and relation.
      value: the policy's estimate; None in guard mode.
      risk_score: the policy's risk score in [0, 1]; None in guard mode.
      latency: where the time went.
      shadow: the command is only what would have been done.
      escalate: someone must look.
      ticket: the durability of the decision's record; a `RemoteTicket` on a process that
        does not keep the journal (`tamiyo_jax.runtime.multihost`).
    """

    decision_id: str
    report_id: str
    action: str
    command: AdaptationCommand | None
    reason: str
    events: tuple[Event, ...]
    coverage: Mapping[str, float]
    value: float | None
    risk_score: float | None
    latency: Latency
    shadow: bool
    escalate: bool
    ticket: Ticket | RemoteTicket
