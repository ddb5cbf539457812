"""First half of a step: a packet and its blueprints become an observation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

from tamiyo_jax.config import TamiyoConfig
from tamiyo_jax.contracts import Blueprint, Event, SystemStatePacket, TelemetryLevel
from tamiyo_jax.controller.state import TamiyoState
from tamiyo_jax.graph import (
    BlueprintArrays,
    Registries,
    blueprint_order,
    completeness,
    encode_blueprint,
    encode_packet,
    feature_changes,
    layout_for,
)
from tamiyo_jax.policy import Observation, legality

__all__ = ["Situation", "observe", "observe_encoded"]

PolicyState = TypeVar("PolicyState")


@dataclass(frozen=True, slots=True)
class Situation:
    """What the controller knows before it asks the policy.

    Attributes:
      observation: what the policy is given.
      blueprint: the active blueprint.
      nodes: the blueprints in the order of their node rows; the active one first.
      registries: the registries with this packet's additions.
      coverage: share of expected input that is there, by node type and relation.
      total_coverage: the same over all input.
      missing: optional features that are missing.
      truncated: what was cut, by type or relation.
      events: what went missing, came back or was cut.
    """

    observation: Observation
    blueprint: Blueprint
    nodes: tuple[Blueprint, ...]
    registries: Registries
    coverage: Mapping[str, float]
    total_coverage: float
    missing: frozenset[str]
    truncated: tuple[tuple[str, int], ...]
    events: tuple[Event, ...]

    @property
    def packet(self) -> SystemStatePacket:
        """The packet."""
        return self.observation.packet


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
    blueprint, layout = arrays.blueprint, arrays.layout
    nodes = blueprint_order(blueprint, candidates)
    allowed = legality(
        packet,
        nodes,
        max_seeds=config.graph.max_seeds,
        max_blueprints=config.graph.max_blueprints,
        seedless=config.packet.seedless,
        host_breaker=state.host_breaker,
    )
    raw, registries = encode_packet(
        packet, arrays, candidates, state.registries, config=config.graph
    )
    there = completeness(layout, raw)
    cut = tuple(sorted(there.truncated.items()))
    return Situation(
        observation=Observation(packet, layout, raw, allowed),
        blueprint=blueprint,
        nodes=nodes,
        registries=registries,
        coverage=there.coverage,
        total_coverage=there.total,
        missing=there.missing,
        truncated=cut,
        events=_events(state, there.missing, cut),
    )


def _events(
    state: TamiyoState[PolicyState],
    missing: frozenset[str],
    cut: tuple[tuple[str, int], ...],
) -> tuple[Event, ...]:
    gone, back = feature_changes(state.missing_features, missing)
    events: list[Event] = []
    if gone:
        events.append(
            Event("feature_missing", TelemetryLevel.WARNING, {"features": ",".join(sorted(gone))})
        )
    if back:
        events.append(
            Event("feature_restored", TelemetryLevel.INFO, {"features": ",".join(sorted(back))})
        )
    if cut and cut != state.truncated:
        events.append(
            Event(
                "graph_truncated",
                TelemetryLevel.WARNING,
                {name: str(count) for name, count in cut},
            )
        )
    return tuple(events)
