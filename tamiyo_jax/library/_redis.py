"""Blueprints on a Redis server, shared by several machines."""

# The types of redis-py are partial.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

from tamiyo_jax._redis_client import open_client, public_url
from tamiyo_jax.config import GraphConfig
from tamiyo_jax.contracts import Blueprint, blueprint_from_json, blueprint_to_json
from tamiyo_jax.errors import PersistenceError
from tamiyo_jax.library._memory import CHANGES_KEPT, Change, ChangeKind, Connection, check_blueprint

if TYPE_CHECKING:
    from redis import Redis
    from redis.client import Pipeline

__all__ = ["RedisBlueprintLibrary", "connect"]

# The braces keep both keys in the same slot of a cluster.
_BLUEPRINTS = "{tamiyo}:blueprints"
_CHANGES = "{tamiyo}:changes"

# Other programs may add entries with any number after the dash; ours have 0. Reading continues
# behind all entries of a revision.
_LAST = 2**64 - 1

_BLOCK_SECONDS = 1.0


class RedisBlueprintLibrary:
    """Blueprints on a Redis server, shared by several machines.

    Blueprints are the fields of a hash, changes the entries of a stream; a single MULTI
    writes both. A change's revision is the id of its entry, so the order of the stream is that of
    the revisions, and the server refuses any other. Entries of other programs are skipped.
    Needs ``tamiyo_jax[redis]``.

    Args:
      url: ``redis://``, ``rediss://`` or ``unix://``, as redis-py reads it. A password in it
        is sent to the server and given by `connection` only.
      caps: limits on the nodes and edges of a blueprint.

    Raises:
      ConfigurationError: redis-py is not installed, or cannot read the URL.
      PersistenceError: the server does not answer within 2 s.
    """

    def __init__(self, url: str, caps: GraphConfig | None = None) -> None:
        self._url = url
        self._caps = caps or GraphConfig()
        self._redis, self._error = open_client(
            url, purpose=type(self).__name__, decode_responses=True
        )
        with self._raise_persistence_error():
            self._redis.ping()

    def get(self, blueprint_id: str) -> Blueprint | None:
        """Implement `BlueprintLibrary`."""
        with self._raise_persistence_error():
            document = cast("str | None", self._redis.hget(_BLUEPRINTS, blueprint_id))
        return (
            None if document is None else check_blueprint(blueprint_from_json(document), self._caps)
        )

    def put(self, blueprint: Blueprint) -> int:
        """Implement `BlueprintLibrary`."""
        check_blueprint(blueprint, self._caps)

        def write(pipe: Pipeline, revision: int) -> None:
            document = blueprint_to_json(replace(blueprint, revision=revision))
            pipe.hset(_BLUEPRINTS, blueprint.blueprint_id, document)

        return self._commit(blueprint.blueprint_id, ChangeKind.PUT, write)

    def delete(self, blueprint_id: str) -> int:
        """Implement `BlueprintLibrary`."""

        def write(pipe: Pipeline, revision: int) -> None:
            pipe.hdel(_BLUEPRINTS, blueprint_id)

        return self._commit(blueprint_id, ChangeKind.DELETE, write)

    def ids(self) -> list[str]:
        """Implement `BlueprintLibrary`."""
        with self._raise_persistence_error():
            return sorted(cast("list[str]", self._redis.hkeys(_BLUEPRINTS)))

    def revision(self) -> int:
        """Implement `BlueprintLibrary`."""
        with self._raise_persistence_error():
            return _read_revision(self._redis)

    def changes(self, after: int, timeout: float) -> list[Change]:
        """Implement `BlueprintLibrary`; the server wakes the reader."""
        deadline = time.monotonic() + timeout
        while True:
            remaining = min(deadline - time.monotonic(), _BLOCK_SECONDS)
            block = max(1, int(remaining * 1e3)) if remaining > 0 else None
            with self._raise_persistence_error():
                reply = cast(
                    "list[tuple[str, list[tuple[str, dict[str, str]]]]]",
                    self._redis.xread({_CHANGES: f"{after}-{_LAST}"}, block=block),
                )
            if reply:
                ((_, entries),) = reply
                return [_change(entry, fields) for entry, fields in entries]
            if block is None:
                return []

    def connection(self) -> Connection:
        """Implement `BlueprintLibrary`."""
        arguments = {"url": self._url, "caps": self._caps.model_dump()}
        return Connection(f"{__name__}:{connect.__name__}", arguments)

    def close(self) -> None:
        """Close the connections to the server; a later call opens new ones."""
        self._redis.close()

    def __repr__(self) -> str:
        return f"RedisBlueprintLibrary({public_url(self._url)!r})"

    def _commit(
        self, blueprint_id: str, kind: ChangeKind, write: Callable[[Pipeline, int], None]
    ) -> int:
        """Write a change and its entry in one MULTI; retried if another process takes the entry."""

        def attempt(pipe: Pipeline) -> int:
            revision = _read_revision(pipe) + 1
            pipe.multi()
            fields: dict[Any, Any] = {"blueprint_id": blueprint_id, "kind": kind.value}
            pipe.xadd(
                _CHANGES, fields, id=_entry_id(revision), maxlen=CHANGES_KEPT, approximate=False
            )
            write(pipe, revision)
            return revision

        with self._raise_persistence_error():
            work = cast("Callable[[Pipeline], None]", attempt)
            return cast("int", self._redis.transaction(work, _CHANGES, value_from_callable=True))

    @contextmanager
    def _raise_persistence_error(self) -> Generator[None]:
        try:
            yield
        except self._error as error:
            where = public_url(self._url)
            raise PersistenceError(f"blueprint library {where}: {error}", url=where) from error


def connect(url: str, caps: Mapping[str, object]) -> RedisBlueprintLibrary:
    """Open the library that `RedisBlueprintLibrary.connection` describes."""
    return RedisBlueprintLibrary(url, GraphConfig.model_validate(caps))


def _read_revision(client: Redis | Pipeline) -> int:
    newest = cast("list[tuple[str, dict[str, str]]]", client.xrevrange(_CHANGES, count=1))
    return _change(*newest[0]).revision if newest else 0


def _entry_id(revision: int) -> str:
    return f"{revision}-0"


def _change(entry: str, fields: Mapping[str, str]) -> Change:
    revision, _, _ = entry.partition("-")
    return Change.parse(int(revision), fields.get("blueprint_id"), fields.get("kind"))
