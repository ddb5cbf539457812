"""The run directory: its owner, the records of the journal, recovered state, checkpoints."""

from tamiyo_jax.storage._checkpoint import load_checkpoint, save_checkpoint
from tamiyo_jax.storage._facts import Facts, Pending
from tamiyo_jax.storage._fold import recover_facts, recover_state
from tamiyo_jax.storage._lock import DirectoryLock, LockState, read_lock
from tamiyo_jax.storage._manager import StorageManager
from tamiyo_jax.storage._reading import Entry, Unreadable, read_entries
from tamiyo_jax.storage._records import (
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

__all__ = [
    "Content",
    "DirectoryLock",
    "Entry",
    "Facts",
    "LockState",
    "OperatorRecord",
    "Pending",
    "PolicyRecord",
    "PublicationRecord",
    "StateRecord",
    "StepRecord",
    "StorageManager",
    "Unreadable",
    "decode_record",
    "decode_step",
    "encode_operator",
    "encode_restore",
    "encode_snapshot",
    "encode_step",
    "load_checkpoint",
    "read_entries",
    "read_lock",
    "recover_facts",
    "recover_state",
    "save_checkpoint",
]
