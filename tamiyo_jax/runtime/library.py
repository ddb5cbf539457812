"""Blueprint libraries: where blueprints live, and what changed in them.

Every library keeps one counter, its revision, which grows by one per change; a blueprint
carries the revision at which it was put.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Protocol, Self, TypeVar

from tamiyo_jax.config import GraphConfig
from tamiyo_jax.contracts import (
    Blueprint,
    blueprint_from_json,
    blueprint_to_json,
    validate_blueprint,
)
from tamiyo_jax.errors import PersistenceError

__all__ = [
    "BlueprintLibrary",
    "Change",
    "ChangeKind",
    "MemoryBlueprintLibrary",
    "SqliteBlueprintLibrary",
]

T = TypeVar("T")

_POLL_SECONDS = 0.01
_SCHEMA = """
CREATE TABLE IF NOT EXISTS blueprints (
    blueprint_id TEXT PRIMARY KEY, revision INTEGER NOT NULL, document TEXT NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS changes (
    revision INTEGER PRIMARY KEY AUTOINCREMENT, blueprint_id TEXT NOT NULL, kind TEXT NOT NULL
);
"""


class ChangeKind(StrEnum):
    """What happened to a blueprint."""

    PUT = "put"
    DELETE = "delete"


@dataclass(frozen=True, slots=True)
class Change:
    """One change of a library."""

    revision: int
    blueprint_id: str
    kind: ChangeKind


class BlueprintLibrary(Protocol):
    """Where blueprints come from."""

    def get(self, blueprint_id: str) -> Blueprint | None:
        """The blueprint with its revision, or None."""
        ...

    def put(self, blueprint: Blueprint) -> int:
        """Validate and store a blueprint; returns its new revision."""
        ...

    def delete(self, blueprint_id: str) -> int:
        """Remove a blueprint, there or not; returns the new revision."""
        ...

    def revision(self) -> int:
        """The revision of the newest change, 0 before the first."""
        ...

    def changes(self, after: int, timeout: float) -> list[Change]:
        """Changes above revision `after`; waits up to `timeout` seconds for one."""
        ...


def _checked(blueprint: Blueprint, caps: GraphConfig) -> Blueprint:
    validate_blueprint(
        blueprint,
        max_layers=caps.max_layers,
        max_activations=caps.max_activations,
        max_parameters=caps.max_parameters,
        max_edges=caps.max_edges,
    )
    return blueprint


class MemoryBlueprintLibrary:
    """Blueprints in this process's memory, for tests and notebooks."""

    def __init__(self, caps: GraphConfig | None = None) -> None:
        self._caps = caps or GraphConfig()
        self._blueprints: dict[str, Blueprint] = {}
        self._changes: list[Change] = []
        self._changed = threading.Condition()

    def get(self, blueprint_id: str) -> Blueprint | None:
        """See `BlueprintLibrary`."""
        return self._blueprints.get(blueprint_id)

    def put(self, blueprint: Blueprint) -> int:
        """See `BlueprintLibrary`."""
        _checked(blueprint, self._caps)
        with self._changed:
            revision = self._record(blueprint.blueprint_id, ChangeKind.PUT)
            self._blueprints[blueprint.blueprint_id] = replace(blueprint, revision=revision)
            return revision

    def delete(self, blueprint_id: str) -> int:
        """See `BlueprintLibrary`."""
        with self._changed:
            self._blueprints.pop(blueprint_id, None)
            return self._record(blueprint_id, ChangeKind.DELETE)

    def revision(self) -> int:
        """See `BlueprintLibrary`."""
        return len(self._changes)

    def changes(self, after: int, timeout: float) -> list[Change]:
        """See `BlueprintLibrary`."""
        with self._changed:
            self._changed.wait_for(lambda: len(self._changes) > after, timeout)
            return self._changes[after:]

    def _record(self, blueprint_id: str, kind: ChangeKind) -> int:
        revision = len(self._changes) + 1
        self._changes.append(Change(revision, blueprint_id, kind))
        self._changed.notify_all()
        return revision


class SqliteBlueprintLibrary:
    """Blueprints in one SQLite file, shared by all processes of a machine.

    A blueprint and the row that tells of its change commit together. Every thread that
    uses the library has a connection of its own.

    Args:
      path: the database file; its directory is made if it is not there.
      caps: what a blueprint may hold.

    Raises:
      PersistenceError: the file cannot be opened as a database.
    """

    def __init__(self, path: str | os.PathLike[str], caps: GraphConfig | None = None) -> None:
        self._path = Path(path)
        self._caps = caps or GraphConfig()
        self._connections: dict[int, sqlite3.Connection] = {}
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._run(lambda db: db.executescript(_SCHEMA))

    def get(self, blueprint_id: str) -> Blueprint | None:
        """See `BlueprintLibrary`."""
        query = "SELECT revision, document FROM blueprints WHERE blueprint_id = ?"
        row = self._run(lambda db: db.execute(query, (blueprint_id,)).fetchone())
        if row is None:
            return None
        return _checked(replace(blueprint_from_json(row[1]), revision=row[0]), self._caps)

    def put(self, blueprint: Blueprint) -> int:
        """See `BlueprintLibrary`."""
        _checked(blueprint, self._caps)

        def write(db: sqlite3.Connection) -> int:
            with db:
                revision = _record(db, blueprint.blueprint_id, ChangeKind.PUT)
                document = blueprint_to_json(replace(blueprint, revision=revision))
                db.execute(
                    "INSERT OR REPLACE INTO blueprints VALUES (?, ?, ?)",
                    (blueprint.blueprint_id, revision, document),
                )
            return revision

        return self._run(write)

    def delete(self, blueprint_id: str) -> int:
        """See `BlueprintLibrary`."""

        def write(db: sqlite3.Connection) -> int:
            with db:
                db.execute("DELETE FROM blueprints WHERE blueprint_id = ?", (blueprint_id,))
                return _record(db, blueprint_id, ChangeKind.DELETE)

        return self._run(write)

    def revision(self) -> int:
        """See `BlueprintLibrary`."""
        query = "SELECT coalesce(max(revision), 0) FROM changes"
        return self._run(lambda db: db.execute(query).fetchone()[0])

    def changes(self, after: int, timeout: float) -> list[Change]:
        """See `BlueprintLibrary`; looks every 10 ms whether another process wrote."""
        query = "SELECT revision, blueprint_id, kind FROM changes WHERE revision > ? ORDER BY 1"
        deadline = time.monotonic() + timeout
        while True:
            rows = self._run(lambda db: db.execute(query, (after,)).fetchall())
            if rows or time.monotonic() >= deadline:
                return [Change(revision, name, ChangeKind(kind)) for revision, name, kind in rows]
            time.sleep(min(_POLL_SECONDS, max(0.0, deadline - time.monotonic())))

    def ids(self) -> list[str]:
        """Ids of all blueprints, in order."""
        query = "SELECT blueprint_id FROM blueprints ORDER BY 1"
        return [row[0] for row in self._run(lambda db: db.execute(query).fetchall())]

    def close(self) -> None:
        """Close the connections; call it when no thread uses the library any more."""
        for connection in self._connections.values():
            connection.close()
        self._connections.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        try:
            thread = threading.get_ident()
            if thread not in self._connections:
                self._connections[thread] = _connect(self._path)
            return work(self._connections[thread])
        except sqlite3.Error as error:
            raise PersistenceError(
                f"blueprint library {self._path}: {error}", path=str(self._path)
            ) from error


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=10.0, check_same_thread=False)
    with closing(connection.execute("PRAGMA journal_mode=WAL")):
        return connection


def _record(db: sqlite3.Connection, blueprint_id: str, kind: ChangeKind) -> int:
    cursor = db.execute(
        "INSERT INTO changes (blueprint_id, kind) VALUES (?, ?)", (blueprint_id, kind.value)
    )
    revision = cursor.lastrowid
    if revision is None:
        raise PersistenceError("the change could not be recorded", blueprint_id=blueprint_id)
    return revision
