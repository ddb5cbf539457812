"""Blueprints in an SQLite file, shared by all processes of a machine."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Generator, Mapping
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path

from tamiyo_jax.config import GraphConfig
from tamiyo_jax.contracts import Blueprint, blueprint_from_json, blueprint_to_json
from tamiyo_jax.errors import PersistenceError
from tamiyo_jax.library._memory import CHANGES_KEPT, Change, ChangeKind, Connection, check_blueprint

__all__ = ["SqliteBlueprintLibrary", "connect"]

_POLL_SECONDS = 0.005
_BUSY_SECONDS = 10.0
_SCHEMA = """
CREATE TABLE IF NOT EXISTS blueprints (
    blueprint_id TEXT PRIMARY KEY, revision INTEGER NOT NULL, document TEXT NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS changes (
    revision INTEGER PRIMARY KEY AUTOINCREMENT, blueprint_id TEXT NOT NULL, kind TEXT NOT NULL
);
"""


class SqliteBlueprintLibrary:
    """Blueprints in an SQLite file, shared by all processes of a machine.

    A blueprint and the row of its change commit together. Every call opens the
    file anew (0.1 ms), so threads share nothing, a fork is harmless, a file that was
    replaced is noticed, and there is nothing to close.

    Args:
      path: the database file; its directory is created if missing.
      caps: limits on the nodes and edges of a blueprint.

    Raises:
      PersistenceError: the file cannot be opened as a database.
    """

    def __init__(self, path: str | os.PathLike[str], caps: GraphConfig | None = None) -> None:
        self._path = Path(path).absolute()
        self._caps = caps or GraphConfig()
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self._error(error) from error
        with self._open(mode="rwc") as db:
            if (mode := _write_ahead(db)) != "wal":
                raise self._error(f"needs a write-ahead log, and gets {mode!r} here")
            db.executescript(_SCHEMA)

    def get(self, blueprint_id: str) -> Blueprint | None:
        """Implement `BlueprintLibrary`."""
        query = "SELECT revision, document FROM blueprints WHERE blueprint_id = ?"
        with self._open() as db:
            row = db.execute(query, (blueprint_id,)).fetchone()
        if row is None:
            return None
        return check_blueprint(replace(blueprint_from_json(row[1]), revision=row[0]), self._caps)

    def put(self, blueprint: Blueprint) -> int:
        """Implement `BlueprintLibrary`."""
        check_blueprint(blueprint, self._caps)
        with self._write() as db:
            revision = _record(db, blueprint.blueprint_id, ChangeKind.PUT)
            document = blueprint_to_json(replace(blueprint, revision=revision))
            db.execute(
                "INSERT OR REPLACE INTO blueprints VALUES (?, ?, ?)",
                (blueprint.blueprint_id, revision, document),
            )
        return revision

    def delete(self, blueprint_id: str) -> int:
        """Implement `BlueprintLibrary`."""
        with self._write() as db:
            db.execute("DELETE FROM blueprints WHERE blueprint_id = ?", (blueprint_id,))
            revision = _record(db, blueprint_id, ChangeKind.DELETE)
        return revision

    def ids(self) -> list[str]:
        """Implement `BlueprintLibrary`."""
        with self._open() as db:
            return sorted(row[0] for row in db.execute("SELECT blueprint_id FROM blueprints"))

    def revision(self) -> int:
        """Implement `BlueprintLibrary`."""
        with self._open() as db:
            return db.execute("SELECT coalesce(max(revision), 0) FROM changes").fetchone()[0]

    def changes(self, after: int, timeout: float) -> list[Change]:
        """Implement `BlueprintLibrary`; polls every 5 ms.

        A poll is ``PRAGMA data_version`` (4 µs, no transaction), which changes when another
        connection, of this process or of another, has committed.
        """
        query = "SELECT revision, blueprint_id, kind FROM changes WHERE revision > ? ORDER BY 1"
        deadline = time.monotonic() + timeout
        version = None
        with self._open() as db:
            while True:
                seen = db.execute("PRAGMA data_version").fetchone()
                if seen != version:
                    version = seen
                    rows = db.execute(query, (after,)).fetchall()
                    if rows:
                        return [Change.parse(*row) for row in rows]
                remaining = deadline - time.monotonic()
                if remaining <= 0:
                    return []
                time.sleep(min(_POLL_SECONDS, remaining))

    def connection(self) -> Connection:
        """Implement `BlueprintLibrary`."""
        arguments = {"path": str(self._path), "caps": self._caps.model_dump()}
        return Connection(f"{__name__}:{connect.__name__}", arguments)

    @contextmanager
    def _open(self, mode: str = "rw") -> Generator[sqlite3.Connection]:
        try:
            uri = f"{self._path.as_uri()}?mode={mode}"
            with closing(
                sqlite3.connect(uri, uri=True, timeout=_BUSY_SECONDS, isolation_level=None)
            ) as db:
                yield db
        except sqlite3.Error as error:
            raise self._error(error) from error

    @contextmanager
    def _write(self) -> Generator[sqlite3.Connection]:
        with self._open() as db:
            db.execute("BEGIN IMMEDIATE")
            yield db
            db.execute("COMMIT")

    def _error(self, what: object) -> PersistenceError:
        return PersistenceError(f"blueprint library {self._path}: {what}", path=str(self._path))


def connect(path: str, caps: Mapping[str, object]) -> SqliteBlueprintLibrary:
    """Open the library that `SqliteBlueprintLibrary.connection` describes."""
    return SqliteBlueprintLibrary(path, GraphConfig.model_validate(caps))


def _write_ahead(db: sqlite3.Connection) -> str:
    """Switch to a write-ahead log; SQLite's own busy timeout does not cover this statement."""
    deadline = time.monotonic() + _BUSY_SECONDS
    while True:
        try:
            return db.execute("PRAGMA journal_mode = WAL").fetchone()[0]
        except sqlite3.OperationalError as error:
            busy = error.sqlite_errorcode == sqlite3.SQLITE_BUSY
            if not busy or time.monotonic() >= deadline:
                raise
            time.sleep(_POLL_SECONDS)


def _record(db: sqlite3.Connection, blueprint_id: str, kind: ChangeKind) -> int:
    query = "INSERT INTO changes (blueprint_id, kind) VALUES (?, ?) RETURNING revision"
    (revision,) = db.execute(query, (blueprint_id, kind.value)).fetchone()
    db.execute("DELETE FROM changes WHERE revision <= ?", (revision - CHANGES_KEPT,))
    return revision
