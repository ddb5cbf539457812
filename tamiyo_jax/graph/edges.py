"""Edges: which nodes each relation links, and with which attributes.

Relations that are complete by construction take their attributes from their ends, by the
terms of the schema. Those that come from data are read off the packet and the blueprint.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import numpy as np

from tamiyo_jax.config import GraphConfig
from tamiyo_jax.contracts.blueprint import Blueprint
from tamiyo_jax.contracts.packet import SeedState
from tamiyo_jax.errors import GraphSchemaError
from tamiyo_jax.graph.layout import GraphLayout, fitting
from tamiyo_jax.graph.nodes import SEED_STAGES, blend_allowed, finite, position
from tamiyo_jax.graph.raw import RawGraph
from tamiyo_jax.graph.schema import EDGE_WIDTH, RELATIONS, Relation

__all__ = ["complete_attributes", "complete_rows", "depends_on_packet", "write_relation"]

PEER_ATTRIBUTE = 0.5

Edge = tuple[int, int, float, float, float]


class _Listed(NamedTuple):
    """Edges (source, target, three attributes) and how many of them the input calls for."""

    edges: list[Edge]
    expected: int


def depends_on_packet(one: Relation) -> bool:
    """Whether edges of the relation can change while the blueprint stays the same."""
    ends = {one.source, one.target}
    return "seed" in ends or ("blueprint" in ends and one.active is None)


def complete_rows(
    layout: GraphLayout, one: Relation, mask: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """All pairs of a complete relation, source by source.

    Args:
      layout: where the blocks lie.
      one: the relation.
      mask: bool[N], the real nodes.

    Returns:
      senders and receivers, i32[n] each, rows of the node table.
    """
    ends: list[np.ndarray] = []
    for end, kind in (("source", one.source), ("target", one.target)):
        block = layout.nodes[kind]
        rows = block.start + np.flatnonzero(mask[block.slice]).astype(np.int32)
        ends.append(rows[:1] if one.active == end else rows)
    sources, targets = ends
    return np.repeat(sources, len(targets)), np.tile(targets, len(sources))


def complete_attributes(
    one: Relation, attributes: np.ndarray, senders: np.ndarray, receivers: np.ndarray
) -> np.ndarray:
    """Attributes of edges of a complete relation, from their ends.

    Args:
      one: the relation; it has terms.
      attributes: f32[N, 2], of the node table.
      senders: i32[n], rows of the node table.
      receivers: i32[n].

    Returns:
      f32[n, 3].
    """
    values = np.zeros((len(senders), EDGE_WIDTH), np.float32)
    for column, term in enumerate(one.terms or ()):
        if term.end == "constant":
            values[:, column] = term.value
        else:
            ends = senders if term.end == "source" else receivers
            values[:, column] = attributes[ends, term.attribute]
    return values


def write_relation(
    raw: RawGraph,
    layout: GraphLayout,
    one: Relation,
    seeds: tuple[SeedState, ...],
    blueprint: Blueprint,
    config: GraphConfig,
) -> None:
    """Write the edges of one relation into `raw`, whose nodes stand already.

    A relation that is complete in this layout has no edges in the table. An edge whose end
    the graph does not hold is left out and remains expected.

    Raises:
      GraphCapacityError: more edges than the block holds, and truncation is off.
      GraphSchemaError: the blueprint lists pairs of a relation that this layout holds complete.
    """
    if layout.is_complete(one):
        if one.key in blueprint.relation_pairs:
            raise GraphSchemaError(
                f"blueprint {blueprint.blueprint_id} lists pairs of {one.key}, which is complete "
                "in this layout; make the layout with layout_for(blueprint, config)",
                name=one.key,
            )
        return
    if not one.complete:
        listed = _SOURCES[one.key](seeds, blueprint)
        table = np.array(listed.edges, np.float64).reshape(-1, 2 + EDGE_WIDTH)
        held, senders, receivers = _rows(raw, layout, one, table[:, :2].astype(np.int64))
        attributes, expected = table[held, 2:].astype(np.float32), listed.expected
    else:
        if one.key in blueprint.relation_pairs:
            pairs = np.array(blueprint.relation_pairs[one.key], np.int64).reshape(-1, 2)
            _, senders, receivers = _rows(raw, layout, one, pairs)
            expected = len(pairs)
        else:
            senders, receivers = complete_rows(layout, one, raw.mask)
            expected = len(senders)
        attributes = complete_attributes(one, raw.attributes, senders, receivers)

    block = layout.edges[one.key]
    raw.expected_edges[RELATIONS.index(one)] = expected
    kept = fitting(one.key, len(senders), block.capacity, config)
    where = slice(block.start, block.start + kept)
    raw.edges[where] = attributes[:kept]
    raw.edge_mask[where] = True
    raw.senders[where] = senders[:kept]
    raw.receivers[where] = receivers[:kept]


def _rows(
    raw: RawGraph, layout: GraphLayout, one: Relation, pairs: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Which (source, target) pairs the graph holds, and their rows in the node table."""
    starts: list[int] = []
    held = np.ones(len(pairs), np.bool_)
    for end, kind in enumerate((one.source, one.target)):
        block = layout.nodes[kind]
        starts.append(block.start)
        held &= pairs[:, end] < np.count_nonzero(raw.mask[block.slice])
    rows = (pairs[held] + np.array(starts)).astype(np.int32)
    return held, rows[:, 0], rows[:, 1]


