"""Blueprints as arrays: what a blueprint alone decides, and what it decides with registries.

`encode_blueprint` runs once per blueprint, when it enters a cache. A stage adds the registry
indices and the other blueprints that packets name; it is remembered, since both stay the same
from step to step.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np

from tamiyo_jax.config import GraphConfig
from tamiyo_jax.contracts import Blueprint
from tamiyo_jax.graph._edges import find_packet_relations, write_static_relations
from tamiyo_jax.graph._layout import GraphLayout, count_fitting
from tamiyo_jax.graph._live import LiveSlots, live_slots
from tamiyo_jax.graph._nodes import (
    GLOBAL_METRICS,
    activation_columns,
    blueprint_columns,
    finite,
    layer_columns,
    make_rows,
    parameter_columns,
    positions,
    write_indices,
    write_rows,
)
from tamiyo_jax.graph._raw import RawGraph, blank
from tamiyo_jax.graph._registry import Registries
from tamiyo_jax.graph._relations import Relation
from tamiyo_jax.graph._seed_edges import SeedEdges, SeedPlacement, draw_seed_edges, seed_links

__all__ = [
    "BlueprintArrays",
    "Memory",
    "Stage",
    "StageKey",
    "blueprint_order",
    "encode_blueprint",
]

DEFAULTS = GraphConfig()

T = TypeVar("T")

_ALIKE = 8  # kinds of packets; a run sends few at a time

# Stages and seed placements that are kept; a run has few at a time.
_remembered = functools.lru_cache(maxsize=8)


class StageKey:
    """A key of registries and blueprints, compared by identity.

    Blueprints hold mappings and so have no hash, and that of a registry takes a walk over its
    keys; none of them ever changes.
    """

    __slots__ = ("blueprints", "identities", "registries")

    def __init__(self, registries: Registries, blueprints: tuple[Blueprint, ...]) -> None:
        self.registries = registries  # as long as these are held, no other has their identity
        self.blueprints = blueprints
        self.identities = (id(registries), *map(id, blueprints))

    def __hash__(self) -> int:
        return hash(self.identities)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, StageKey) and self.identities == other.identities


class Memory:
    """Remembers what was made of the newest few keys."""

    __slots__ = ("_made", "_size")

    def __init__(self, size: int) -> None:
        self._size = size
        self._made: dict[Hashable, Any] = {}

    def recall(self, key: Hashable, make: Callable[[], T]) -> T:
        """What was made of a key; it is made now if it is not known, and if that succeeds kept."""
        if key not in self._made:
            made = make()
            while len(self._made) >= self._size:
                del self._made[next(iter(self._made))]
            self._made[key] = made
        return self._made[key]


class Stage(NamedTuple):
    """All that is known before a packet is read but for the blueprints that it names.

    Attributes:
      registries: with the keys of the blueprints.
      raw: nodes of the blueprint and of those that the packet names, read-only.
    """

    registries: Registries
    raw: RawGraph


class BlueprintArrays(NamedTuple):
    """What depends on a blueprint alone, for one layout.

    Attributes:
      blueprint: the blueprint.
      layout: the layout that the arrays fit.
      raw: layers, activations, parameters and the edges among them, read-only; no registry
        index yet, because indices are given in order of arrival.
      live: where live measurements go.
      pairs: i64[n, 2] of the relations whose pairs the blueprint lists.
      listed: relations complete by construction whose edges stand in the table, and change
        with the packet.
      stage_for: makes the stage of a key; only the newest are kept.
      seed_edges_for: computes the edges of seeds by their placements; only the newest are kept.
      metrics: the keys of `training_metrics` that are read; all others are nothing to the graph.
      memory: for what a caller finds out of packets that are alike, by keys of its own.
    """

    blueprint: Blueprint
    layout: GraphLayout
    raw: RawGraph
    live: LiveSlots
    pairs: Mapping[str, np.ndarray]
    listed: tuple[Relation, ...]
    stage_for: Callable[[StageKey], Stage]
    seed_edges_for: Callable[[tuple[SeedPlacement, ...]], SeedEdges]
    metrics: frozenset[str]
    memory: Memory


def blueprint_order(blueprint: Blueprint, candidates: Sequence[Blueprint]) -> tuple[Blueprint, ...]:
    """The blueprints in the order of their nodes: the active one, then the other candidates."""
    others = (
        candidate for candidate in candidates if candidate.blueprint_id != blueprint.blueprint_id
    )
    return (blueprint, *others)


def encode_blueprint(
    blueprint: Blueprint, layout: GraphLayout, *, config: GraphConfig = DEFAULTS
) -> BlueprintArrays:
    """Encode what depends on the blueprint alone.

    Args:
      blueprint: the active blueprint.
      layout: made by `layout_for` from the same blueprint, or one with larger blocks.
      config: caps and strictness.

    Raises:
      GraphCapacityError: more nodes or edges than the layout holds, and truncation is off.
      GraphSchemaError: the layout does not list a relation that the blueprint lists.
    """
    raw = blank(layout)
    risk = finite(blueprint.effective_risk)
    for name, columns, count in (
        ("layer", layer_columns(blueprint.layers), len(blueprint.layers)),
        ("activation", activation_columns(blueprint.activations), len(blueprint.activations)),
        ("parameter", parameter_columns(blueprint), len(blueprint.parameters)),
    ):
        kept = count_fitting(name, count, layout.nodes[name].capacity, config)
        where = write_rows(raw, layout, name, make_rows(name, columns, kept), count)
        raw.attributes[where, 0] = positions(count)[:kept]
        if name == "layer":
            raw.attributes[where, 1] = risk
    # The active blueprint's own features need the packet; its edges need only these.
    active = layout.nodes["blueprint"].start
    raw.mask[active] = raw.mask[layout.nodes["global"].start] = True
    raw.attributes[active] = (blueprint.stage, risk)
    pairs = {
        key: np.array(listed, np.int64).reshape(-1, 2)
        for key, listed in blueprint.relation_pairs.items()
    }
    write_static_relations(raw, layout, blueprint, pairs, config)

    for array in raw:
        array.flags.writeable = False
    links, live = seed_links(blueprint, layout), live_slots(blueprint, layout)
    return BlueprintArrays(
        blueprint,
        layout,
        raw,
        live=live,
        pairs=pairs,
        listed=find_packet_relations(layout),
        stage_for=_remembered(functools.partial(_stage, raw, layout)),
        seed_edges_for=_remembered(functools.partial(draw_seed_edges, raw, layout, links, config)),
        metrics=GLOBAL_METRICS.union(live.places),
        memory=Memory(_ALIKE),
    )


def _distinct(keys: Iterable[str]) -> tuple[str, ...]:
    """The keys, each once, in order of arrival."""
    return tuple(dict.fromkeys(keys))


def _stage(static: RawGraph, layout: GraphLayout, key: StageKey) -> Stage:
    """Give the names of blueprints their registry indices, and write all that is known then."""
    blueprints, active = key.blueprints, key.blueprints[0]
    layer_types = [layer.type for layer in active.layers]
    functions = [layer.activation for layer in active.layers]
    activation_types = [activation.type for activation in active.activations]
    ids = [blueprint.blueprint_id for blueprint in blueprints]
    registries = key.registries.with_keys(
        blueprints=ids,
        layer_types=_distinct(layer_types),
        activation_types=_distinct((*functions, *activation_types)),
        optimizer_families=[blueprint.optimizer_family for blueprint in blueprints],
        hazard_classes=[blueprint.hazard_class for blueprint in blueprints],
        blending_methods=[
            name for blueprint in blueprints for name in blueprint.allowed_blending_methods
        ],
    )
    raw = RawGraph(*(array.copy() for array in static))
    kept = blueprints[: layout.nodes["blueprint"].capacity]
    rows = make_rows("blueprint", blueprint_columns(kept), len(kept))
    where = write_rows(raw, layout, "blueprint", rows, len(blueprints))
    raw.attributes[where] = [
        (blueprint.stage, finite(blueprint.effective_risk)) for blueprint in kept
    ]
    for name, feature, keys, registry in (
        ("blueprint", "blueprint_index", ids, registries.blueprints),
        ("layer", "type", layer_types, registries.layer_types),
        ("layer", "activation", functions, registries.activation_types),
        ("activation", "type", activation_types, registries.activation_types),
    ):
        write_indices(raw, layout, name, feature, keys, registry)
    for array in raw:
        array.flags.writeable = False
    return Stage(registries, raw)
