"""Nodes: what each node type takes from a packet or a blueprint, and how rows are written.

`Columns` map feature names of the schema to one number per node; None is absent, and a value
that is not finite is reported but absent. Columns of the table and presence bits follow from the
schema.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from tamiyo_jax.contracts import (
    ActivationSpec,
    Blueprint,
    LayerSpec,
    SeedStage,
    SeedState,
    SystemStatePacket,
)
from tamiyo_jax.graph._layout import GraphLayout
from tamiyo_jax.graph._raw import RawGraph
from tamiyo_jax.graph._registry import Registry
from tamiyo_jax.graph._schema import FEATURE_WIDTH, NODE_TYPES, find_node_type

__all__ = [
    "GLOBAL_METRICS",
    "TYPE_INDEX",
    "VALUE_LIMIT",
    "Columns",
    "Rows",
    "activation_columns",
    "blend_allowed",
    "blueprint_columns",
    "column_of",
    "finite",
    "global_columns",
    "layer_columns",
    "make_rows",
    "parameter_columns",
    "position",
    "positions",
    "seed_columns",
    "write_indices",
    "write_rows",
]

Columns = Mapping[str, Sequence[float | None]]

# Squares of values up to here, summed over a whole table, are finite in float32.
VALUE_LIMIT = 1e16
SEED_STAGES = 11.0
BLUEPRINT_STAGES = 10.0
TIERS = 10.0

TYPE_INDEX: Mapping[str, int] = {kind.name: index for index, kind in enumerate(NODE_TYPES)}


class Rows(NamedTuple):
    """Rows of n nodes of one type of width w.

    Attributes:
      values: f64[n, w], finite; 0 where absent, 0 or 1 in the columns of presence bits.
      present: bool[n, w].
      reported: i32[16], see `RawGraph`.
    """

    values: np.ndarray
    present: np.ndarray
    reported: np.ndarray


def finite(value: float | None) -> float:
    """The value clipped to what the graph holds; 0 where it is absent or not finite."""
    if value is None or not math.isfinite(value):
        return 0.0
    return float(min(max(value, -VALUE_LIMIT), VALUE_LIMIT))


def position(index: int, count: int) -> float:
    """``(index + 1) / count``: the depth of a layer, the ratio of an activation or parameter."""
    return (index + 1) / count


def positions(count: int) -> np.ndarray:
    """f64[count], the `position` of each."""
    return np.arange(1, count + 1) / max(count, 1)


def _log1p(value: float | None) -> float | None:
    """log(1 + value) of a count; a negative one counts as 0."""
    return None if value is None else math.log1p(max(value, 0.0))


def _clip(value: float | None, low: float, high: float) -> float | None:
    return None if value is None else min(max(value, low), high)


def _over(value: float, whole: float | None) -> float | None:
    """The share value / whole; absent without a whole, reported as not finite if it is 0."""
    if whole is None:
        return None
    return value / whole if whole else math.nan


def blend_allowed(seed: SeedState, blueprint: Blueprint) -> bool:
    """Whether the seed may blend: by its metric, by its stage, or by the blueprint."""
    return (
        bool(blueprint.allowed_blending_methods)
        or seed.stage >= SeedStage.BLENDING
        or seed.metrics.get("blend_allowed", 0.0) > 0
    )


_GLOBAL_METRICS = (
    "loss",
    "validation_loss",
    "training_loss",
    "gradient_norm",
    "samples_per_s",
    "hook_latency_ms",
)
_EPOCHS_TOTAL = "epochs_total"

GLOBAL_METRICS = frozenset((*_GLOBAL_METRICS, _EPOCHS_TOTAL))
"""The keys of `training_metrics` that `global_columns` reads."""


def global_columns(packet: SystemStatePacket) -> Columns:
    """Features of the global node."""
    reported = packet.training_metrics
    return {
        **{name: [reported.get(name)] for name in _GLOBAL_METRICS},
        "current_epoch": [packet.current_epoch],
        "global_step": [_log1p(packet.global_step)],
        "seed_count": [math.tanh(len(packet.seeds))],
        "epoch_progress": [_over(packet.current_epoch, reported.get(_EPOCHS_TOTAL))],
    }


def seed_columns(
    seeds: Sequence[SeedState], layers: int, index: Sequence[float], blending: Sequence[bool]
) -> Columns:
    """Features of seeds in a network of so many layers.

    Args:
      seeds: n seeds.
      layers: how many layers the network has.
      index: registry index / vocabulary size of each.
      blending: `blend_allowed` of each.
    """
    depth = max(layers, 1)
    return {
        "learning_rate": [seed.learning_rate for seed in seeds],
        "risk_score": [seed.risk_score for seed in seeds],
        "gradient_norm": [seed.gradient_norm for seed in seeds],
        "age_epochs": [seed.age_epochs for seed in seeds],
        # UNKNOWN is zero, and the only stage that counts as not reported.
        "stage": [seed.stage / SEED_STAGES if seed.stage else None for seed in seeds],
        "layer_depth": [
            None if seed.layer_depth is None else seed.layer_depth / depth for seed in seeds
        ],
        "seed_index": index,
        "blend_allowed": blending,
    }


def blueprint_columns(blueprints: Sequence[Blueprint]) -> Columns:
    """Features of blueprints; the losses are the packet's, the index is the registry's."""
    nothing: list[float | None] = [None] * len(blueprints)
    return {
        "blueprint_index": [0.0] * len(blueprints),
        "validation_loss": nothing,
        "training_loss": nothing,
        "risk": [blueprint.effective_risk for blueprint in blueprints],
        "stage": [blueprint.stage / BLUEPRINT_STAGES for blueprint in blueprints],
        "parameter_count": [_log1p(_parameter_count(blueprint)) for blueprint in blueprints],
        "tier": [blueprint.tier / TIERS for blueprint in blueprints],
        "quarantine_only": [blueprint.quarantine_only for blueprint in blueprints],
        "approval_required": [blueprint.approval_required for blueprint in blueprints],
        "candidate_score": [blueprint.candidate_score for blueprint in blueprints],
    }


def _parameter_count(blueprint: Blueprint) -> int | None:
    """Sum of the parameter counts of the layers that have one; None where none has."""
    counts = [layer.parameter_count for layer in blueprint.layers]
    known = [count for count in counts if count is not None]
    return sum(known) if known else None


def layer_columns(layers: Sequence[LayerSpec]) -> Columns:
    """Features of layers; the types' indices are the registries'."""
    count = len(layers)
    return {
        "depth": [position(layer.depth, count) for layer in layers],
        "latency_ms": [layer.latency_ms for layer in layers],
        "parameter_count": [_log1p(layer.parameter_count) for layer in layers],
        "dropout_rate": [_clip(layer.dropout_rate, 0.0, 1.0) for layer in layers],
        "type": [0.0] * count,
        "activation": [0.0] * count,
        "weight_norm": [layer.weight_norm for layer in layers],
        "gradient_norm": [layer.gradient_norm for layer in layers],
        "present": [1.0] * count,
    }


def activation_columns(activations: Sequence[ActivationSpec]) -> Columns:
    """Features of activations; the types' indices are the registry's."""
    count = len(activations)
    return {
        "type": [0.0] * count,
        "present": [1.0] * count,
        "saturation_rate": [activation.saturation_rate for activation in activations],
        "gradient_flow": [activation.gradient_flow for activation in activations],
        "computational_cost": [_log1p(activation.computational_cost) for activation in activations],
        "nonlinearity_strength": [activation.nonlinearity_strength for activation in activations],
        "position": [i / max(count - 1, 1) for i in range(count)],
    }


def parameter_columns(blueprint: Blueprint) -> Columns:
    """Features of parameters; span and default follow from the bounds unless given."""
    parameters = blueprint.parameters
    return {
        "min": [parameter.min for parameter in parameters],
        "max": [parameter.max for parameter in parameters],
        "span": [
            parameter.max - parameter.min if parameter.span is None else parameter.span
            for parameter in parameters
        ],
        "default": [
            parameter.min + (parameter.max - parameter.min) / 2
            if parameter.default is None
            else parameter.default
            for parameter in parameters
        ],
        "blueprint_risk": [finite(blueprint.effective_risk)] * len(parameters),
        "blueprint_stage": [blueprint.stage / BLUEPRINT_STAGES] * len(parameters),
    }


class _Plan(NamedTuple):
    """How features become columns.

    Attributes:
      names: the features of the type.
      column: i64[F], the column of each feature's value.
      feature: i64[w], the feature that each column holds.
      bit: bool[w, 1], whether the column is a presence bit.
    """

    names: tuple[str, ...]
    column: np.ndarray
    feature: np.ndarray
    bit: np.ndarray


@functools.cache
def _plan(name: str) -> _Plan:
    columns = find_node_type(name).columns
    names = tuple(dict.fromkeys(column.name for column in columns))
    return _Plan(
        names,
        np.array([column_of(name, feature) for feature in names]),
        np.array([names.index(column.name) for column in columns]),
        np.array([[column.presence] for column in columns]),
    )


@functools.cache
def column_of(name: str, feature: str) -> int:
    """Column of a feature's value; its presence bit, if it has one, is the next."""
    return [column.name for column in find_node_type(name).columns].index(feature)


