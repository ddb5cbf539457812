"""Coverage: how much of what the graph expects the input has told.

A feature counts as told when its key or field is there, also if its value is zero or not
finite; an edge counts when it stands in the graph. What truncation cut counts as absent.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np

from tamiyo_jax.graph.layout import GraphLayout
from tamiyo_jax.graph.raw import RawGraph
from tamiyo_jax.graph.schema import NODE_TYPES, RELATIONS, NodeType, Relation

__all__ = [
    "FeatureChanges",
    "coverage",
    "feature_changes",
    "missing_features",
    "relation_group",
    "total_coverage",
    "truncated",
]


class FeatureChanges(NamedTuple):
    """What went missing since the step before, and what came back; each sorted."""

    missing: tuple[str, ...]
    restored: tuple[str, ...]


def relation_group(one: Relation) -> str:
    """Name of a relation in reports: ``edges.<source>_<name>``."""
    return f"edges.{one.source}_{one.name}"


@functools.cache
def _counted(kind: NodeType) -> tuple[tuple[str, ...], np.ndarray]:
    """Features of a type that can be absent: their names and their columns."""
    columns = [
        (column.name, j)
        for j, column in enumerate(kind.columns)
        if (column.required or column.optional) and not column.presence
    ]
    return tuple(name for name, _ in columns), np.array([j for _, j in columns])


def _told(layout: GraphLayout, raw: RawGraph, kind: NodeType) -> np.ndarray:
    """bool[n, k]: what the real nodes of a type tell of its k features."""
    block = layout.nodes[kind.name]
    return raw.told[block.slice][raw.mask[block.slice]][:, _counted(kind)[1]]


def _counts(layout: GraphLayout, raw: RawGraph) -> Iterator[tuple[str, int, int]]:
    """(group, told, expected) of every group of which the input holds anything."""
    for kind, nodes in zip(NODE_TYPES, raw.expected_nodes.tolist(), strict=True):
        if nodes:
            told = int(np.count_nonzero(_told(layout, raw, kind)))
            yield f"node.{kind.name}", told, nodes * len(_counted(kind)[0])
    for one, links in zip(RELATIONS, raw.expected_edges.tolist(), strict=True):
        if links:
            real = int(np.count_nonzero(raw.edge_mask[layout.edges[one.key].slice]))
            yield relation_group(one), real, links


def coverage(layout: GraphLayout, raw: RawGraph) -> Mapping[str, float]:
    """Told / expected by group, in [0, 1]: ``node.<type>`` and ``edges.<source>_<name>``.

    Types and relations of which the input holds nothing have no entry, nor have relations
    that are complete, since they cannot lack an edge.
    """
    return {group: told / expected for group, told, expected in _counts(layout, raw)}


def total_coverage(layout: GraphLayout, raw: RawGraph) -> float:
    """Told / expected over all features and edges, in [0, 1]; 1 where nothing is expected."""
    counts = [(told, expected) for _, told, expected in _counts(layout, raw)]
    expected = sum(one for _, one in counts)
    return sum(told for told, _ in counts) / expected if expected else 1.0


def missing_features(layout: GraphLayout, raw: RawGraph) -> frozenset[str]:
    """Names of what at least one real node, or an expected edge, lacks.

    ``seed.learning_rate`` for a feature, ``edges.seed_monitors`` for a relation that names
    a node the graph does not hold.
    """
    missing: set[str] = set()
    for kind in NODE_TYPES:
        names, _ = _counted(kind)
        absent = ~_told(layout, raw, kind).all(axis=0)
        missing.update(f"{kind.name}.{names[j]}" for j in np.flatnonzero(absent))
    missing.update(
        group
        for group, told, expected in _counts(layout, raw)
        if group.startswith("edges.") and told < expected
    )
    return frozenset(missing)


def feature_changes(previous: frozenset[str], now: frozenset[str]) -> FeatureChanges:
    """What to report between two steps, so that operators are told once and not flooded.

    >>> feature_changes(frozenset({"seed.risk_score"}), frozenset({"layer.latency_ms"}))
    FeatureChanges(missing=('layer.latency_ms',), restored=('seed.risk_score',))
    """
    return FeatureChanges(tuple(sorted(now - previous)), tuple(sorted(previous - now)))


def truncated(layout: GraphLayout, raw: RawGraph) -> Mapping[str, int]:
    """How many nodes of each type, and edges of each relation, were more than the capacity."""
    nodes = {
        kind.name: expected - layout.nodes[kind.name].capacity
        for kind, expected in zip(NODE_TYPES, raw.expected_nodes.tolist(), strict=True)
    }
    edges = {
        one.key: expected - layout.edges[one.key].capacity
        for one, expected in zip(RELATIONS, raw.expected_edges.tolist(), strict=True)
        if expected
    }
    return {name: cut for name, cut in {**nodes, **edges}.items() if cut > 0}
