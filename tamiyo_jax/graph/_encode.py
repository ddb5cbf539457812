"""The encoder: a packet, its blueprint and its candidates become a `RawGraph`.

What depends on the blueprint alone is encoded once, by `encode_blueprint`, when a blueprint
enters a cache; `encode_packet` copies it and writes what the packet says over the copy. What
a packet seldom changes is remembered with the blueprint and shared, read-only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from tamiyo_jax.config import GraphConfig
from tamiyo_jax.contracts import Blueprint, SeedState, SystemStatePacket
from tamiyo_jax.errors import InvalidPacketError, MissingBlueprintIdError, MissingFeatureError
from tamiyo_jax.graph._blueprint_arrays import (
    DEFAULTS,
    BlueprintArrays,
    StageKey,
    blueprint_order,
    encode_blueprint,
)
from tamiyo_jax.graph._coverage import find_missing_required
from tamiyo_jax.graph._edges import write_complete_relations
from tamiyo_jax.graph._layout import GraphLayout, count_fitting
from tamiyo_jax.graph._live import write_live
from tamiyo_jax.graph._nodes import (
    TYPE_INDEX,
    blend_allowed,
    column_of,
    finite,
    global_columns,
    make_rows,
    seed_columns,
    write_rows,
)
from tamiyo_jax.graph._raw import RawGraph
from tamiyo_jax.graph._registry import Registries, Registry
from tamiyo_jax.graph._seed_edges import SeedEdges, SeedPlacement, watches

__all__ = ["encode", "encode_packet"]

_SEED_INDEX = column_of("seed", "seed_index")
_SEED_STAGE, _SEED_RISK = column_of("seed", "stage"), column_of("seed", "risk_score")


def encode_packet(
    packet: SystemStatePacket,
    arrays: BlueprintArrays,
    candidates: Sequence[Blueprint],
    registries: Registries,
    *,
    config: GraphConfig = DEFAULTS,
) -> tuple[RawGraph, Registries]:
    """Write a packet over the arrays of its blueprint; see `encode`."""
    blueprint, layout, seeds = arrays.blueprint, arrays.layout, packet.seeds
    blueprints = blueprint_order(blueprint, candidates)
    _check_named(packet, blueprints)
    for name, count in (("seed", len(seeds)), ("blueprint", len(blueprints))):
        count_fitting(name, count, layout.nodes[name].capacity, config)
    registries, static = arrays.stage_for(StageKey(registries, blueprints))
    registries = registries.with_keys(seeds=[seed.seed_id for seed in seeds])
    blending = [blend_allowed(seed, blueprint) for seed in seeds]
    seed_edges_for = arrays.seed_edges_for(_place_seeds(arrays, seeds, blending))
    raw = _copy_arrays(static, seed_edges_for, whole=bool(arrays.listed))

    write_rows(raw, layout, "global", make_rows("global", global_columns(packet), 1), 1)
    _write_seeds(raw, layout, seeds, len(blueprint.layers), blending, registries.seeds)
    _write_losses(raw, layout, packet, min(len(blueprints), layout.nodes["blueprint"].capacity))
    write_live(raw, arrays.live, packet.training_metrics)
    raw.edges.reshape(-1)[seed_edges_for.filled] = raw.attributes.reshape(-1)[
        seed_edges_for.origins
    ]
    write_complete_relations(raw, layout, arrays.listed, arrays.pairs, config)
    if config.strict_features:
        _require(find_missing_required(layout, raw))
    return raw, registries


def _place_seeds(
    arrays: BlueprintArrays, seeds: Sequence[SeedState], blending: Sequence[bool]
) -> tuple[SeedPlacement, ...]:
    thresholds = arrays.blueprint.monitor_thresholds
    return tuple(
        [
            SeedPlacement(seed.seed_id, seed.layer_depth, may, watches(seed, thresholds))
            for seed, may in zip(seeds, blending, strict=True)
        ]
    )


def _copy_arrays(static: RawGraph, seed_edges_for: SeedEdges, *, whole: bool) -> RawGraph:
    """Copies of what a packet changes; the places of edges are shared unless `whole`."""
    raw = RawGraph(
        values=static.values.copy(),
        present=static.present.copy(),
        reported=static.reported.copy(),
        mask=static.mask.copy(),
        attributes=static.attributes.copy(),
        edges=seed_edges_for.edges.copy(),
        edge_mask=seed_edges_for.edge_mask,
        senders=seed_edges_for.senders,
        receivers=seed_edges_for.receivers,
        expected_nodes=static.expected_nodes.copy(),
        expected_edges=seed_edges_for.expected_edges,
    )
    if not whole:
        return raw
    return raw._replace(
        edge_mask=raw.edge_mask.copy(),
        senders=raw.senders.copy(),
        receivers=raw.receivers.copy(),
        expected_edges=raw.expected_edges.copy(),
    )


def _write_seeds(
    raw: RawGraph,
    layout: GraphLayout,
    seeds: Sequence[SeedState],
    layers: int,
    blending: Sequence[bool],
    registry: Registry,
) -> None:
    """Write the seeds, those that fit."""
    count = min(len(seeds), layout.nodes["seed"].capacity)
    ids = [seed.seed_id for seed in seeds]
    columns = seed_columns(seeds, layers, registry.fractions(ids), blending)
    rows = make_rows("seed", columns, count)
    where = write_rows(raw, layout, "seed", rows, len(seeds))
    raw.reported[TYPE_INDEX["seed"], _SEED_INDEX] = registry.count(ids[:count])
    raw.attributes[where, 0] = rows.values[:, _SEED_STAGE]
    raw.attributes[where, 1] = rows.values[:, _SEED_RISK]


def _write_losses(
    raw: RawGraph, layout: GraphLayout, packet: SystemStatePacket, count: int
) -> None:
    """Write the packet's losses into the rows of `count` blueprints."""
    start = layout.nodes["blueprint"].start
    where = slice(start, start + count)
    losses = {"validation_loss": packet.validation_loss, "training_loss": packet.training_loss}
    for feature, loss in losses.items():
        if loss is not None:
            column, present = column_of("blueprint", feature), math.isfinite(loss)
            raw.values[where, column] = finite(loss)
            raw.values[where, column + 1] = raw.present[where, column] = present
            raw.reported[TYPE_INDEX["blueprint"], column] = count


