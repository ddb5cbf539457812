"""Read a journal as the history of its run: the events that led to its present state.

A run that was resumed from a checkpoint has decided upon some packets twice. What it had done
after that checkpoint the first time is in the journal, and has no part in what became of it.
"""

from __future__ import annotations

import json
import os
from itertools import pairwise
from pathlib import Path
from typing import Any

from tamiyo_jax.errors import PersistenceError
from tamiyo_jax.journal import RecordType, read_journal
from tamiyo_jax.storage import OperatorRecord, PolicyRecord, StateRecord, StepRecord, read_entries

__all__ = ["HistoryEvent", "read_history"]

HistoryEvent = StepRecord | OperatorRecord | PolicyRecord


def read_history(directory: str | os.PathLike[str]) -> tuple[HistoryEvent, ...]:
    """Steps, what was done by hand, and policy updates, in the order in which they took effect.

    The journal is only read; its owner may be using it.

    Args:
      directory: the run directory.

    Raises:
      PersistenceError: there is no journal, a step in the middle of it is lost, or it holds no
        packets.
    """
    home = Path(directory)
    if not (home / "journal").is_dir():
        raise PersistenceError(f"{home} holds no journal; name a run directory", path=str(home))
    past: list[HistoryEvent] = []
    for entry in read_entries(read_journal(home)):
        match entry.content:
            case StepRecord() | OperatorRecord() | PolicyRecord() as event:
                past.append(event)
            case StateRecord(state) if entry.record.type is RecordType.RESTORE:
                del past[_count_before(past, state) :]
            case _:
                pass
    _check_complete(past, home)
    return tuple(past)


def _count_before(past: list[HistoryEvent], restored: str) -> int:
    """How much of the past led to a restored state; nothing if it is another run's."""
    wanted = _comparable(restored)
    return next((i for i in range(len(past), 0, -1) if _comparable(past[i - 1].state) == wanted), 0)


def _comparable(state: str) -> dict[str, Any]:
    """A state's fields without those that only some records carry, or that a restore changes.

    A restore may store the parameters of a policy again, under another digest.
    """
    fields = json.loads(state)
    for name in ("registries", "runs"):
        fields.pop(name, None)
    for policy in fields["policies"]:
        del policy["digest"]
    return fields


def _check_complete(past: list[HistoryEvent], home: Path) -> None:
    steps = [event for event in past if isinstance(event, StepRecord)]
    numbers = [_step_number(step) for step in steps]
    for before, after in pairwise(numbers):
        if after != before + 1:
            raise PersistenceError(
                f"the journal of {home} is incomplete: step {after} follows step {before}; "
                "tamiyo-jax journal verify says what is damaged",
                path=str(home),
                missing=before + 1,
            )
    if any(step.action and step.packet is None for step in steps):
        raise PersistenceError(
            f"the journal of {home} holds decisions without their packets: it was written with "
            "storage.record_packets off. Turn it on in the run that is to be replayed",
            path=str(home),
        )


def _step_number(step: StepRecord) -> int:
    """Of a step in its run, counted from 1; failed steps count too."""
    state = json.loads(step.state)
    return state["steps"] + state["failures"]
