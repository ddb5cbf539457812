"""Packets and blueprints become padded graphs.

`encode` makes a `RawGraph` of a packet in NumPy; `build`, which is jitted with the network,
normalises it into a `jraph.GraphsTuple`. The one table of node types, features and
relations is `tamiyo_jax.graph.schema`.
"""

from tamiyo_jax.graph.blueprint_arrays import (
    BlueprintArrays,
    blueprint_order,
    encode_blueprint,
)
from tamiyo_jax.graph.build import build, compact
from tamiyo_jax.graph.coverage import (
    Completeness,
    FeatureChanges,
    completeness,
    coverage,
    feature_changes,
    missing_features,
    relation_group,
    total_coverage,
    truncated,
)
from tamiyo_jax.graph.encode import encode, encode_packet
from tamiyo_jax.graph.layout import Block, GraphLayout, expanded, layout_for
from tamiyo_jax.graph.normalizer import (
    Normalizer,
    init_normalizer,
    normalize,
    update,
    update_and_normalize,
)
from tamiyo_jax.graph.raw import RawGraph
from tamiyo_jax.graph.registry import Registries, Registry
from tamiyo_jax.graph.schema import (
    NODE_TYPES,
    RELATIONS,
    SCHEMA_VERSION,
    STATISTICS,
    schema_digest,
)

__all__ = [
    "NODE_TYPES",
    "RELATIONS",
    "SCHEMA_VERSION",
    "STATISTICS",
    "Block",
    "BlueprintArrays",
    "Completeness",
    "FeatureChanges",
    "GraphLayout",
    "Normalizer",
    "RawGraph",
    "Registries",
    "Registry",
    "blueprint_order",
    "build",
    "compact",
    "completeness",
    "coverage",
    "encode",
    "encode_blueprint",
    "encode_packet",
    "expanded",
    "feature_changes",
    "init_normalizer",
    "layout_for",
    "missing_features",
    "normalize",
    "relation_group",
    "schema_digest",
    "total_coverage",
    "truncated",
    "update",
    "update_and_normalize",
]
