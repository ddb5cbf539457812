"""Nodes: what each node type takes from a packet or a blueprint, and how rows are written.

A row maps feature names of the schema to numbers; None is absent, and a value that is not
finite is told but absent. The columns and presence bits follow from the schema.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence

import numpy as np

from tamiyo_jax.config import GraphConfig
from tamiyo_jax.contracts.blueprint import ActivationSpec, Blueprint, LayerSpec, ParameterSpec
from tamiyo_jax.contracts.packet import SeedStage, SeedState, SystemStatePacket
from tamiyo_jax.graph.layout import GraphLayout, fitting
from tamiyo_jax.graph.raw import RawGraph
from tamiyo_jax.graph.registry import Registry
from tamiyo_jax.graph.schema import NODE_TYPES, NodeType, node_type

__all__ = [
    "Row",
    "activation_row",
    "blend_allowed",
    "blueprint_row",
    "finite",
    "global_row",
    "layer_row",
    "parameter_row",
    "position",
    "seed_row",
    "write_feature",
    "write_index",
    "write_nodes",
]

Row = Mapping[str, float | None]

# Squares of values up to here, summed over a whole table, are finite in float32.
VALUE_LIMIT = 1e16
SEED_STAGES = 11.0
BLUEPRINT_STAGES = 10.0
TIERS = 10.0


def finite(value: float | None) -> float:
    """The value clipped to what the graph holds; 0 where it is absent or not finite."""
    if value is None or not math.isfinite(value):
        return 0.0
    return float(min(max(value, -VALUE_LIMIT), VALUE_LIMIT))


def position(index: int, count: int) -> float:
    """``(index + 1) / count``: the depth of a layer, the ratio of an activation or parameter."""
    return (index + 1) / count


def _log1p(value: float | None) -> float | None:
    """log(1 + value) of a count; a negative one counts as 0."""
    return None if value is None else math.log1p(max(value, 0.0))


def _clipped(value: float | None, low: float, high: float) -> float | None:
    return None if value is None else min(max(value, low), high)


def _over(value: float, whole: float | None) -> float | None:
    """The share value / whole; absent without a whole, told but not finite with a whole of 0."""
    if whole is None:
        return None
    return value / whole if whole else math.nan


def blend_allowed(seed: SeedState, blueprint: Blueprint) -> bool:
    """Whether the seed may blend: by its metric, by its stage, or by the blueprint."""
    return (
        seed.metrics.get("blend_allowed", 0.0) > 0
        or seed.stage >= SeedStage.BLENDING
        or bool(blueprint.allowed_blending_methods)
    )


def global_row(packet: SystemStatePacket) -> Row:
    """Features of the global node."""
    told = packet.training_metrics
    return {
        "loss": told.get("loss"),
        "validation_loss": told.get("validation_loss"),
        "training_loss": told.get("training_loss"),
        "gradient_norm": told.get("gradient_norm"),
        "samples_per_s": told.get("samples_per_s"),
        "hook_latency_ms": told.get("hook_latency_ms"),
        "current_epoch": packet.current_epoch,
        "global_step": _log1p(packet.global_step),
        "seed_count": math.tanh(len(packet.seeds)),
        "epoch_progress": _over(packet.current_epoch, told.get("epochs_total")),
    }


def seed_row(seed: SeedState, blueprint: Blueprint) -> Row:
    """Features of a seed; its registry index is written by `write_index`."""
    unknown = seed.stage == SeedStage.UNKNOWN
    depth = seed.layer_depth
    return {
        "learning_rate": seed.learning_rate,
        "risk_score": seed.risk_score,
        "gradient_norm": seed.gradient_norm,
        "age_epochs": seed.age_epochs,
        "stage": None if unknown else seed.stage / SEED_STAGES,
        "layer_depth": None if depth is None else depth / max(len(blueprint.layers), 1),
        "seed_index": 0.0,
        "blend_allowed": float(blend_allowed(seed, blueprint)),
    }


def blueprint_row(blueprint: Blueprint, packet: SystemStatePacket) -> Row:
    """Features of a blueprint; its registry index is written by `write_index`."""
    counts = [layer.parameter_count for layer in blueprint.layers]
    known = [count for count in counts if count is not None]
    return {
        "blueprint_index": 0.0,
        "validation_loss": packet.validation_loss,
        "training_loss": packet.training_loss,
        "risk": blueprint.effective_risk,
        "stage": blueprint.stage / BLUEPRINT_STAGES,
        "parameter_count": _log1p(sum(known)) if known else None,
        "tier": blueprint.tier / TIERS,
        "quarantine_only": float(blueprint.quarantine_only),
        "approval_required": float(blueprint.approval_required),
        "candidate_score": blueprint.candidate_score,
    }


def layer_row(layer: LayerSpec, count: int) -> Row:
    """Features of one of `count` layers; the types' indices are written by `write_index`."""
    return {
        "depth": position(layer.depth, count),
        "latency_ms": layer.latency_ms,
        "parameter_count": _log1p(layer.parameter_count),
        "dropout_rate": _clipped(layer.dropout_rate, 0.0, 1.0),
        "type": 0.0,
        "activation": 0.0,
        "weight_norm": layer.weight_norm,
        "gradient_norm": layer.gradient_norm,
        "present": 1.0,
    }


