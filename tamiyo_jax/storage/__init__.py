"""The run directory: journal, recovery and checkpoints."""

from tamiyo_jax.storage.checkpoint import load_checkpoint, save_checkpoint
from tamiyo_jax.storage.frames import Record, RecordType
from tamiyo_jax.storage.journal import Journal, Ticket, read_journal
from tamiyo_jax.storage.lock import DirectoryLock
from tamiyo_jax.storage.records import (
    StepRecord,
    decode_step,
    encode_operator,
    encode_restore,
    encode_snapshot,
    encode_step,
    recover_state,
)
from tamiyo_jax.storage.recovery import Conflict, Damage, Hole, Recovered, Scar

__all__ = [
    "Conflict",
    "Damage",
    "DirectoryLock",
    "Hole",
    "Journal",
    "Record",
    "RecordType",
    "Recovered",
    "Scar",
    "StepRecord",
    "Ticket",
    "decode_step",
    "encode_operator",
    "encode_restore",
    "encode_snapshot",
    "encode_step",
    "load_checkpoint",
    "read_journal",
    "recover_state",
    "save_checkpoint",
]
