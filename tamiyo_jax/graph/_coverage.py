"""Coverage: how much of what the graph expects is in the input.

A feature counts as reported when its key or field is there, also if its value is zero or not
finite; an edge counts when it stands in the graph. What truncation cut counts as absent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import numpy as np

from tamiyo_jax.graph._layout import GraphLayout
from tamiyo_jax.graph._raw import RawGraph
from tamiyo_jax.graph._relations import RELATIONS, Relation
from tamiyo_jax.graph._schema import FEATURE_WIDTH, NODE_TYPES, Column

__all__ = [
    "Completeness",
    "FeatureChanges",
    "completeness",
    "count_truncated",
    "coverage",
    "feature_changes",
    "find_missing_required",
    "missing_features",
    "relation_group",
    "total_coverage",
]


class FeatureChanges(NamedTuple):
    """What went missing since the step before, and what came back; each sorted."""

    missing: tuple[str, ...]
    restored: tuple[str, ...]


class Completeness(NamedTuple):
    """How complete a graph is.

    Attributes:
      coverage: reported / expected by group, in [0, 1]: ``node.<type>`` and
        ``edges.<source>_<name>``. Types and relations of which the input holds nothing have
        no entry, nor have relations that are complete, since they cannot lack an edge.
      total: reported / expected over all features and edges, in [0, 1]; 1 where nothing is
        expected.
      missing: what at least one real node, or an expected edge, lacks: ``seed.learning_rate``
        for a feature, ``edges.seed_monitors`` for a relation that names a node the graph does
        not hold.
      truncated: how many nodes of a type, and edges of a relation, were more than the capacity.
    """

    coverage: Mapping[str, float]
    total: float
    missing: frozenset[str]
    truncated: Mapping[str, int]


def relation_group(relation: Relation) -> str:
    """Name of a relation in reports: ``edges.<source>_<name>``."""
    return f"edges.{relation.source}_{relation.name}"


_PLACE = {relation.key: place for place, relation in enumerate(RELATIONS)}
_GROUP = {relation.key: relation_group(relation) for relation in RELATIONS}


def _table(which: Callable[[Column], bool]) -> np.ndarray:
    """bool[T, 16]: the values of features that can be absent, by node type and column."""
    table = np.zeros((len(NODE_TYPES), FEATURE_WIDTH), np.bool_)
    for kind, columns in zip(table, NODE_TYPES, strict=True):
        for j, column in enumerate(columns.columns):
            kind[j] = which(column) and not column.presence
    return table


_COUNTED = _table(lambda column: column.required or column.optional)
_REQUIRED = _table(lambda column: column.required)
_PER_NODE = _COUNTED.sum(axis=1).tolist()


def _absent(layout: GraphLayout, raw: RawGraph, features: np.ndarray) -> list[str]:
    """Those of `features`, bool[T, 16], that at least one real node lacks."""
    caps = [capacity for _, capacity in layout.node_capacities]
    real = np.minimum(raw.expected_nodes, np.array(caps, np.int32))
    kinds, columns = (features & (raw.reported < real[:, np.newaxis])).nonzero()
    return [
        f"{NODE_TYPES[i].name}.{NODE_TYPES[i].columns[j].name}"
        for i, j in zip(kinds.tolist(), columns.tolist(), strict=True)
    ]


def _feature_counts(raw: RawGraph) -> Iterator[tuple[str, int, int]]:
    """(group, reported, expected) of every node type of which the input holds anything."""
    reported = (raw.reported * _COUNTED).sum(axis=1)
    rows = zip(NODE_TYPES, reported.tolist(), raw.expected_nodes.tolist(), _PER_NODE, strict=True)
    for kind, count, nodes, features in rows:
        if nodes:
            yield f"node.{kind.name}", count, nodes * features


def _edge_counts(layout: GraphLayout, raw: RawGraph) -> Iterator[tuple[str, int, int]]:
    """(group, real, expected) of every relation of which the input calls for anything."""
    expected = raw.expected_edges.tolist()
    for key, block in layout.edges.items():
        links = expected[_PLACE[key]]
        if links:
            yield _GROUP[key], int(np.count_nonzero(raw.edge_mask[block.slice])), links


def completeness(layout: GraphLayout, raw: RawGraph) -> Completeness:
    """All that is to be said of what a graph lacks."""
    features = tuple(_feature_counts(raw))
    edges = tuple(_edge_counts(layout, raw))
    counts = (*features, *edges)
    reported, expected = sum([count for _, count, _ in counts]), sum([of for _, _, of in counts])
    lacking = (group for group, real, links in edges if real < links)
    return Completeness(
        coverage={group: count / of for group, count, of in counts},
        total=reported / expected if expected else 1.0,
        missing=frozenset((*_absent(layout, raw, _COUNTED), *lacking)),
        truncated=_count_truncated(layout, raw),
    )


def coverage(layout: GraphLayout, raw: RawGraph) -> Mapping[str, float]:
    """See `Completeness.coverage`."""
    return completeness(layout, raw).coverage


def total_coverage(layout: GraphLayout, raw: RawGraph) -> float:
    """See `Completeness.total`."""
    return completeness(layout, raw).total


def missing_features(layout: GraphLayout, raw: RawGraph) -> frozenset[str]:
    """See `Completeness.missing`."""
    return completeness(layout, raw).missing


def count_truncated(layout: GraphLayout, raw: RawGraph) -> Mapping[str, int]:
    """See `Completeness.truncated`."""
    return completeness(layout, raw).truncated


def find_missing_required(layout: GraphLayout, raw: RawGraph) -> tuple[str, ...]:
    """Names of the required features that at least one real node lacks, sorted."""
    return tuple(sorted(_absent(layout, raw, _REQUIRED)))


def feature_changes(previous: frozenset[str], now: frozenset[str]) -> FeatureChanges:
    """Which changes of completeness to report, so that each is reported once.

    >>> feature_changes(frozenset({"seed.risk_score"}), frozenset({"layer.latency_ms"}))
    FeatureChanges(missing=('layer.latency_ms',), restored=('seed.risk_score',))
    """
    return FeatureChanges(tuple(sorted(now - previous)), tuple(sorted(previous - now)))


def _count_truncated(layout: GraphLayout, raw: RawGraph) -> Mapping[str, int]:
    nodes = zip(layout.node_capacities, raw.expected_nodes.tolist(), strict=True)
    cut = {name: count - capacity for (name, capacity), count in nodes if count > capacity}
    edges = raw.expected_edges.tolist()
    for key, capacity in layout.edge_capacities:
        if edges[_PLACE[key]] > capacity:
            cut[key] = edges[_PLACE[key]] - capacity
    return cut