def activation_row(activation: ActivationSpec, index: int, count: int) -> Row:
    """Features of one of `count` activations; its type's index is written by `write_index`."""
    return {
        "type": 0.0,
        "present": 1.0,
        "saturation_rate": activation.saturation_rate,
        "gradient_flow": activation.gradient_flow,
        "computational_cost": _log1p(activation.computational_cost),
        "nonlinearity_strength": activation.nonlinearity_strength,
        "position": index / (count - 1) if count > 1 else 0.0,
    }


def parameter_row(parameter: ParameterSpec, blueprint: Blueprint) -> Row:
    """Features of a parameter; span and default follow from the bounds unless given."""
    low, high = parameter.min, parameter.max
    return {
        "min": low,
        "max": high,
        "span": high - low if parameter.span is None else parameter.span,
        "default": low + (high - low) / 2 if parameter.default is None else parameter.default,
        "blueprint_risk": finite(blueprint.effective_risk),
        "blueprint_stage": blueprint.stage / BLUEPRINT_STAGES,
    }


@functools.cache
def _columns(kind: NodeType) -> tuple[tuple[str, ...], np.ndarray, np.ndarray]:
    """Feature names of a type; per column, the feature it holds and whether it is a bit."""
    names = tuple(dict.fromkeys(column.name for column in kind.columns))
    feature = np.array([names.index(column.name) for column in kind.columns])
    return names, feature, np.array([column.presence for column in kind.columns])


def write_nodes(
    raw: RawGraph,
    layout: GraphLayout,
    name: str,
    rows: Sequence[Row],
    attributes: Sequence[tuple[float, ...]],
    config: GraphConfig,
) -> None:
    """Write the nodes of one type into `raw`, the first `capacity` of them.

    Args:
      raw: written in place.
      layout: where the block of the type lies.
      name: the node type.
      rows: one per node.
      attributes: one per node, in the order of the type's attributes.
      config: caps and what happens above them.

    Raises:
      GraphCapacityError: more nodes than the block holds, and truncation is off.
    """
    kind, block = node_type(name), layout.nodes[name]
    raw.expected_nodes[NODE_TYPES.index(kind)] = len(rows)
    kept = fitting(name, len(rows), block.capacity, config)
    if not kept:
        return
    names, feature, bit = _columns(kind)
    given = np.array([[row[one] for one in names] for row in rows[:kept]], dtype=object)
    told = given != np.array(None)
    numbers = given.astype(np.float64)
    present = np.isfinite(numbers)
    numbers = np.clip(np.where(present, numbers, 0.0), -VALUE_LIMIT, VALUE_LIMIT)

    where = (slice(block.start, block.start + kept), slice(0, kind.width))
    raw.values[where] = np.where(bit, present[:, feature], numbers[:, feature])
    raw.present[where] = bit | present[:, feature]
    raw.told[where] = told[:, feature]
    raw.mask[where[0]] = True
    if kind.attributes:
        raw.attributes[where[0], : len(kind.attributes)] = np.array(attributes[:kept])


def write_feature(raw: RawGraph, name: str, feature: str, row: int, value: float) -> None:
    """Overwrite one feature of one node with a live measurement, and its presence bit."""
    present = math.isfinite(value)
    for j, column in enumerate(node_type(name).columns):
        if column.name == feature:
            raw.values[row, j] = float(present) if column.presence else finite(value)
            raw.present[row, j] = present or column.presence
            raw.told[row, j] = True


def write_index(
    raw: RawGraph,
    layout: GraphLayout,
    name: str,
    feature: str,
    keys: Sequence[str],
    registry: Registry,
) -> None:
    """Write index / vocabulary size of each node's key.

    The empty key, and an id that shares the `unseen` index, count as not told.
    """
    block = layout.nodes[name]
    keys = keys[: block.capacity]
    column = [one.name for one in node_type(name).columns].index(feature)
    rows = slice(block.start, block.start + len(keys))
    raw.values[rows, column] = registry.fractions(keys)
    raw.told[rows, column] = [key in registry for key in keys]
