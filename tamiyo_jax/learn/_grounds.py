"""Where learning takes place: families by their architecture, all seen through one layout."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from tamiyo_jax.graph import GraphLayout
from tamiyo_jax.learn._environment import HostEnv
from tamiyo_jax.learn._tasks import Family

__all__ = ["Ground", "common_layout", "grounds_of"]


class Ground(NamedTuple):
    """The environment of an architecture, and the families whose hosts have it."""

    env: HostEnv
    families: tuple[Family, ...]


def grounds_of(families: Sequence[Family]) -> list[Ground]:
    """The families by architecture, in environments of one layout: their graphs can be mixed."""
    architectures = list(dict.fromkeys(family.architecture for family in families))
    layout = common_layout([HostEnv(one).layout for one in architectures])
    return [
        Ground(HostEnv(one, layout=layout), tuple(f for f in families if f.architecture == one))
        for one in architectures
    ]


def common_layout(layouts: Sequence[GraphLayout]) -> GraphLayout:
    """The smallest layout that holds the graphs of each."""
    nodes: dict[str, int] = {}
    edges: dict[str, int] = {}
    for layout in dict.fromkeys(layouts):
        for name, capacity in layout.node_capacities:
            nodes[name] = max(nodes.get(name, 0), capacity)
        for key, capacity in layout.edge_capacities:
            edges[key] = max(edges.get(key, 0), capacity)
    return GraphLayout.of(nodes, edges)
