"""Packets and blueprints become padded graphs.

`encode` makes a `RawGraph` of a packet in NumPy; `build`, which is jitted with the network,
normalises it into a `jraph.GraphsTuple`. The one table of node types, features and
relations is `NODE_TYPES` and `RELATIONS`.
"""

from tamiyo_jax.graph._blueprint_arrays import (
    BlueprintArrays,
    StageKey,
    blueprint_order,
    encode_blueprint,
)
from tamiyo_jax.graph._build import build, compact
from tamiyo_jax.graph._coverage import (
    Completeness,
    FeatureChanges,
    completeness,
    count_truncated,
    coverage,
    feature_changes,
    missing_features,
    relation_group,
    total_coverage,
)
from tamiyo_jax.graph._edges import complete_attributes, complete_rows
from tamiyo_jax.graph._encode import encode, encode_packet
from tamiyo_jax.graph._jraph import GraphsTuple
from tamiyo_jax.graph._layout import Block, GraphLayout, expand_layout, layout_for
from tamiyo_jax.graph._normalizer import (
    Normalizer,
    init_normalizer,
    normalize,
    update,
    update_and_normalize,
)
from tamiyo_jax.graph._raw import RawGraph
from tamiyo_jax.graph._registry import Registries, Registry
from tamiyo_jax.graph._relations import EDGE_WIDTH, RELATIONS, Relation, schema_digest
from tamiyo_jax.graph._schema import (
    ATTRIBUTE_WIDTH,
    FEATURE_WIDTH,
    NODE_TYPES,
    SCHEMA_VERSION,
    STATISTICS,
)

__all__ = [
    "ATTRIBUTE_WIDTH",
    "EDGE_WIDTH",
    "FEATURE_WIDTH",
    "NODE_TYPES",
    "RELATIONS",
    "SCHEMA_VERSION",
    "STATISTICS",
    "Block",
    "BlueprintArrays",
    "Completeness",
    "FeatureChanges",
    "GraphLayout",
    "GraphsTuple",
    "Normalizer",
    "RawGraph",
    "Registries",
    "Registry",
    "Relation",
    "StageKey",
    "blueprint_order",
    "build",
    "compact",
    "complete_attributes",
    "complete_rows",
    "completeness",
    "count_truncated",
    "coverage",
    "encode",
    "encode_blueprint",
    "encode_packet",
    "expand_layout",
    "feature_changes",
    "init_normalizer",
    "layout_for",
    "missing_features",
    "normalize",
    "relation_group",
    "schema_digest",
    "total_coverage",
    "update",
    "update_and_normalize",
]