def _stage(seed: SeedState) -> float:
    return seed.stage / SEED_STAGES


def _peers(seeds: tuple[SeedState, ...], blueprint: Blueprint) -> _Listed:
    del blueprint
    edges = [(i, i + 1, PEER_ATTRIBUTE, 0.0, 0.0) for i in range(len(seeds) - 1)]
    return _Listed(edges, len(edges))


def _allowed(seeds: tuple[SeedState, ...], blueprint: Blueprint) -> _Listed:
    """Seeds that may blend, to the parameters on their list, or to all without a list."""
    index = {parameter.name: i for i, parameter in enumerate(blueprint.parameters)}
    lists = blueprint.allowed_parameters_by_seed_id
    edges: list[Edge] = []
    expected = 0
    for i, seed in enumerate(seeds):
        if not blend_allowed(seed, blueprint):
            continue
        names = dict.fromkeys(lists.get(seed.seed_id, index))
        expected += len(names)
        edges += [(i, index[name], 1.0, 1.0, _stage(seed)) for name in names if name in index]
    carried = {seed.seed_id for seed in seeds}
    expected += sum(len(names) for seed_id, names in lists.items() if seed_id not in carried)
    return _Listed(edges, expected)


def _connections(seeds: tuple[SeedState, ...], blueprint: Blueprint) -> _Listed:
    """The layer edges, or the declared chain."""
    del seeds
    count = len(blueprint.layers)
    if blueprint.layer_edges is not None:
        links = [(edge.source, edge.target, edge.strength) for edge in blueprint.layer_edges]
    else:
        links = [(i, i + 1, None) for i in range(count - 1)] if blueprint.chain else []
    risk = blueprint.effective_risk
    edges = [
        (
            source,
            target,
            position(source, count),
            position(target, count),
            finite(risk if strength is None else strength),
        )
        for source, target, strength in links
    ]
    return _Listed(edges, len(edges))


def _monitored(
    seeds: tuple[SeedState, ...], blueprint: Blueprint
) -> Iterator[tuple[int | None, int | None, float | None]]:
    """(seed, layer, weight) of who watches what; None where the packet does not say."""
    if blueprint.monitored_layers:
        index = {seed.seed_id: i for i, seed in enumerate(seeds)}
        for watch in blueprint.monitored_layers:
            yield index.get(watch.seed_id), watch.layer_index, watch.weight
        return
    last = len(blueprint.layers) - 1
    for i, seed in enumerate(seeds if blueprint.layers else ()):
        depth = seed.layer_depth
        yield i, None if depth is None else min(max(depth, 0), last), None


def _within(seed: SeedState, thresholds: Mapping[str, float]) -> bool:
    """Whether a seed passes ``risk_max`` and ``stage_min``."""
    return finite(seed.risk_score) <= thresholds.get("risk_max", np.inf) and _stage(
        seed
    ) >= thresholds.get("stage_min", -np.inf)


def _monitors(seeds: tuple[SeedState, ...], blueprint: Blueprint) -> _Listed:
    edges: list[Edge] = []
    expected = 0
    for i, layer, weight in _monitored(seeds, blueprint):
        if i is not None and not _within(seeds[i], blueprint.monitor_thresholds):
            continue
        expected += 1
        if i is None or layer is None:
            continue
        depth = position(layer, len(blueprint.layers))
        attribute = depth if weight is None else finite(weight)
        edges.append((i, layer, _stage(seeds[i]), finite(seeds[i].risk_score), attribute))
    return _Listed(edges, expected)


def _reversed(
    source: Callable[[tuple[SeedState, ...], Blueprint], _Listed],
) -> Callable[[tuple[SeedState, ...], Blueprint], _Listed]:
    """The same edges the other way round."""

    def turned(seeds: tuple[SeedState, ...], blueprint: Blueprint) -> _Listed:
        listed = source(seeds, blueprint)
        return _Listed([(j, i, a, b, c) for i, j, a, b, c in listed.edges], listed.expected)

    return turned


_SOURCES: Mapping[str, Callable[[tuple[SeedState, ...], Blueprint], _Listed]] = {
    "seed__peer__seed": _peers,
    "seed__allowed__parameter": _allowed,
    "parameter__associated__seed": _reversed(_allowed),
    "layer__connects__layer": _connections,
    "seed__monitors__layer": _monitors,
    "layer__monitored_by__seed": _reversed(_monitors),
}
