"""The encoder: a packet, its blueprint and its candidates become a `RawGraph`.

What depends on the blueprint alone is encoded once, by `encode_blueprint`, when a blueprint
enters a cache; `encode_packet` copies it and writes what the packet says over the copy.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from tamiyo_jax.config import GraphConfig
from tamiyo_jax.contracts.blueprint import Blueprint
from tamiyo_jax.contracts.packet import SystemStatePacket
from tamiyo_jax.errors import InvalidPacketError, MissingBlueprintIdError, MissingFeatureError
from tamiyo_jax.graph.coverage import missing_features
from tamiyo_jax.graph.edges import depends_on_packet, write_relation
from tamiyo_jax.graph.layout import GraphLayout
from tamiyo_jax.graph.nodes import (
    SEED_STAGES,
    activation_row,
    blueprint_row,
    finite,
    global_row,
    layer_row,
    parameter_row,
    position,
    seed_row,
    write_feature,
    write_index,
    write_nodes,
)
from tamiyo_jax.graph.raw import RawGraph, blank
from tamiyo_jax.graph.registry import Registries
from tamiyo_jax.graph.schema import NODE_TYPES, RELATIONS

__all__ = ["BlueprintArrays", "blueprint_order", "encode", "encode_blueprint", "encode_packet"]

DEFAULTS = GraphConfig()

# Measurements in `training_metrics` that override a blueprint's static values, under
# ``<node type>/<id>/<feature>``.
LIVE_FEATURES: Mapping[str, tuple[str, ...]] = {
    "layer": ("latency_ms", "weight_norm", "gradient_norm"),
    "activation": ("saturation_rate",),
}
REQUIRED = frozenset(
    f"{kind.name}.{column.name}"
    for kind in NODE_TYPES
    for column in kind.columns
    if column.required
)


class BlueprintArrays(NamedTuple):
    """What depends on a blueprint alone, for one layout.

    Attributes:
      blueprint: the blueprint.
      layout: the layout that the arrays fit.
      raw: layers, activations, parameters and the edges among them; no registry index yet,
        because indices are given in order of arrival.
      rows: node row of each layer and activation, by node type and id.
    """

    blueprint: Blueprint
    layout: GraphLayout
    raw: RawGraph
    rows: Mapping[str, Mapping[str, int]]


def blueprint_order(blueprint: Blueprint, candidates: Sequence[Blueprint]) -> tuple[Blueprint, ...]:
    """The blueprints in the order of their nodes: the active one, then the other candidates."""
    others = (one for one in candidates if one.blueprint_id != blueprint.blueprint_id)
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
    layers, activations, parameters = (
        blueprint.layers,
        blueprint.activations,
        blueprint.parameters,
    )
    write_nodes(
        raw,
        layout,
        "layer",
        [layer_row(layer, len(layers)) for layer in layers],
        [(position(i, len(layers)), risk) for i in range(len(layers))],
        config,
    )
    write_nodes(
        raw,
        layout,
        "activation",
        [activation_row(one, i, len(activations)) for i, one in enumerate(activations)],
        [(position(i, len(activations)),) for i in range(len(activations))],
        config,
    )
    write_nodes(
        raw,
        layout,
        "parameter",
        [parameter_row(parameter, blueprint) for parameter in parameters],
        [(position(i, len(parameters)),) for i in range(len(parameters))],
        config,
    )
    # The active blueprint's own features need the packet; its edges need only these.
    active = layout.nodes["blueprint"].start
    raw.mask[active] = raw.mask[layout.nodes["global"].start] = True
    raw.attributes[active] = (blueprint.stage, risk)
    for one in RELATIONS:
        if not depends_on_packet(one):
            write_relation(raw, layout, one, (), blueprint, config)
    ids = {
        "layer": [layer.layer_id for layer in layers],
        "activation": [one.activation_id for one in activations],
    }
    rows = {
        name: {
            node_id: layout.nodes[name].start + i
            for i, node_id in enumerate(ids[name][: layout.nodes[name].capacity])
        }
        for name in ids
    }
    return BlueprintArrays(blueprint, layout, raw, rows)


def encode_packet(
    packet: SystemStatePacket,
    arrays: BlueprintArrays,
    candidates: Sequence[Blueprint],
    registries: Registries,
    *,
    config: GraphConfig = DEFAULTS,
) -> tuple[RawGraph, Registries]:
    """Write a packet over the arrays of its blueprint; see `encode`."""
    blueprint, layout = arrays.blueprint, arrays.layout
    blueprints = blueprint_order(blueprint, candidates)
    _check_named(packet, blueprints)
    registries = _register(registries, packet, blueprints)
    raw = RawGraph(*(array.copy() for array in arrays.raw))
    seeds = packet.seeds

    write_nodes(raw, layout, "global", [global_row(packet)], [()], config)
    write_nodes(
        raw,
        layout,
        "seed",
        [seed_row(seed, blueprint) for seed in seeds],
        [(seed.stage / SEED_STAGES, finite(seed.risk_score)) for seed in seeds],
        config,
    )
    write_nodes(
        raw,
        layout,
        "blueprint",
        [blueprint_row(one, packet) for one in blueprints],
        [(one.stage, finite(one.effective_risk)) for one in blueprints],
        config,
    )
    _write_indices(raw, layout, packet, blueprints, registries)
    _write_live(raw, arrays.rows, packet.training_metrics)
    for one in RELATIONS:
        if depends_on_packet(one):
            write_relation(raw, layout, one, seeds, blueprint, config)
    if config.strict_features:
        _require(missing_features(layout, raw) & REQUIRED)
    return raw, registries


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
    given = tuple(one.blueprint_id for one in blueprints)
    if given != named:
        raise InvalidPacketError(
            f"blueprints {given} were given for a packet that names {named}; fetch the ones "
            "that the packet names, in its order",
            field="candidate_blueprint_ids",
            value=packet.candidates,
        )


def _register(
    registries: Registries, packet: SystemStatePacket, blueprints: Sequence[Blueprint]
) -> Registries:
    active = blueprints[0]
    return registries.with_keys(
        seeds=(seed.seed_id for seed in packet.seeds),
        blueprints=(one.blueprint_id for one in blueprints),
        layer_types=(layer.type for layer in active.layers),
        activation_types=(
            *(layer.activation for layer in active.layers),
            *(activation.type for activation in active.activations),
        ),
        optimizer_families=(one.optimizer_family for one in blueprints),
        hazard_classes=(one.hazard_class for one in blueprints),
        blending_methods=(name for one in blueprints for name in one.allowed_blending_methods),
    )


def _write_indices(
    raw: RawGraph,
    layout: GraphLayout,
    packet: SystemStatePacket,
    blueprints: Sequence[Blueprint],
    registries: Registries,
) -> None:
    layers, activations = blueprints[0].layers, blueprints[0].activations
    types = registries.activation_types
    for name, feature, keys, registry in (
        ("seed", "seed_index", [seed.seed_id for seed in packet.seeds], registries.seeds),
        (
            "blueprint",
            "blueprint_index",
            [one.blueprint_id for one in blueprints],
            registries.blueprints,
        ),
        ("layer", "type", [layer.type for layer in layers], registries.layer_types),
        ("layer", "activation", [layer.activation for layer in layers], types),
        ("activation", "type", [one.type for one in activations], types),
    ):
        write_index(raw, layout, name, feature, keys, registry)


def _write_live(
    raw: RawGraph, rows: Mapping[str, Mapping[str, int]], metrics: Mapping[str, float]
) -> None:
    for key, value in metrics.items():
        name, _, rest = key.partition("/")
        node_id, _, feature = rest.rpartition("/")
        if feature in LIVE_FEATURES.get(name, ()) and node_id in rows[name]:
            write_feature(raw, name, feature, rows[name][node_id], value)


def _require(missing: Iterable[str]) -> None:
    """Raise for all required features that are absent, at once."""
    features = tuple(sorted(missing))
    if features:
        raise MissingFeatureError(
            f"required features are absent: {', '.join(features)}; report them, or set "
            "strict_features = false to go on without them",
            features=features,
        )
