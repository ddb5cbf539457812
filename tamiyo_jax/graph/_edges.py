"""Edges: which nodes each relation links, and with which attributes.

Relations that are complete by construction take their attributes from their ends, by the
terms of the schema. Edges of layers come from the blueprint; those of seeds are drawn in
`seed_edges`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Int32, Integer

from tamiyo_jax.config import GraphConfig
from tamiyo_jax.contracts import Blueprint
from tamiyo_jax.errors import GraphSchemaError
from tamiyo_jax.graph._layout import GraphLayout, count_fitting
from tamiyo_jax.graph._nodes import finite
from tamiyo_jax.graph._raw import RawGraph
from tamiyo_jax.graph._relations import EDGE_WIDTH, RELATIONS, Relation, find_relation

__all__ = [
    "Edges",
    "complete_attributes",
    "complete_rows",
    "find_packet_relations",
    "write_complete_relations",
    "write_edges",
    "write_static_relations",
]

CONNECTS = "layer__connects__layer"


def _depends_on_packet(relation: Relation) -> bool:
    """Whether edges of the relation can change while the blueprint stays the same."""
    ends = {relation.source, relation.target}
    return "seed" in ends or ("blueprint" in ends and relation.active is None)


_PLACE: Mapping[str, int] = {relation.key: place for place, relation in enumerate(RELATIONS)}
_STATIC = tuple(
    relation for relation in RELATIONS if relation.complete and not _depends_on_packet(relation)
)
_WITH_PACKET = tuple(
    relation for relation in RELATIONS if relation.complete and _depends_on_packet(relation)
)


class Edges(NamedTuple):
    """Edges of one relation.

    Attributes:
      senders: i64[n], rows of the node table.
      receivers: i64[n].
      attributes: f64[n, 3].
      expected: how many the input calls for.
    """

    senders: np.ndarray
    receivers: np.ndarray
    attributes: np.ndarray
    expected: int


def complete_rows(
    layout: GraphLayout, relation: Relation, mask: Bool[np.ndarray, " nodes"]
) -> tuple[Int32[np.ndarray, " edges"], Int32[np.ndarray, " edges"]]:
    """All pairs of a complete relation, source by source.

    Args:
      layout: where the blocks lie.
      relation: the relation.
      mask: bool[N], the real nodes.

    Returns:
      senders and receivers, i32[n] each, rows of the node table.
    """
    ends: list[np.ndarray] = []
    for end, kind in (("source", relation.source), ("target", relation.target)):
        block = layout.nodes[kind]
        rows = block.start + np.flatnonzero(mask[block.slice]).astype(np.int32)
        ends.append(rows[:1] if relation.active == end else rows)
    sources, targets = ends
    return np.repeat(sources, len(targets)), np.tile(targets, len(sources))


def complete_attributes(
    relation: Relation,
    attributes: Float32[np.ndarray, "nodes 2"],
    senders: Integer[np.ndarray, " edges"],
    receivers: Integer[np.ndarray, " edges"],
) -> Float32[np.ndarray, "edges 3"]:
    """Attributes of edges of a complete relation, from their ends.

    Args:
      relation: the relation; it has terms.
      attributes: f32[N, 2], of the node table.
      senders: i32[n] or i64[n], rows of the node table.
      receivers: like `senders`.

    Returns:
      f32[n, 3].
    """
    values = np.zeros((len(senders), EDGE_WIDTH), np.float32)
    for column, term in enumerate(relation.terms or ()):
        if term.end == "constant":
            values[:, column] = term.value
        else:
            ends = senders if term.end == "source" else receivers
            values[:, column] = attributes[ends, term.attribute]
    return values


def find_packet_relations(layout: GraphLayout) -> tuple[Relation, ...]:
    """Relations complete by construction that this layout lists, and that packets change."""
    return tuple(relation for relation in _WITH_PACKET if not layout.is_complete(relation))


def write_static_relations(
    raw: RawGraph,
    layout: GraphLayout,
    blueprint: Blueprint,
    pairs: Mapping[str, np.ndarray],
    config: GraphConfig,
) -> None:
    """Write the edges that depend on the blueprint alone into `raw`, whose nodes stand already.

    A relation that is complete in this layout has no edges in the table. An edge whose end
    the graph does not hold is left out and remains expected.

    Args:
      raw: written in place.
      layout: where the blocks lie.
      blueprint: the blueprint.
      pairs: i64[n, 2] of the relations whose pairs the blueprint lists.
      config: caps and what happens above them.

    Raises:
      GraphCapacityError: more edges than the block holds, and truncation is off.
      GraphSchemaError: the blueprint lists pairs of a relation that this layout holds complete.
    """
    for key in pairs:
        if layout.is_complete(find_relation(key)):
            raise GraphSchemaError(
                f"blueprint {blueprint.blueprint_id} lists pairs of {key}, which is complete "
                "in this layout; make the layout with layout_for(blueprint, config)",
                name=key,
            )
    static = [relation for relation in _STATIC if not layout.is_complete(relation)]
    write_complete_relations(raw, layout, static, pairs, config)
    write_edges(raw, layout, CONNECTS, _connections(raw, layout, blueprint), config)


def write_complete_relations(
    raw: RawGraph,
    layout: GraphLayout,
    relations: Sequence[Relation],
    pairs: Mapping[str, np.ndarray],
    config: GraphConfig,
) -> None:
    """Write relations that are complete by construction, but that the layout lists.

    Args:
      raw: written in place; its nodes stand already.
      layout: where the blocks lie.
      relations: which.
      pairs: i64[n, 2] of those whose pairs the blueprint lists.
      config: caps and what happens above them.

    Raises:
      GraphCapacityError: more edges than a block holds, and truncation is off.
    """
    for relation in relations:
        if relation.key in pairs:
            _, senders, receivers = _rows(raw, layout, relation, *pairs[relation.key].T)
            expected = len(pairs[relation.key])
        else:
            senders, receivers = complete_rows(layout, relation, raw.mask)
            expected = len(senders)
        attributes = complete_attributes(relation, raw.attributes, senders, receivers)
        edges = Edges(senders, receivers, attributes, expected)
        write_edges(raw, layout, relation.key, edges, config)


def write_edges(
    raw: RawGraph, layout: GraphLayout, key: str, edges: Edges, config: GraphConfig
) -> slice:
    """Write the edges of one relation that fit its block; returns where they stand.

    Raises:
      GraphCapacityError: more than fit, and truncation is off.
    """
    start, capacity = layout.edges[key]
    raw.expected_edges[_PLACE[key]] = edges.expected
    kept = count_fitting(key, len(edges.senders), capacity, config)
    where = slice(start, start + kept)
    raw.edges[where] = edges.attributes[:kept]
    raw.edge_mask[where] = True
    raw.senders[where] = edges.senders[:kept]
    raw.receivers[where] = edges.receivers[:kept]
    return where


def _rows(
    raw: RawGraph, layout: GraphLayout, relation: Relation, sources: np.ndarray, targets: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Which (source, target) pairs the graph holds, and their rows in the node table."""
    ends = (layout.nodes[relation.source], sources), (layout.nodes[relation.target], targets)
    held = np.logical_and(
        *(nodes < np.count_nonzero(raw.mask[block.slice]) for block, nodes in ends)
    )
    senders, receivers = (nodes[held] + block.start for block, nodes in ends)
    return held, senders, receivers


def _connections(raw: RawGraph, layout: GraphLayout, blueprint: Blueprint) -> Edges:
    """The layer edges, or the declared chain."""
    risk, layers = finite(blueprint.effective_risk), len(blueprint.layers)
    if blueprint.layer_edges is not None:
        links = blueprint.layer_edges
        sources = np.array([edge.source for edge in links], np.int64)
        targets = np.array([edge.target for edge in links], np.int64)
        strengths = [risk if edge.strength is None else finite(edge.strength) for edge in links]
    else:
        count = max(layers - 1, 0) if blueprint.chain else 0
        sources = np.arange(count)
        targets = sources + 1
        strengths = [risk] * count
    depths = ((ends + 1) / max(layers, 1) for ends in (sources, targets))
    attributes = np.column_stack([*depths, np.array(strengths, np.float64)])
    held, senders, receivers = _rows(raw, layout, find_relation(CONNECTS), sources, targets)
    return Edges(senders, receivers, attributes[held], len(attributes))
