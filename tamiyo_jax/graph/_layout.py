"""The static layout of a graph: which rows of the one table belong to whom.

Every node type and every listed relation owns one block of the node or edge table. A node
block has one row more than its capacity: the padding node, which padding edges point at, so
that no index is ever out of range. A layout is hashable and a static argument of every
jitted function, so a run that keeps its layout compiles once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from tamiyo_jax.config import GraphConfig
from tamiyo_jax.contracts import Blueprint
from tamiyo_jax.errors import GraphCapacityError, GraphSchemaError
from tamiyo_jax.graph._relations import RELATIONS, Relation, find_relation
from tamiyo_jax.graph._schema import NODE_TYPES, find_node_type

__all__ = ["Block", "GraphLayout", "bucket", "count_fitting", "expand_layout", "layout_for"]


def bucket(count: int, cap: int) -> int:
    """The capacity for `count`: the next power of two, at least 1 and at most `cap`."""
    return min(1 << max(count - 1, 0).bit_length(), cap)


class Block(NamedTuple):
    """Rows ``start … start + capacity``; for nodes the row after them is padding."""

    start: int
    capacity: int

    @property
    def slice(self) -> slice:
        """The rows that may be real."""
        return slice(self.start, self.start + self.capacity)

    @property
    def padding(self) -> int:
        """The padding node's row."""
        return self.start + self.capacity


@dataclass(frozen=True)
class GraphLayout:
    """Capacities of all blocks.

    Attributes:
      node_capacities: (node type, capacity), in the order of the schema.
      edge_capacities: (relation key, capacity) of the listed relations, in the order of the
        schema; a relation that does not stand here is complete and has no edges in the table.
    """

    node_capacities: tuple[tuple[str, int], ...]
    edge_capacities: tuple[tuple[str, int], ...]

    def __post_init__(self) -> None:
        for name, _ in self.node_capacities:
            find_node_type(name)
        if tuple(name for name, _ in self.node_capacities) != tuple(t.name for t in NODE_TYPES):
            raise GraphSchemaError(
                "a layout gives a capacity to every node type, in the order of the schema",
                name=str([name for name, _ in self.node_capacities]),
            )
        listed = [find_relation(key).key for key, _ in self.edge_capacities]
        if listed != [relation.key for relation in RELATIONS if relation.key in set(listed)]:
            raise GraphSchemaError(
                "relations of a layout stand in the order of the schema, once each",
                name=str(listed),
            )
        for relation in RELATIONS:
            if not relation.complete and relation.key not in listed:
                raise GraphSchemaError(
                    f"relation {relation.key} comes from data; give it an edge capacity",
                    name=relation.key,
                )

    def __hash__(self) -> int:
        return self._hash

    def __reduce__(self) -> tuple[object, ...]:
        # Without what is cached: hashes of text differ from process to process.
        return type(self), (self.node_capacities, self.edge_capacities)

    @cached_property
    def _hash(self) -> int:
        """Computed once: a layout is looked up several times per decision."""
        return hash((self.node_capacities, self.edge_capacities))

    @classmethod
    def of(cls, nodes: Mapping[str, int], edges: Mapping[str, int]) -> GraphLayout:
        """A layout from capacities by name; every node type and listed relation is required."""
        for name in nodes:
            find_node_type(name)
        for key in edges:
            find_relation(key)
        return cls(
            tuple((kind.name, nodes[kind.name]) for kind in NODE_TYPES),
            tuple(
                (relation.key, edges[relation.key])
                for relation in RELATIONS
                if relation.key in edges
            ),
        )

    @cached_property
    def nodes(self) -> Mapping[str, Block]:
        """Block of each node type in the node table."""
        blocks: dict[str, Block] = {}
        start = 0
        for name, capacity in self.node_capacities:
            blocks[name] = Block(start, capacity)
            start += capacity + 1
        return blocks

    @cached_property
    def edges(self) -> Mapping[str, Block]:
        """Block of each listed relation in the edge table."""
        blocks: dict[str, Block] = {}
        start = 0
        for key, capacity in self.edge_capacities:
            blocks[key] = Block(start, capacity)
            start += capacity
        return blocks

    @property
    def num_nodes(self) -> int:
        """Rows of the node table, padding included."""
        return sum(capacity + 1 for _, capacity in self.node_capacities)

    @property
    def num_edges(self) -> int:
        """Rows of the edge table."""
        return sum(capacity for _, capacity in self.edge_capacities)

    def is_complete(self, relation: Relation) -> bool:
        """Whether the relation is complete here, and so has no edges in the table."""
        return relation.key not in self.edges


def count_fitting(name: str, count: int, cap: int, config: GraphConfig) -> int:
    """How many of `count` may stay under `cap`.

    Raises:
      GraphCapacityError: more than the cap, and the configuration does not opt in to truncation.
    """
    if count > cap and config.overflow == "error":
        raise GraphCapacityError(
            f"{name}: {count} exceed the cap of {cap}; raise the cap in the graph "
            'configuration, or opt in to overflow = "truncate"',
            name=name,
            count=count,
            cap=cap,
        )
    return min(count, cap)


def layout_for(blueprint: Blueprint, config: GraphConfig) -> GraphLayout:
    """The layout of all graphs of a blueprint, whatever its packets hold.

    Seeds and blueprints take their caps, since packets change their number; everything else
    takes the power-of-two bucket of the blueprint's count, so blueprints of similar size
    share one compiled program.

    Raises:
      GraphCapacityError: a type or relation is over its cap (unless truncation is on).
      GraphSchemaError: `relation_pairs` names an unknown relation, or one that is not
        complete by construction.
    """
    sizes = {
        "layer": len(blueprint.layers),
        "activation": len(blueprint.activations),
        "parameter": len(blueprint.parameters),
    }
    nodes = {kind.name: config.node_cap(kind.name) for kind in NODE_TYPES}
    for name, count in sizes.items():
        nodes[name] = bucket(count_fitting(name, count, nodes[name], config), nodes[name])

    if blueprint.layer_edges is not None:
        links = len(blueprint.layer_edges)
    else:
        links = max(len(blueprint.layers) - 1, 0) if blueprint.chain else 0
    listed = {
        "layer__connects__layer": links,
        "seed__monitors__layer": len(blueprint.monitored_layers),
        "layer__monitored_by__seed": len(blueprint.monitored_layers),
    }
    for key, pairs in blueprint.relation_pairs.items():
        if not find_relation(key).complete:
            raise GraphSchemaError(
                f"relation_pairs: {key} is not complete by construction; its edges come from "
                "the fields of the packet and the blueprint",
                name=key,
            )
        listed[key] = len(pairs)
    edges = {
        key: bucket(count_fitting(key, count, config.max_edges, config), config.max_edges)
        for key, count in listed.items()
    }
    edges["seed__peer__seed"] = nodes["seed"]
    for key in ("seed__allowed__parameter", "parameter__associated__seed"):
        edges[key] = min(nodes["seed"] * nodes["parameter"], config.max_edges)
    for key in ("seed__monitors__layer", "layer__monitored_by__seed"):
        edges[key] = max(edges[key], nodes["seed"])
    return GraphLayout.of(nodes, edges)


def expand_layout(layout: GraphLayout) -> GraphLayout:
    """The same layout with every relation listed, complete ones at their full capacity."""
    nodes = dict(layout.node_capacities)
    full = {
        relation.key: (1 if relation.active == "source" else nodes[relation.source])
        * (1 if relation.active == "target" else nodes[relation.target])
        for relation in RELATIONS
    }
    return GraphLayout.of(nodes, {**full, **dict(layout.edge_capacities)})
