"""Resolving the blueprints of a packet under their deadline."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
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
from tamiyo_jax.runtime.cache import Entry, Found
from tamiyo_jax.runtime.library import BlueprintLibrary
from tamiyo_jax.runtime.listener import CacheListener
from tamiyo_jax.runtime.pool import WorkerPool

__all__ = ["BlueprintResolver", "Fetch", "fetch_inline", "fetch_through", "serve_library"]

# Asks a library for ids within so many seconds. Ids that the answer leaves out were not
# reached in time; None is for those that the library does not hold. A fetch that can be cut
# short raises `DeadlineExceededError` with stage "metadata".
Fetch = Callable[[tuple[str, ...], float], Mapping[str, Blueprint | None]]


def fetch_inline(library: BlueprintLibrary, clock: Callable[[], float] = time.monotonic) -> Fetch:
    """A fetch in the calling process; it ends late if one answer of the library is late."""

    def fetch(ids: tuple[str, ...], seconds: float) -> dict[str, Blueprint | None]:
        deadline = clock() + seconds
        answers: dict[str, Blueprint | None] = {}
        for one in ids:
            answers[one] = library.get(one)
            if clock() >= deadline:
                break
        return answers

    return fetch


def fetch_through(pool: WorkerPool) -> Fetch:
    """A fetch through a worker that serves the library, and is ended when it is late."""

    def fetch(ids: tuple[str, ...], seconds: float) -> Mapping[str, Blueprint | None]:
        return pool.call(ids, seconds * 1e3)

    return fetch


def serve_library(
    factory: str, arguments: Mapping[str, Any]
) -> Callable[[tuple[str, ...]], dict[str, Blueprint | None]]:
    """What a metadata worker loads; see `BlueprintLibrary.connection`."""
    module, _, name = factory.partition(":")
    library: BlueprintLibrary = getattr(importlib.import_module(module), name)(**arguments)
    for one in library.ids()[:1]:
        with suppress(InvalidBlueprintError, GraphCapacityError):  # it is for who asks for it
            library.get(one)  # connect and import now, not under a deadline
    return lambda ids: {one: library.get(one) for one in ids}


class BlueprintResolver:
    """Finds blueprints in the cache, and fetches those that it misses.

    Args:
      listener: keeps the cache.
      fetch: asks the library for what the cache misses.
      graph: gives the layout of a blueprint, which is encoded once per revision.
      clock: seconds, never backwards.
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
        """The active blueprint, encoded, and the candidates, in the packet's order.

        Raises:
          UnknownBlueprintError: `blueprint_ids` of the packet that the library does not hold.
          DeadlineExceededError: fetching took longer than `budget_ms`; what was fetched is
            kept for the next step.
          StaleCacheError: the library has not been heard for too long.
          PersistenceError: the library cannot be read.
          GraphCapacityError: the active blueprint exceeds the caps.
        """
        ids = tuple(dict.fromkeys((packet.blueprint_id, *packet.candidates)))
        entries = self._entries(ids, budget_ms)
        active = entries[packet.blueprint_id]
        arrays = active.arrays if active.arrays is not None else self._encode(active.blueprint)
        return arrays, tuple(entries[one].blueprint for one in packet.candidates)

    def metrics(self) -> tuple[Metric, ...]:
        """The cache's counters for telemetry."""
        return self._listener.cache.metrics()

    def close(self) -> None:
        """Stop listening."""
        self._listener.close()

    def _entries(self, ids: tuple[str, ...], budget_ms: float) -> Mapping[str, Entry]:
        """Look and fetch until all ids are known; an answer may be outdated when it comes."""
        started = self._clock()
        entries: dict[str, Entry] = {}
        absent: list[str] = []
        waiting: Collection[str] = ids
        while waiting:
            known = self._listener.look(waiting)
            entries |= known.entries
            absent += known.absent
            if known.missing:
                fetched = self._fetched(known, budget_ms, started)
                entries |= fetched.entries
                absent += fetched.absent
            waiting = [one for one in ids if one not in entries and one not in absent]
        if absent:
            names = ", ".join(repr(one) for one in absent)
            raise UnknownBlueprintError(
                f"not in the blueprint library: {names}; put it there first",
                blueprint_id=absent[0],
                blueprint_ids=tuple(absent),
            )
        return entries

    def _fetched(self, known: Found, budget_ms: float, started: float) -> Found:
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