def encode(
    packet: SystemStatePacket,
    blueprint: Blueprint,
    candidates: Sequence[Blueprint],
    registries: Registries,
    layout: GraphLayout,
    *,
    config: GraphConfig = DEFAULTS,
) -> tuple[RawGraph, Registries]:
    """Encode a packet.

    Args:
      packet: a validated packet.
      blueprint: the active blueprint, the one that the packet names.
      candidates: the blueprints that the packet names as candidates, in its order; the
        active one may stand among them or not.
      registries: the indices given so far.
      layout: made by `layout_for` from the blueprint.
      config: caps and strictness.

    Returns:
      The graph in the shape of the layout, and the registries with what this packet added;
      they take effect only when the caller commits them.

    Raises:
      MissingBlueprintIdError: the packet names no blueprint.
      InvalidPacketError: the blueprints are not those that the packet names.
      MissingFeatureError: required features are absent, under `strict_features`.
      GraphCapacityError: more nodes, edges or types than the caps.
      GraphSchemaError: the layout does not list a relation that the blueprint lists.
    """
    arrays = encode_blueprint(blueprint, layout, config=config)
    return encode_packet(packet, arrays, candidates, registries, config=config)


def _check_named(packet: SystemStatePacket, blueprints: Sequence[Blueprint]) -> None:
    """The blueprints must be those that the packet names, in its order."""
    if not packet.blueprint_id:
        raise MissingBlueprintIdError(
            "blueprint_id is empty; send the id of the blueprint that describes this network",
            field="blueprint_id",
            value=packet.blueprint_id,
        )
    named = tuple(dict.fromkeys((packet.blueprint_id, *packet.candidates)))
    given = tuple(blueprint.blueprint_id for blueprint in blueprints)
    if given != named:
        raise InvalidPacketError(
            f"blueprints {given} were given for a packet that names {named}; fetch the ones "
            "that the packet names, in its order",
            field="candidate_blueprint_ids",
            value=packet.candidates,
        )


def _require(missing: Sequence[str]) -> None:
    """Raise for all required features that are absent, at once."""
    if missing:
        raise MissingFeatureError(
            f"required features are absent: {', '.join(missing)}; report them, or set "
            "strict_features = false to go on without them",
            features=tuple(missing),
        )
