"""Edges of seeds: peers, the parameters that a seed may set, the layers that it watches.

They are computed once for each placement of the seeds and kept, since seeds keep their
places much longer than a step; only what the seeds themselves measure is filled in each time.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from tamiyo_jax.config import GraphConfig
from tamiyo_jax.contracts import Blueprint, SeedState
from tamiyo_jax.graph._edges import Edges, write_edges
from tamiyo_jax.graph._layout import GraphLayout
from tamiyo_jax.graph._nodes import SEED_STAGES, finite, position, positions
from tamiyo_jax.graph._raw import RawGraph
from tamiyo_jax.graph._relations import EDGE_WIDTH
from tamiyo_jax.graph._schema import ATTRIBUTE_WIDTH

__all__ = ["SeedEdges", "SeedLinks", "SeedPlacement", "draw_seed_edges", "seed_links", "watches"]

PEER = "seed__peer__seed"
ALLOWED, ASSOCIATED = "seed__allowed__parameter", "parameter__associated__seed"
MONITORS, MONITORED_BY = "seed__monitors__layer", "layer__monitored_by__seed"

PEER_ATTRIBUTE = 0.5

# Attributes of a seed, and the columns of edges that take them: relation, the end that the seed
# is, column, attribute.
STAGE, RISK = 0, 1
FROM_SEEDS = (
    (ALLOWED, "senders", 2, STAGE),
    (ASSOCIATED, "receivers", 2, STAGE),
    (MONITORS, "senders", 0, STAGE),
    (MONITORS, "senders", 1, RISK),
    (MONITORED_BY, "receivers", 0, STAGE),
    (MONITORED_BY, "receivers", 1, RISK),
)


class SeedPlacement(NamedTuple):
    """All of a seed that its edges depend on, but for its stage and risk."""

    seed_id: str
    layer_depth: int | None
    blending: bool
    watching: bool


class _Watches(NamedTuple):
    """The blueprint's list of W watches.

    Attributes:
      seed_ids: the seeds that watch, each once.
      watcher: i64[W], place in `seed_ids`.
      layer: i64[W], index of the layer.
      attribute: f64[W], the weight, or else the depth of the layer.
    """

    seed_ids: tuple[str, ...]
    watcher: np.ndarray
    layer: np.ndarray
    attribute: np.ndarray


class SeedLinks(NamedTuple):
    """What a blueprint says of seeds, for one layout.

    Attributes:
      everything: rows of all parameters that the layout holds, and how many there are.
      lists: the same for the parameters on each seed's list.
      lengths: entries of each seed's list.
      watches: who watches which layer; None where each seed watches its own.
      depths: f64[layers], depth of each layer.
    """

    everything: tuple[np.ndarray, int]
    lists: Mapping[str, tuple[np.ndarray, int]]
    lengths: Mapping[str, int]
    watches: _Watches | None
    depths: np.ndarray


class SeedEdges(NamedTuple):
    """The edge table of a placement, read-only; see `RawGraph`.

    Attributes:
      edges: f32[E, 3], without what comes from attributes of seeds.
      edge_mask: bool[E].
      senders: i32[E].
      receivers: i32[E].
      expected_edges: i32[R].
      filled: i64[n], places in the flat `edges` that take an attribute of a seed.
      origins: i64[n], its place in the flat `attributes` of the node table.
    """

    edges: np.ndarray
    edge_mask: np.ndarray
    senders: np.ndarray
    receivers: np.ndarray
    expected_edges: np.ndarray
    filled: np.ndarray
    origins: np.ndarray


def watches(seed: SeedState, thresholds: Mapping[str, float]) -> bool:
    """Whether a seed passes ``risk_max`` and ``stage_min``."""
    return not thresholds or (
        finite(seed.risk_score) <= thresholds.get("risk_max", np.inf)
        and seed.stage / SEED_STAGES >= thresholds.get("stage_min", -np.inf)
    )


def seed_links(blueprint: Blueprint, layout: GraphLayout) -> SeedLinks:
    """Turn what a blueprint says of seeds into arrays."""
    block = layout.nodes["parameter"]
    index = {parameter.name: i for i, parameter in enumerate(blueprint.parameters)}
    allowed = blueprint.allowed_parameters_by_seed_id

    def locate(names: Iterable[str]) -> tuple[np.ndarray, int]:
        distinct = dict.fromkeys(names)
        places = [index[name] for name in distinct if name in index]
        rows = [block.start + place for place in places if place < block.capacity]
        return np.array(rows, np.int64), len(distinct)

    return SeedLinks(
        everything=locate(index),
        lists={seed_id: locate(names) for seed_id, names in allowed.items()},
        lengths={seed_id: len(names) for seed_id, names in allowed.items()},
        watches=_watches(blueprint) if blueprint.monitored_layers else None,
        depths=positions(len(blueprint.layers)),
    )


def _watches(blueprint: Blueprint) -> _Watches:
    watches, count = blueprint.monitored_layers, len(blueprint.layers)
    places: dict[str, int] = {}
    watcher = [places.setdefault(watch.seed_id, len(places)) for watch in watches]
    layer = np.array([watch.layer_index for watch in watches], np.int64)
    attribute = [
        position(watch.layer_index, count) if watch.weight is None else finite(watch.weight)
        for watch in watches
    ]
    return _Watches(tuple(places), np.array(watcher), layer, np.array(attribute))


def draw_seed_edges(
    static: RawGraph,
    layout: GraphLayout,
    links: SeedLinks,
    config: GraphConfig,
    placements: tuple[SeedPlacement, ...],
) -> SeedEdges:
    """Add the edges of seeds to those that depend on the blueprint alone.

    Args:
      static: what depends on the blueprint alone.
      layout: where the blocks lie.
      links: what the blueprint says of seeds.
      config: caps and what happens above them.
      placements: one per seed; seeds that do not fit into the graph count as expected.

    Raises:
      GraphCapacityError: more edges than a block holds, and truncation is off.
    """
    raw = RawGraph(*(array.copy() for array in static))
    allowed, monitors = (
        _link_allowed(layout, links, placements),
        _monitors(layout, links, placements),
    )
    origins = np.full(raw.edges.shape, -1, np.int64)
    for key, edges in (
        (PEER, _peers(layout, len(placements))),
        (ALLOWED, allowed),
        (ASSOCIATED, _reverse(allowed)),
        (MONITORS, monitors),
        (MONITORED_BY, _reverse(monitors)),
    ):
        where = write_edges(raw, layout, key, edges, config)
        for relation, end, column, attribute in FROM_SEEDS:
            if relation == key:
                seeds = getattr(raw, end)[where].astype(np.int64)
                origins[where, column] = seeds * ATTRIBUTE_WIDTH + attribute
    filled = np.flatnonzero(origins >= 0)
    drawn = SeedEdges(
        raw.edges,
        raw.edge_mask,
        raw.senders,
        raw.receivers,
        raw.expected_edges,
        filled,
        origins.reshape(-1)[filled],
    )
    for array in drawn:
        array.flags.writeable = False
    return drawn


def _reverse(edges: Edges) -> Edges:
    """The same edges the other way round."""
    return edges._replace(senders=edges.receivers, receivers=edges.senders)


def _peers(layout: GraphLayout, count: int) -> Edges:
    """Each seed to the next."""
    block = layout.nodes["seed"]
    senders = np.arange(block.start, block.start + min(count, block.capacity) - 1)
    attributes = np.zeros((len(senders), EDGE_WIDTH))
    attributes[:, 0] = PEER_ATTRIBUTE
    return Edges(senders, senders + 1, attributes, max(count - 1, 0))


def _link_allowed(
    layout: GraphLayout, links: SeedLinks, placements: Sequence[SeedPlacement]
) -> Edges:
    """Seeds that may blend, to the parameters on their list, or to all without a list."""
    block = layout.nodes["seed"]
    lists = [
        (row, *links.lists.get(placement.seed_id, links.everything))
        for row, placement in enumerate(placements, start=block.start)
        if placement.blending
    ]
    carried = {placement.seed_id for placement in placements}
    expected = sum(count for _, _, count in lists) + sum(
        count for seed_id, count in links.lengths.items() if seed_id not in carried
    )
    ends = [(np.full(len(held), row), held) for row, held, _ in lists if row < block.padding]
    none = np.zeros(0, np.int64)
    senders = np.concatenate([none, *(rows for rows, _ in ends)])
    receivers = np.concatenate([none, *(held for _, held in ends)])
    return Edges(senders, receivers, np.ones((len(senders), EDGE_WIDTH)), expected)


def _monitors(layout: GraphLayout, links: SeedLinks, placements: Sequence[SeedPlacement]) -> Edges:
    """Seeds to the layers that they watch, those within the thresholds."""
    if links.watches is None:
        sources, layers, expected = _own_layers(placements, len(links.depths))
        weights = links.depths[layers]
    else:
        sources, layers, weights, expected = _watched_layers(placements, links.watches)
    seeds, held = layout.nodes["seed"], layout.nodes["layer"]
    fit = (sources < seeds.capacity) & (layers < held.capacity)
    attributes = np.zeros((np.count_nonzero(fit), EDGE_WIDTH))
    attributes[:, 2] = weights[fit]
    return Edges(sources[fit] + seeds.start, layers[fit] + held.start, attributes, expected)


def _own_layers(
    placements: Sequence[SeedPlacement], layers: int
) -> tuple[np.ndarray, np.ndarray, int]:
    """Each seed and the layer at its depth; one without a depth is expected to watch."""
    watching = [
        (i, placement.layer_depth)
        for i, placement in enumerate(placements)
        if placement.watching and layers
    ]
    known = [(i, min(max(depth, 0), layers - 1)) for i, depth in watching if depth is not None]
    sources, targets = np.array(known, np.int64).reshape(-1, 2).T
    return sources, targets, len(watching)


def _watched_layers(
    placements: Sequence[SeedPlacement], watches: _Watches
) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """The watches of the seeds within the thresholds; one of an absent seed is expected."""
    index = {placement.seed_id: i for i, placement in enumerate(placements)}
    place = np.array([index.get(seed_id, -1) for seed_id in watches.seed_ids])[watches.watcher]
    absent = place < 0
    known = ~absent & np.array([*(placement.watching for placement in placements), False])[place]
    expected = int(np.count_nonzero(known | absent))
    return place[known], watches.layer[known], watches.attribute[known], expected
