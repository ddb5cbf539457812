"""Live measurements: what a packet says of single layers and activations.

Keys ``<node type>/<id>/<feature>`` of `training_metrics` override a blueprint's static values.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from tamiyo_jax.contracts import Blueprint
from tamiyo_jax.graph._layout import GraphLayout
from tamiyo_jax.graph._nodes import TYPE_INDEX, VALUE_LIMIT, column_of
from tamiyo_jax.graph._raw import RawGraph
from tamiyo_jax.graph._schema import find_node_type

__all__ = ["LiveSlots", "live_slots", "write_live"]

LIVE_FEATURES: Mapping[str, tuple[str, ...]] = {
    "layer": ("latency_ms", "weight_norm", "gradient_norm"),
    "activation": ("saturation_rate",),
}


class LiveSlots(NamedTuple):
    """Where live measurements of a blueprint's nodes go; K of them.

    Attributes:
      places: place of each key below.
      kind: i64[K], index of the node type.
      row: i64[K], of the node table.
      column: i64[K], of the value.
      bit: bool[K], whether the next column is its presence bit.
      reported: bool[K], whether the blueprint itself has the feature.
    """

    places: Mapping[str, int]
    kind: np.ndarray
    row: np.ndarray
    column: np.ndarray
    bit: np.ndarray
    reported: np.ndarray


def live_slots(blueprint: Blueprint, layout: GraphLayout) -> LiveSlots:
    """Where live measurements of those nodes go that the layout holds."""
    layers = blueprint.layers[: layout.nodes["layer"].capacity]
    activations = blueprint.activations[: layout.nodes["activation"].capacity]
    nodes = {
        "layer": {layer.layer_id: (i, layer) for i, layer in enumerate(layers)},
        "activation": {
            activation.activation_id: (i, activation) for i, activation in enumerate(activations)
        },
    }
    slots = {
        f"{name}/{node_id}/{feature}": (
            TYPE_INDEX[name],
            layout.nodes[name].start + i,
            column_of(name, feature),
            _has_bit(name, feature),
            getattr(node, feature) is not None,
        )
        for name, features in LIVE_FEATURES.items()
        for node_id, (i, node) in nodes[name].items()
        for feature in features
    }
    kind, row, column, bit, reported = np.array(list(slots.values()), np.int64).reshape(-1, 5).T
    places = {key: place for place, key in enumerate(slots)}
    return LiveSlots(places, kind, row, column, bit.astype(np.bool_), reported.astype(np.bool_))


def _has_bit(name: str, feature: str) -> bool:
    return any(
        column.name == feature and column.presence for column in find_node_type(name).columns
    )


def write_live(raw: RawGraph, slots: LiveSlots, metrics: Mapping[str, float]) -> None:
    """Overwrite features of single nodes, and their presence bits, with live measurements."""
    keys = slots.places.keys() & metrics.keys()
    if not keys:
        return
    at = np.array([slots.places[key] for key in keys])
    numbers = np.array([metrics[key] for key in keys], np.float64)
    present = np.isfinite(numbers)
    row, column, bit = slots.row[at], slots.column[at], slots.bit[at]
    raw.values[row, column] = np.where(present, np.clip(numbers, -VALUE_LIMIT, VALUE_LIMIT), 0.0)
    raw.present[row, column] = present
    raw.values[row[bit], column[bit] + 1] = present[bit]
    np.add.at(raw.reported, (slots.kind[at], column), ~slots.reported[at])
