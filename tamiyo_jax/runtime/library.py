"""Blueprint libraries: where blueprints live, and what changed in them.

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
    "checked",
]

# A library on a disk or a server forgets older changes. A reader that was away for longer
# finds a gap in the revisions and reads everything anew.
CHANGES_KEPT = 10_000


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


class Connection(NamedTuple):
    """How another process opens the same library: ``factory(**arguments)``.

    Attributes:
      factory: importable, as ``"package.module:function"``.
      arguments: keyword arguments that JSON can carry. They may hold a password.
    """

    factory: str
    arguments: Mapping[str, object]


class BlueprintLibrary(Protocol):
    """Where blueprints come from; any thread may call any method.

    Whoever has seen a revision, by `revision` or `changes`, gets by `get` what that revision
    put, or something newer. Every method raises `PersistenceError` when the library cannot
    be read or written.
    """

    def get(self, blueprint_id: str) -> Blueprint | None:
        """The blueprint with its revision, or None."""
        ...

    def put(self, blueprint: Blueprint) -> int:
        """Validate and store a blueprint; returns its new revision."""
        ...

    def delete(self, blueprint_id: str) -> int:
        """Remove a blueprint, there or not; returns the new revision."""
        ...

    def ids(self) -> list[str]:
        """Ids of all blueprints, sorted."""
        ...

    def revision(self) -> int:
        """The revision of the newest change, 0 before the first."""
        ...

    def changes(self, after: int, timeout: float) -> list[Change]:
        """Changes above revision `after`, in order; waits up to `timeout` seconds for one.

        Those that the library no longer keeps are missing at the front.
        """
        ...

    def connection(self) -> Connection | None:
        """How another process opens this library; None if it lives in this one's memory."""
        ...


def checked(blueprint: Blueprint, caps: GraphConfig) -> Blueprint:
    """The blueprint, if it keeps its contract.

    Raises:
      InvalidBlueprintError: it does not; the error names the field.
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
      caps: what a blueprint may hold.
    """

    def __init__(self, caps: GraphConfig | None = None) -> None:
        self._caps = caps or GraphConfig()
        self._blueprints: dict[str, Blueprint] = {}
        self._changes: list[Change] = []
        self._changed = threading.Condition()

    def get(self, blueprint_id: str) -> Blueprint | None:
        """See `BlueprintLibrary`."""
        with self._changed:
            return self._blueprints.get(blueprint_id)

    def put(self, blueprint: Blueprint) -> int:
        """See `BlueprintLibrary`."""
        checked(blueprint, self._caps)
        with self._changed:
            revision = self._record(blueprint.blueprint_id, ChangeKind.PUT)
            self._blueprints[blueprint.blueprint_id] = replace(blueprint, revision=revision)
            return revision

    def delete(self, blueprint_id: str) -> int:
        """See `BlueprintLibrary`."""
        with self._changed:
            self._blueprints.pop(blueprint_id, None)
            return self._record(blueprint_id, ChangeKind.DELETE)

    def ids(self) -> list[str]:
        """See `BlueprintLibrary`."""
        with self._changed:
            return sorted(self._blueprints)

    def revision(self) -> int:
        """See `BlueprintLibrary`."""
        with self._changed:
            return len(self._changes)

    def changes(self, after: int, timeout: float) -> list[Change]:
        """See `BlueprintLibrary`."""
        with self._changed:
            self._changed.wait_for(lambda: len(self._changes) > after, timeout)
            return self._changes[after:]

    def connection(self) -> None:
        """None: no other process can reach this memory."""

    def _record(self, blueprint_id: str, kind: ChangeKind) -> int:
        revision = len(self._changes) + 1
        self._changes.append(Change(revision, blueprint_id, kind))
        self._changed.notify_all()
        return revision
