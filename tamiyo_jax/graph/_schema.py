"""The schema of nodes: the one table of node types, features and statistics.

Relations are in `_relations`. The encoder, the normaliser, the network, the coverage report and
the documentation are generated from both. A name that they do not list is a `GraphSchemaError`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from tamiyo_jax.errors import GraphSchemaError

__all__ = [
    "ATTRIBUTE_WIDTH",
    "FEATURE_WIDTH",
    "NODE_TYPES",
    "SCHEMA_VERSION",
    "STATISTICS",
    "Column",
    "NodeType",
    "Statistic",
    "find_node_type",
]

SCHEMA_VERSION = 2
ATTRIBUTE_WIDTH = 2


@dataclass(frozen=True, slots=True)
class Statistic:
    """A running statistic and its prior."""

    name: str
    mean: float
    std: float


STATISTICS: tuple[Statistic, ...] = tuple(
    Statistic(*row)
    for row in (
        ("loss", 0.8, 0.3),
        ("validation_loss", 0.8, 0.3),
        ("training_loss", 0.8, 0.3),
        ("gradient_norm", 1.0, 0.5),
        ("samples_per_s", 4500.0, 500.0),
        ("hook_latency_ms", 12.0, 6.0),
        ("seed_learning_rate", 0.01, 0.005),
        ("seed_risk", 0.4, 0.2),
        ("seed_age", 10.0, 4.0),
        ("epoch_progress", 0.5, 0.25),
        ("layer_latency_ms", 6.0, 2.0),
        ("layer_parameter_count", math.log1p(1024.0), 1.0),
        ("layer_weight_norm", 1.0, 0.4),
        ("layer_gradient_norm", 0.8, 0.4),
        ("activation_saturation", 0.5, 0.2),
        ("activation_gradient_flow", 0.8, 0.2),
        ("activation_cost", math.log1p(128.0), 1.0),
        ("activation_nonlinearity", 0.5, 0.2),
        ("parameter_min", 0.0, 0.5),
        ("parameter_max", 1.0, 0.5),
        ("parameter_span", 0.5, 0.4),
        ("parameter_default", 0.5, 0.4),
        ("blueprint_param_log", math.log1p(2048.0), 1.0),
        ("blueprint_candidate_score", 0.5, 0.25),
        ("global_epoch", 10.0, 5.0),
        ("global_step", math.log1p(100.0), 1.0),
    )
)


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a node type's features.

    Attributes:
      name: the feature; a presence column has the name of the feature whose presence it holds.
      statistic: name of the statistic that normalises it, None where it is used raw.
      presence: True for a presence bit.
      required: a packet or blueprint without it is refused under `strict_features`.
      optional: it may be absent. Coverage counts what is required or optional; an id's index
        counts as absent when its registry is full and the id shares the `unseen` index.
    """

    name: str
    statistic: str | None = None
    presence: bool = False
    required: bool = False
    optional: bool = False


def _z(name: str, statistic: str | None = None, **flags: bool) -> Column:
    return Column(name, statistic=statistic or name, **flags)


def _with_bit(column: Column) -> tuple[Column, Column]:
    return (column, Column(column.name, presence=True))


@dataclass(frozen=True, slots=True)
class NodeType:
    """A node type: its columns, in the order that checkpoints depend on.

    Attributes:
      name: the type.
      columns: one per feature column.
      attributes: names of the per-node scalars that edges of complete relations read.
    """

    name: str
    columns: tuple[Column, ...]
    attributes: tuple[str, ...] = ()

    @property
    def width(self) -> int:
        """Number of feature columns."""
        return len(self.columns)


NODE_TYPES: tuple[NodeType, ...] = (
    NodeType(
        "global",
        (
            *_with_bit(_z("loss", required=True)),
            *_with_bit(_z("validation_loss", optional=True)),
            *_with_bit(_z("training_loss", optional=True)),
            *_with_bit(_z("gradient_norm", required=True)),
            *_with_bit(_z("samples_per_s", optional=True)),
            *_with_bit(_z("hook_latency_ms", optional=True)),
            _z("current_epoch", "global_epoch"),
            _z("global_step"),
            Column("seed_count"),
            _z("epoch_progress", optional=True),
        ),
    ),
    NodeType(
        "seed",
        (
            *_with_bit(_z("learning_rate", "seed_learning_rate", optional=True)),
            *_with_bit(_z("risk_score", "seed_risk", optional=True)),
            *_with_bit(_z("gradient_norm", optional=True)),
            *_with_bit(_z("age_epochs", "seed_age", optional=True)),
            *_with_bit(Column("stage", required=True)),
            *_with_bit(Column("layer_depth", optional=True)),
            Column("seed_index", optional=True),
            Column("blend_allowed"),
        ),
        ("stage", "risk"),
    ),
    NodeType(
        "blueprint",
        (
            Column("blueprint_index", optional=True),
            *_with_bit(_z("validation_loss", optional=True)),
            *_with_bit(_z("training_loss", optional=True)),
            Column("risk", required=True),
            Column("stage"),
            *_with_bit(_z("parameter_count", "blueprint_param_log", optional=True)),
            Column("tier"),
            Column("quarantine_only"),
            Column("approval_required"),
            *_with_bit(_z("candidate_score", "blueprint_candidate_score", optional=True)),
        ),
        ("stage", "risk"),
    ),
    NodeType(
        "layer",
        (
            *_with_bit(Column("depth", required=True)),
            *_with_bit(_z("latency_ms", "layer_latency_ms", optional=True)),
            *_with_bit(_z("parameter_count", "layer_parameter_count", optional=True)),
            Column("dropout_rate", optional=True),
            Column("type", required=True),
            Column("activation", optional=True),
            _z("weight_norm", "layer_weight_norm", optional=True),
            _z("gradient_norm", "layer_gradient_norm", optional=True),
            Column("present"),
        ),
        ("depth", "risk"),
    ),
    NodeType(
        "activation",
        (
            Column("type", required=True),
            Column("present"),
            *_with_bit(_z("saturation_rate", "activation_saturation", optional=True)),
            _z("gradient_flow", "activation_gradient_flow", optional=True),
            _z("computational_cost", "activation_cost", optional=True),
            _z("nonlinearity_strength", "activation_nonlinearity", optional=True),
            Column("position"),
        ),
        ("ratio",),
    ),
    NodeType(
        "parameter",
        (
            *_with_bit(_z("min", "parameter_min", required=True)),
            *_with_bit(_z("max", "parameter_max", required=True)),
            *_with_bit(_z("span", "parameter_span")),
            *_with_bit(_z("default", "parameter_default")),
            Column("blueprint_risk"),
            Column("blueprint_stage"),
        ),
        ("ratio",),
    ),
)

FEATURE_WIDTH = max(kind.width for kind in NODE_TYPES)

_NODE_TYPES = {kind.name: kind for kind in NODE_TYPES}


def find_node_type(name: str) -> NodeType:
    """The node type of that name, or `GraphSchemaError`."""
    if name not in _NODE_TYPES:
        raise GraphSchemaError(
            f"node type {name!r} is not in the schema; it lists {', '.join(_NODE_TYPES)}",
            name=name,
        )
    return _NODE_TYPES[name]
