"""Compact a run directory without the policy that wrote it.

A new segment begins with the whole controller state, which includes the policy state. Its leaves
are copied as the JSON documents that they are on disk.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from pydantic import GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema

from tamiyo_jax.config import StorageConfig
from tamiyo_jax.controller import TamiyoState
from tamiyo_jax.journal import Recovered
from tamiyo_jax.storage import StateRecord, StorageManager, decode_record, recover_facts

__all__ = ["compact_directory"]


@dataclass(frozen=True, slots=True)
class _StoredLeaf:
    """A leaf of any policy's state, as it is stored."""

    document: Any = None

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:  # noqa: ANN401
        del source, handler
        unwrap = core_schema.plain_serializer_function_ser_schema(lambda leaf: leaf.document)
        return core_schema.no_info_plain_validator_function(cls, serialization=unwrap)


def compact_directory(directory: Path, config: StorageConfig, found: Recovered) -> None:
    """Start a new segment and apply retention.

    Args:
      directory: a run directory that no process uses.
      config: segment size and retention.
      found: the result of `read_journal` for it; not empty.

    Raises:
      DirectoryLockedError: another process owns the directory.
      PersistenceError: it cannot be read or written.
    """
    # A journal with records replays from a state, so both are there.
    beginning = cast(StateRecord, decode_record(found.replay[0]))
    leaves = [_StoredLeaf() for _ in json.loads(beginning.state)["policy_state"]]
    with StorageManager.open(
        directory,
        config,
        leaves,
        clock=time.time_ns,
        publishing=recover_facts(found).publishing,
    ) as manager:
        manager.start(cast(TamiyoState[Any], manager.state))
