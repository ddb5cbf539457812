"""Resolve the blueprints of a packet within the metadata deadline."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from functools import cache
from typing import Any

from tamiyo_jax.config import GraphConfig
from tamiyo_jax.contracts import Blueprint, Metric, SystemStatePacket
from tamiyo_jax.errors import (
    DeadlineExceededError,
    GraphCapacityError,
    InvalidBlueprintError,
    UnknownBlueprintError,
)
from tamiyo_jax.graph import BlueprintArrays, encode_blueprint, layout_for
from tamiyo_jax.library._cache import Entry, Found
from tamiyo_jax.library._listener import CacheListener
from tamiyo_jax.library._memory import BlueprintLibrary
from tamiyo_jax.workers import WorkerPool

__all__ = [
    "BlueprintResolver",
    "Fetch",
    "fetch_inline",
    "fetch_through",
    "find_in",
    "serve_library",
]

# Fetches ids within a number of seconds. Ids missing from the answer were not reached in time;
# None stands for an id that the library does not hold. A fetch that can be interrupted raises
# `DeadlineExceededError` with stage "metadata".
Fetch = Callable[[tuple[str, ...], float], Mapping[str, Blueprint | None]]


def fetch_inline(library: BlueprintLibrary, clock: Callable[[], float] = time.monotonic) -> Fetch:
    """Make a fetch in the calling process; it ends late if the library answers late."""

    def fetch(ids: tuple[str, ...], seconds: float) -> dict[str, Blueprint | None]:
        deadline = clock() + seconds
        answers: dict[str, Blueprint | None] = {}
        for blueprint_id in ids:
            answers[blueprint_id] = library.get(blueprint_id)
            if clock() >= deadline:
                break
        return answers

    return fetch


def find_in(library: BlueprintLibrary) -> Callable[[str], Blueprint]:
    """Make a function that reads the blueprint of an id, once, for packets of a journal.

    It raises:
      UnknownBlueprintError: the library does not hold that blueprint.
    """

    @cache
    def find(blueprint_id: str) -> Blueprint:
        found = library.get(blueprint_id)
        if found is None:
            raise UnknownBlueprintError(
                f"the library does not hold blueprint {blueprint_id!r}, which a journal's "
                "packets name; give the library of that run",
                blueprint_id=blueprint_id,
            )
        return found

    return find


def fetch_through(pool: WorkerPool) -> Fetch:
    """Make a fetch through a worker that serves the library and is killed when late."""

    def fetch(ids: tuple[str, ...], seconds: float) -> Mapping[str, Blueprint | None]:
        return pool.call(ids, seconds * 1e3)

    return fetch


def serve_library(
    factory: str, arguments: Mapping[str, Any]
) -> Callable[[tuple[str, ...]], dict[str, Blueprint | None]]:
    """Open a library in a metadata worker and return its handler of ids.

    Args:
      factory: `Connection.factory`, as ``"package.module:function"``.
      arguments: `Connection.arguments`.
    """
    module, _, name = factory.partition(":")
    library: BlueprintLibrary = getattr(importlib.import_module(module), name)(**arguments)
    for blueprint_id in library.ids()[:1]:
        with suppress(InvalidBlueprintError, GraphCapacityError):  # raised when it is requested
            library.get(blueprint_id)  # connect and import now, not under a deadline
    return lambda ids: {blueprint_id: library.get(blueprint_id) for blueprint_id in ids}


class BlueprintResolver:
    """Finds blueprints in the cache, and fetches the missing ones.

    Args:
      listener: holds the cache.
      fetch: asks the library for blueprints that the cache does not hold.
      graph: caps of the layout; a blueprint is encoded once per revision.
      clock: returns seconds, monotonic.
    """

    def __init__(
        self,
        listener: CacheListener,
        fetch: Fetch,
        graph: GraphConfig,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._listener = listener
        self._fetch = fetch
        self._graph = graph
        self._clock = clock

    def resolve(
        self, packet: SystemStatePacket, budget_ms: float
    ) -> tuple[BlueprintArrays, tuple[Blueprint, ...]]:
        """Return the active blueprint, encoded, and the candidates in the packet's order.

        Raises:
          UnknownBlueprintError: `blueprint_ids` of the packet that the library does not hold.
          DeadlineExceededError: fetching took longer than `budget_ms`; what was fetched is
            kept for the next step.
          StaleCacheError: the library has not answered for too long.
          PersistenceError: the library cannot be read.
          GraphCapacityError: the active blueprint exceeds the caps.
        """
        ids = tuple(dict.fromkeys((packet.blueprint_id, *packet.candidates)))
        entries = self._entries(ids, budget_ms)
        active = entries[packet.blueprint_id]
        arrays = active.arrays if active.arrays is not None else self._encode(active.blueprint)
        return arrays, tuple(entries[candidate].blueprint for candidate in packet.candidates)

    def metrics(self) -> tuple[Metric, ...]:
        """The cache's counters for telemetry."""
        return self._listener.cache.metrics()

    def close(self) -> None:
        """End the listener."""
        self._listener.close()

    def _entries(self, ids: tuple[str, ...], budget_ms: float) -> Mapping[str, Entry]:
        """Look up and fetch until all ids are known; an answer may be outdated on arrival."""
        started = self._clock()
        entries: dict[str, Entry] = {}
        absent: list[str] = []
        waiting: Collection[str] = ids
        while waiting:
            known = self._listener.look(waiting)
            entries |= known.entries
            absent += known.absent
            if known.missing:
                fetched = self._fetch_missing(known, budget_ms, started)
                entries |= fetched.entries
                absent += fetched.absent
            waiting = [key for key in ids if key not in entries and key not in absent]
        if absent:
            names = ", ".join(map(repr, absent))
            raise UnknownBlueprintError(
                f"not in the blueprint library: {names}; put it there first",
                blueprint_id=absent[0],
                blueprint_ids=tuple(absent),
            )
        return entries

    def _fetch_missing(self, known: Found, budget_ms: float, started: float) -> Found:
        answers: Mapping[str, Blueprint | None] = {}
        try:
            answers = self._fetch(known.missing, started + budget_ms / 1e3 - self._clock())
        finally:
            fetched = self._listener.store(known.ticket, answers)
        elapsed_ms = (self._clock() - started) * 1e3
        if elapsed_ms > budget_ms:
            raise DeadlineExceededError(
                f"reading blueprints took {elapsed_ms:.1f} ms, the budget is {budget_ms:g} ms; "
                "check the library or raise deadlines.metadata_ms",
                stage="metadata",
                budget_ms=budget_ms,
                latency_ms=elapsed_ms,
            )
        return fetched

    def _encode(self, blueprint: Blueprint) -> BlueprintArrays:
        layout = layout_for(blueprint, self._graph)
        arrays = encode_blueprint(blueprint, layout, config=self._graph)
        self._listener.keep(arrays)
        return arrays
