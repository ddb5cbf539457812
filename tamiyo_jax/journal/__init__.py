"""The append-only log: record frames, segments, group commit and recovery."""

from tamiyo_jax.journal._files import FileSystem, PosixFileSystem, is_file_at
from tamiyo_jax.journal._frames import Record, RecordType
from tamiyo_jax.journal._group_commit import Ticket
from tamiyo_jax.journal._journal import Journal
from tamiyo_jax.journal._process import OwnerProcess
from tamiyo_jax.journal._reader import JournalReader, read_journal
from tamiyo_jax.journal._recovery import Conflict, Damage, Hole, Recovered, Scar, decode_repair
from tamiyo_jax.journal._segments import discard_unfinished, translate_errors, write_durably

__all__ = [
    "Conflict",
    "Damage",
    "FileSystem",
    "Hole",
    "Journal",
    "JournalReader",
    "OwnerProcess",
    "PosixFileSystem",
    "Record",
    "RecordType",
    "Recovered",
    "Scar",
    "Ticket",
    "decode_repair",
    "discard_unfinished",
    "is_file_at",
    "read_journal",
    "translate_errors",
    "write_durably",
]
