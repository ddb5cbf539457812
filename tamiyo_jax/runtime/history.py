"""A journal as the history of its run: what led to where the run stands.

A run that was resumed from a checkpoint has decided upon some packets twice. What it had done
after that checkpoint the first time is in the journal, and has no part in what became of it.
"""

from __future__ import annotations

import json
import os
from itertools import pairwise
from pathlib import Path

from tamiyo_jax.errors import PersistenceError
from tamiyo_jax.storage import (
    OperatorRecord,
    PolicyRecord,
    RecordType,
    StateRecord,
    StepRecord,
    read_entries,
    read_journal,
)

__all__ = ["Happening", "read_history"]

Happening = StepRecord | OperatorRecord | PolicyRecord


def read_history(directory: str | os.PathLike[str]) -> tuple[Happening, ...]:
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
    past: list[Happening] = []
    for entry in read_entries(read_journal(home)):
        match entry.content:
            case StepRecord() | OperatorRecord() | PolicyRecord() as happening:
                past.append(happening)
            case StateRecord(state) if entry.record.type is RecordType.RESTORE:
                del past[_returned_to(past, state) :]
            case _:
                pass
    _check_complete(past, home)
    return tuple(past)


def _returned_to(past: list[Happening], restored: str) -> int:
    """How much of the past led to a restored state; nothing if it is another run's."""
    fields = json.loads(restored)
    del fields["registries"]
    return next((i for i in range(len(past), 0, -1) if json.loads(past[i - 1].state) == fields), 0)


def _check_complete(past: list[Happening], home: Path) -> None:
    steps = [one for one in past if isinstance(one, StepRecord)]
    numbers = [_number(step) for step in steps]
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


def _number(step: StepRecord) -> int:
    """Of a step in its run, counted from 1; failed steps count too."""
    state = json.loads(step.state)
    return state["steps"] + state["failures"]
