"""The run directory: journal, recovery, parameters and checkpoints, and who owns them."""

from tamiyo_jax.storage.checkpoint import load_checkpoint, save_checkpoint
from tamiyo_jax.storage.facts import Facts, Pending
from tamiyo_jax.storage.fold import recover_facts, recover_state
from tamiyo_jax.storage.frames import Record, RecordType
from tamiyo_jax.storage.group_commit import Ticket
from tamiyo_jax.storage.journal import Journal, read_journal
from tamiyo_jax.storage.lock import DirectoryLock
from tamiyo_jax.storage.manager import StorageManager
from tamiyo_jax.storage.reading import Entry, Unreadable, read_entries
from tamiyo_jax.storage.records import (
    Content,
    OperatorRecord,
    PolicyRecord,
    PublicationRecord,
    StateRecord,
    StepRecord,
    decode_record,
    decode_step,
    encode_operator,
    encode_restore,
    encode_snapshot,
    encode_step,
)
from tamiyo_jax.storage.recovery import Conflict, Damage, Hole, Recovered, Scar

__all__ = [
    "Conflict",
    "Content",
    "Damage",
    "DirectoryLock",
    "Entry",
    "Facts",
    "Hole",
    "Journal",
    "OperatorRecord",
    "Pending",
    "PolicyRecord",
    "PublicationRecord",
    "Record",
    "RecordType",
    "Recovered",
    "Scar",
    "StateRecord",
    "StepRecord",
    "StorageManager",
    "Ticket",
    "Unreadable",
    "decode_record",
    "decode_step",
    "encode_operator",
    "encode_restore",
    "encode_snapshot",
    "encode_step",
    "load_checkpoint",
    "read_entries",
    "read_journal",
    "recover_facts",
    "recover_state",
    "save_checkpoint",
]
