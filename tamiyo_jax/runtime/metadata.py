"""Resolving the blueprints of a packet under their deadline."""

from __future__ import annotations

import time

from tamiyo_jax.contracts import Blueprint, SystemStatePacket
from tamiyo_jax.errors import DeadlineExceededError, UnknownBlueprintError
from tamiyo_jax.runtime.library import BlueprintLibrary

__all__ = ["BlueprintResolver"]


class BlueprintResolver:
    """Reads blueprints from a library and keeps them until the library's revision moves."""

    def __init__(self, library: BlueprintLibrary) -> None:
        self._library = library
        self._revision = -1
        self._known: dict[str, Blueprint] = {}

    def resolve(
        self, packet: SystemStatePacket, budget_ms: float
    ) -> tuple[Blueprint, tuple[Blueprint, ...]]:
        """The active blueprint and the candidates.

        Raises:
          UnknownBlueprintError: the library does not hold one of them.
          DeadlineExceededError: the library took longer than `budget_ms`; what it answered
            is kept for the next step.
        """
        started = time.perf_counter()
        revision = self._library.revision()
        if revision != self._revision:
            self._known.clear()
            self._revision = revision
        active = self._get(packet.blueprint_id)
        candidates = tuple(self._get(one) for one in packet.candidates)
        elapsed_ms = (time.perf_counter() - started) * 1e3
        if elapsed_ms > budget_ms:
            raise DeadlineExceededError(
                f"reading blueprints took {elapsed_ms:.1f} ms, the budget is {budget_ms:g} ms; "
                "check the library or raise deadlines.metadata_ms",
                stage="metadata",
                budget_ms=budget_ms,
                latency_ms=elapsed_ms,
            )
        return active, candidates

    def _get(self, blueprint_id: str) -> Blueprint:
        if blueprint_id not in self._known:
            blueprint = self._library.get(blueprint_id)
            if blueprint is None:
                raise UnknownBlueprintError(
                    f"blueprint {blueprint_id!r} is not in the library; put it there first",
                    blueprint_id=blueprint_id,
                )
            self._known[blueprint_id] = blueprint
        return self._known[blueprint_id]
