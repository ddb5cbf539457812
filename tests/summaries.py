"""What two runs are compared by: decisions without their ids and times, trees bit by bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np

from tamiyo_jax.bus import Bus
from tamiyo_jax.contracts import decode_command, encode_command
from tamiyo_jax.decision import Decision
from tamiyo_jax.journal import RecordType, read_journal
from tamiyo_jax.storage import StepRecord, decode_step


def summarise_decision(decision: Decision, *fields: str) -> tuple[Any, ...]:
    """Action, reason, the command without id, time and signature, and the other `fields`."""
    command = decision.command
    sent = None
    if command is not None:
        received = decode_command(encode_command(command))
        sent = (received.command_type, received.target_seed_id, received.payload)
    return decision.action, decision.reason, sent, *(getattr(decision, field) for field in fields)


def equal_trees(left: object, right: object) -> bool:
    """Whether two trees have one structure and equal arrays; NaN equals nothing."""
    if jax.tree.structure(left) != jax.tree.structure(right):
        return False
    return all(map(np.array_equal, jax.tree.leaves(left), jax.tree.leaves(right)))


def read_steps(directory: Path) -> list[StepRecord]:
    """The steps on record in a run directory, by sequence."""
    records = read_journal(directory).records
    return [decode_step(record.payload) for record in records if record.type is RecordType.STEP]


def consume_all(bus: Bus, topic: str, group: str) -> list[bytes]:
    """The messages that a group has not consumed yet, which it then has."""
    messages: list[bytes] = []
    assert bus.consume(topic, group, messages.append) == len(messages)
    return messages
