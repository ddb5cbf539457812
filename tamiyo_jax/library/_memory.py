"""The interface of blueprint libraries, and the library in memory.

Every library keeps one counter, its revision, which grows by one per change; a blueprint
carries the revision at which it was put.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import NamedTuple, Protocol

from tamiyo_jax.config import GraphConfig
from tamiyo_jax.contracts import Blueprint, validate_blueprint

__all__ = [
    "CHANGES_KEPT",
    "BlueprintLibrary",
    "Change",
    "ChangeKind",
    "Connection",
    "MemoryBlueprintLibrary",
    "check_blueprint",
]

# A library on a disk or a server forgets older changes. A reader that was away for longer
# finds a gap in the revisions and reads everything anew.
CHANGES_KEPT = 10_000


class ChangeKind(StrEnum):
    """What happened to a blueprint; FOREIGN marks an entry that no library wrote."""

    PUT = "put"
    DELETE = "delete"
    FOREIGN = "foreign"


@dataclass(frozen=True, slots=True)
class Change:
    """A change of a library.

    Attributes:
      revision: the revision that it made.
      blueprint_id: the blueprint that changed; empty if the entry is FOREIGN.
      kind: what happened.
    """

    revision: int
    blueprint_id: str
    kind: ChangeKind

    @classmethod
    def parse(cls, revision: int, blueprint_id: object, kind: object) -> Change:
        """Read a stored change; anything that no library writes becomes a FOREIGN change.

        A stream or a table can be written by other programs. Their entries change no
        blueprint, and must not keep the entries behind them from being read.
        """
        known = isinstance(blueprint_id, str) and blueprint_id != ""
        if known and kind in (ChangeKind.PUT, ChangeKind.DELETE):
            return cls(revision, str(blueprint_id), ChangeKind(str(kind)))
        return cls(revision, "", ChangeKind.FOREIGN)


class Connection(NamedTuple):
    """How another process opens the same library: ``factory(**arguments)``.

    Attributes:
      factory: importable, as ``"package.module:function"``.
      arguments: keyword arguments that JSON can carry. They may contain a password.
    """

    factory: str
    arguments: Mapping[str, object]


class BlueprintLibrary(Protocol):
    """A store of blueprints by id; any thread may call any method.

    A caller that has seen a revision, by `revision` or `changes`, gets from `get` what that
    revision put, or something newer. Every method raises `PersistenceError` if the library
    cannot be read or written.
    """

    def get(self, blueprint_id: str) -> Blueprint | None:
        """The blueprint with its revision, or None."""
        ...

    def put(self, blueprint: Blueprint) -> int:
        """Validate and store a blueprint; returns its new revision."""
        ...

    def delete(self, blueprint_id: str) -> int:
        """Remove a blueprint, whether or not it exists; returns the new revision."""
        ...

    def ids(self) -> list[str]:
        """Ids of all blueprints, sorted."""
        ...

    def revision(self) -> int:
        """The revision of the newest change, 0 before the first."""
        ...

    def changes(self, after: int, timeout: float) -> list[Change]:
        """Changes above revision `after`, in order; waits up to `timeout` seconds for the first.

        Changes that the library no longer keeps are missing at the front. Entries of other
        programs are FOREIGN changes.
        """
        ...

    def connection(self) -> Connection | None:
        """How another process opens this library; None if it is in this process's memory."""
        ...


def check_blueprint(blueprint: Blueprint, caps: GraphConfig) -> Blueprint:
    """Validate a blueprint against the caps and return it.

    Raises:
      InvalidBlueprintError: a field breaks the contract; the error names the field.
      GraphCapacityError: the blueprint has more nodes or edges than the caps.
    """
    validate_blueprint(
        blueprint,
        max_layers=caps.max_layers,
        max_activations=caps.max_activations,
        max_parameters=caps.max_parameters,
        max_edges=caps.max_edges,
    )
    return blueprint


class MemoryBlueprintLibrary:
    """Blueprints in this process's memory, for tests and notebooks.

    Args:
      caps: limits on the nodes and edges of a blueprint.
    """

    def __init__(self, caps: GraphConfig | None = None) -> None:
        self._caps = caps or GraphConfig()
        self._blueprints: dict[str, Blueprint] = {}
        self._changes: list[Change] = []
        self._changed = threading.Condition()

    def get(self, blueprint_id: str) -> Blueprint | None:
        """Implement `BlueprintLibrary`."""
        with self._changed:
            return self._blueprints.get(blueprint_id)

    def put(self, blueprint: Blueprint) -> int:
        """Implement `BlueprintLibrary`."""
        check_blueprint(blueprint, self._caps)
        with self._changed:
            revision = self._record(blueprint.blueprint_id, ChangeKind.PUT)
            self._blueprints[blueprint.blueprint_id] = replace(blueprint, revision=revision)
            return revision

    def delete(self, blueprint_id: str) -> int:
        """Implement `BlueprintLibrary`."""
        with self._changed:
            self._blueprints.pop(blueprint_id, None)
            return self._record(blueprint_id, ChangeKind.DELETE)

    def ids(self) -> list[str]:
        """Implement `BlueprintLibrary`."""
        with self._changed:
            return sorted(self._blueprints)

    def revision(self) -> int:
        """Implement `BlueprintLibrary`."""
        with self._changed:
            return len(self._changes)

    def changes(self, after: int, timeout: float) -> list[Change]:
        """Implement `BlueprintLibrary`."""
        with self._changed:
            self._changed.wait_for(lambda: len(self._changes) > after, timeout)
            return self._changes[after:]

    def connection(self) -> None:
        """Return None: no other process can reach this memory."""

    def _record(self, blueprint_id: str, kind: ChangeKind) -> int:
        revision = len(self._changes) + 1
        self._changes.append(Change(revision, blueprint_id, kind))
        self._changed.notify_all()
        return revision
