"""A run read from its journal: a table of its steps, and the events between them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tamiyo_jax.journal import RecordType, Recovered
from tamiyo_jax.report._columns import Columns
from tamiyo_jax.report._html import render_brief
from tamiyo_jax.report._rows import make_row
from tamiyo_jax.storage import (
    Entry,
    OperatorRecord,
    PolicyRecord,
    PublicationRecord,
    StateRecord,
    StepRecord,
    Unreadable,
)

__all__ = ["Run", "RunBuilder", "RunEvent"]

_CORE: Mapping[str, float | int | bool | str] = {
    **{name: 0 for name in ("sequence", "time_ns", "step", "epoch", "pauses")},
    **{name: 0 for name in ("inference_breaker", "metadata_breaker")},
    **{name: "" for name in ("action", "target", "command", "reason", "explanation")},
    **{name: "" for name in ("mode", "outcome", "policy", "run_id", "blueprint", "restorable")},
    **{name: "" for name in ("nonfinite", "conservative")},
    **{name: np.nan for name in ("training_loss", "validation_loss", "validation_accuracy")},
    **{name: np.nan for name in ("loss_delta", "inference_ms", "blueprint_risk")},
    **{name: np.nan for name in ("value", "risk_score", "decision_ms")},
    "has_packet": False,
}
"""Columns that every table has, and what a cell holds where nothing is known."""


@dataclass(frozen=True, slots=True)
class RunEvent:
    """Something that happened between two steps.

    Attributes:
      row: how many steps were on record before it.
      kind: ``operator``, ``policy``, ``restore``, ``repair`` or ``unreadable``.
      text: what happened, in words.
    """

    row: int
    kind: str
    text: str


@dataclass(frozen=True, slots=True)
class Run:
    """A run as it was found.

    Attributes:
      directory: that was named.
      frame: the table of its steps by column, [rows] each; see `tamiyo_jax.report.frame`.
      seed_ids: of all seeds that any packet named.
      events: in the order in which they happened.
      corrupt: what should not have been lost, in words.
      torn: what a crash left, in words.
      settings: the controller's configuration by section and field; empty where the journal
        does not hold it.
      dropped: reports that the bus never took.
      pending: reports that wait for the bus.
      holder: the process on this machine that holds the directory; None where none does.
      stopped: why the journal takes no further record; empty where it does.
      free_bytes: free space on the journal's disk.
      read_ns: when this was read, nanoseconds since the epoch.
    """

    directory: Path
    frame: Mapping[str, np.ndarray]
    seed_ids: tuple[str, ...]
    events: tuple[RunEvent, ...]
    corrupt: tuple[str, ...]
    torn: tuple[str, ...]
    settings: Mapping[str, Mapping[str, Any]]
    dropped: int
    pending: int
    holder: int | None
    stopped: str
    free_bytes: int
    read_ns: int

    def __len__(self) -> int:
        return len(self.frame["sequence"])

    @property
    def acted(self) -> np.ndarray:
        """Boolean [rows]: the decision was something other than WAIT; a failed step is none."""
        action = self.frame["action"]
        return (action != "") & (action != "WAIT")

    @property
    def failed(self) -> np.ndarray:
        """Boolean [rows]: the step raised."""
        return self.frame["action"] == ""

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        return render_brief(self)


class RunBuilder:
    """Takes in the records of a journal by ascending sequence, each once."""

    def __init__(self) -> None:
        self._columns = Columns()
        self._columns.append(_CORE)
        self._columns.truncate(0)
        self._states: list[int] = []
        self._seeds: dict[str, None] = {}
        self._events: list[RunEvent] = []
        self._pending: set[str] = set()
        self._settings = ""
        self._dropped = 0
        self.sequence = 0

    def add(self, entry: Entry) -> None:
        """Take in a record."""
        self.sequence = entry.record.sequence
        match entry.content:
            case StepRecord() as step:
                self._add_step(step)
            case StateRecord(state, origin, pending, settings):
                self._pending = set(pending)
                self._settings = settings
                if entry.record.type is RecordType.RESTORE:
                    self._return_to(state, origin)
            case OperatorRecord(action, detail):
                self._add_event("operator", f"By hand: {action}. {detail}".rstrip(". ") + ".")
            case PolicyRecord(policy):
                self._add_event(
                    "policy", f"Policy {policy.policy_id}, {policy.version}, took over."
                )
            case PublicationRecord(report_id):
                self._note_publication(report_id, entry.record.type)
            case Unreadable(reason):
                self._add_event("unreadable", f"Record {self.sequence}: {reason}")
            case holes:
                lost = ", ".join(str(hole) for hole in holes)
                self._add_event("repair", f"Opened again after damage: {lost}.")

    def run(
        self,
        directory: Path,
        found: Recovered,
        *,
        holder: int | None,
        stopped: str,
        free_bytes: int,
        read_ns: int,
    ) -> Run:
        """Return what was taken in so far, and how the journal was found."""
        return Run(
            directory=directory,
            frame=self._columns.arrays(),
            seed_ids=tuple(self._seeds),
            events=tuple(self._events),
            corrupt=tuple(map(str, found.corrupt)),
            torn=() if holder is not None else tuple(map(str, found.torn)),
            settings=json.loads(self._settings or "{}"),
            dropped=self._dropped,
            pending=len(self._pending),
            holder=holder,
            stopped=stopped,
            free_bytes=free_bytes,
            read_ns=read_ns,
        )

    def _add_step(self, step: StepRecord) -> None:
        row = make_row(self.sequence, step)
        if step.packet is None:  # invalid, or not on record: where the last was
            for name in ("step", "epoch", "blueprint", "restorable"):
                row[name] = self._columns.last(name) or _CORE[name]
        else:
            self._seeds.update(dict.fromkeys(seed.seed_id for seed in step.packet.seeds))
        self._columns.append(row)
        self._states.append(hash(step.state))

    def _return_to(self, restored: str, origin: str) -> None:
        """Forget the steps that the run did again after it was resumed from a checkpoint."""
        fields = json.loads(restored)
        fields = {k: v for k, v in fields.items() if k not in ("registries", "runs")}
        state = hash(json.dumps(fields, separators=(",", ":"), sort_keys=True))
        rows = len(self._states)
        kept = next((row for row in range(rows, 0, -1) if self._states[row - 1] == state), rows)
        self._columns.truncate(kept)
        del self._states[kept:]
        again = f"; {rows - kept} later decisions were undone and are not shown"
        self._add_event(
            "restore", f"Resumed from {origin or 'a state'}{again if rows > kept else ''}."
        )

    def _note_publication(self, report_id: str, kind: RecordType) -> None:
        if kind is RecordType.RETRY:
            self._pending.add(report_id)
            return
        self._pending.discard(report_id)
        self._dropped += kind is RecordType.DROP

    def _add_event(self, kind: str, text: str) -> None:
        self._events.append(RunEvent(len(self._columns), kind, text))