def make_rows(name: str, columns: Columns, count: int) -> Rows:
    """Rows of the first `count` nodes of the type `name`, from the features of all."""
    plan = _plan(name)
    given = [columns[feature][:count] for feature in plan.names]
    values = np.array(given, np.float64).take(plan.feature, axis=0)  # None becomes NaN
    present = np.isfinite(values)
    np.copyto(values, 0.0, where=~present)
    np.maximum(np.minimum(values, VALUE_LIMIT, out=values), -VALUE_LIMIT, out=values)
    np.copyto(values, present, where=plan.bit)
    reported = np.zeros(FEATURE_WIDTH, np.int32)
    reported[plan.column] = [count - numbers.count(None) for numbers in given]
    return Rows(values.T, (present | plan.bit).T, reported)


def write_rows(raw: RawGraph, layout: GraphLayout, name: str, rows: Rows, expected: int) -> slice:
    """Write the nodes of one type into `raw`.

    Args:
      raw: written in place.
      layout: where the block of the type lies.
      name: the node type.
      rows: of as many nodes as fit the block.
      expected: how many nodes there are.

    Returns:
      Where the rows stand in the node table.
    """
    index, start = TYPE_INDEX[name], layout.nodes[name].start
    count, width = rows.values.shape
    where = slice(start, start + count)
    raw.expected_nodes[index] = expected
    raw.values[where, :width] = rows.values
    raw.present[where, :width] = rows.present
    raw.reported[index] = rows.reported
    raw.mask[where] = True
    return where


def write_indices(
    raw: RawGraph,
    layout: GraphLayout,
    name: str,
    feature: str,
    keys: Sequence[str],
    registry: Registry,
) -> None:
    """Write index / vocabulary size of each node's key.

    The empty key, and an id that shares the `unseen` index, count as not reported.
    """
    block, column = layout.nodes[name], column_of(name, feature)
    kept = keys[: block.capacity]
    raw.values[block.start : block.start + len(kept), column] = registry.fractions(kept)
    raw.reported[TYPE_INDEX[name], column] = registry.count(kept)
