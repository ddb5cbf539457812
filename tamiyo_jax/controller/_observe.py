"""First half of a step: a packet and its blueprints become an observation."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import NamedTuple, TypeVar

import numpy as np

from tamiyo_jax.config import TamiyoConfig
from tamiyo_jax.contracts import Blueprint, Event, SystemStatePacket, TelemetryLevel
from tamiyo_jax.controller._state import TamiyoState
from tamiyo_jax.graph import (
    BlueprintArrays,
    Completeness,
    GraphLayout,
    RawGraph,
    Registries,
    StageKey,
    blueprint_order,
    completeness,
    encode_blueprint,
    encode_packet,
    feature_changes,
    layout_for,
)
from tamiyo_jax.policy import Legality, Observation, legality

__all__ = ["Situation", "observe", "observe_encoded"]

PolicyState = TypeVar("PolicyState")


@dataclass(frozen=True)
class Situation:
    """What the controller knows before it asks the policy.

    The graph, and what it lacks, are found when they are first read: on guard nobody asks.

    Attributes:
      packet: the packet.
      layout: of the graph.
      legality: what may be chosen.
      blueprint: the active blueprint.
      nodes: the blueprints in the order of their node rows; the active one first.
      registries: the registries with this packet's additions.
      missing_before: optional features that were missing on the step before.
      truncated_before: what was cut on the step before.
      encode: makes the graph.
      complete: how complete it is, if that is known without it.
    """

    packet: SystemStatePacket
    layout: GraphLayout
    legality: Legality
    blueprint: Blueprint
    nodes: tuple[Blueprint, ...]
    registries: Registries
    missing_before: frozenset[str]
    truncated_before: tuple[tuple[str, int], ...]
    encode: Callable[[], RawGraph]
    complete: Completeness | None

    @cached_property
    def observation(self) -> Observation:
        """What the policy is given."""
        return Observation(self.packet, self.layout, self.encode(), self.legality)

    @property
    def coverage(self) -> Mapping[str, float]:
        """Share of expected input that is there, by node type and relation."""
        return self._completeness.coverage

    @property
    def total_coverage(self) -> float:
        """The same over all input."""
        return self._completeness.total

    @property
    def missing(self) -> frozenset[str]:
        """Optional features that are missing."""
        return self._completeness.missing

    @cached_property
    def truncated(self) -> tuple[tuple[str, int], ...]:
        """What was cut, by type or relation."""
        return tuple(sorted(self._completeness.truncated.items()))

    @cached_property
    def events(self) -> tuple[Event, ...]:
        """What went missing, came back or was cut since the step before."""
        return _events(self)

    @cached_property
    def _completeness(self) -> Completeness:
        if self.complete is not None:
            return self.complete
        return completeness(self.layout, self.observation.raw)


def observe(
    config: TamiyoConfig,
    state: TamiyoState[PolicyState],
    packet: SystemStatePacket,
    blueprint: Blueprint,
    candidates: tuple[Blueprint, ...],
) -> Situation:
    """Encode a validated packet and its active blueprint; see `observe_encoded`."""
    layout = layout_for(blueprint, config.graph)
    arrays = encode_blueprint(blueprint, layout, config=config.graph)
    return observe_encoded(config, state, packet, arrays, candidates)


def observe_encoded(
    config: TamiyoConfig,
    state: TamiyoState[PolicyState],
    packet: SystemStatePacket,
    arrays: BlueprintArrays,
    candidates: tuple[Blueprint, ...],
) -> Situation:
    """Encode a validated packet over what was encoded of its blueprint before.

    Args:
      config: the configuration.
      state: the state, which is not changed.
      packet: a packet that passed `validate_packet`.
      arrays: the packet's active blueprint, encoded for its layout; they are copied.
      candidates: the packet's candidate blueprints, in its order.

    Raises:
      MissingFeatureError: required features are absent.
      GraphCapacityError: more nodes or edges than the caps.
      NoSeedCandidatesError: no seed, and the host is not declared seedless.
    """
    nodes = blueprint_order(arrays.blueprint, candidates)
    encode = partial(
        encode_packet, packet, arrays, candidates, state.registries, config=config.graph
    )
    find_legality = partial(
        legality,
        packet,
        nodes,
        max_seeds=config.graph.max_seeds,
        max_blueprints=config.graph.max_blueprints,
        seedless=config.packet.seedless,
        host_breaker=state.host_breaker,
    )
    if packet.seeds:
        allowed = find_legality()
        raw, registries = encode()
        kind = _Kind(allowed, registries, None)
    else:
        raw = None
        key = _key_of(packet, arrays, nodes, state, seedless=config.packet.seedless)
        kind = arrays.memory.recall(key, lambda: _find_kind(arrays.layout, find_legality, encode))
    return Situation(
        packet=packet,
        layout=arrays.layout,
        legality=kind.legality,
        blueprint=arrays.blueprint,
        nodes=nodes,
        registries=kind.registries,
        missing_before=state.missing_features,
        truncated_before=state.truncated,
        encode=lambda: encode()[0] if raw is None else raw,
        complete=kind.complete,
    )


class _Kind(NamedTuple):
    """What packets without seeds that report the same have in common; not what they report."""

    legality: Legality
    registries: Registries
    complete: Completeness | None


def _key_of(
    packet: SystemStatePacket,
    arrays: BlueprintArrays,
    nodes: tuple[Blueprint, ...],
    state: TamiyoState[PolicyState],
    *,
    seedless: bool,
) -> Hashable:
    """What a `_Kind` depends on, but for settings: arrays are of one controller."""
    return (
        StageKey(state.registries, nodes),
        packet.blueprint_id,
        packet.candidate_blueprint_ids,
        arrays.metrics.intersection(packet.training_metrics),
        packet.validation_loss is None,
        packet.training_loss is None,
        packet.optimizer_id is None,
        state.host_breaker,
        seedless,
    )


def _find_kind(
    layout: GraphLayout,
    find_legality: Callable[[], Legality],
    encode: Callable[[], tuple[RawGraph, Registries]],
) -> _Kind:
    allowed = find_legality()
    for mask in allowed:
        np.asarray(mask).flags.writeable = False
    raw, registries = encode()
    return _Kind(allowed, registries, completeness(layout, raw))


def _events(situation: Situation) -> tuple[Event, ...]:
    gone, back = feature_changes(situation.missing_before, situation.missing)
    cut = situation.truncated
    events: list[Event] = []
    if gone:
        events.append(
            Event("feature_missing", TelemetryLevel.WARNING, {"features": ",".join(sorted(gone))})
        )
    if back:
        events.append(
            Event("feature_restored", TelemetryLevel.INFO, {"features": ",".join(sorted(back))})
        )
    if cut and cut != situation.truncated_before:
        events.append(
            Event(
                "graph_truncated",
                TelemetryLevel.WARNING,
                {name: str(count) for name, count in cut},
            )
        )
    return tuple(events)
