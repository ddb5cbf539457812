"""Which way each relation goes through each folded layer; decided by the layout alone.

Every relation of a layer is a *weighting* ``P[t, k, s]`` of its sources, ``1/n`` or attention by
head, and its message is ``Σ_k Σ_s P[t, k, s] · h_s W_k``. So three choices are open to each:

- **How many rows.** The mean over all sources is one row for all targets, and so is a single
  source, to which attention is 1. A relation to the active blueprint reaches one target alone.
- **Block or list.** A complete relation's weighting is a dense block. A listed one's is a dense
  block too where a product over ``T × S`` cells costs less than to gather and to scatter the
  rows of E edges. Medians in microseconds on two busy CPU cores, width 256, in turns, skewed
  in-degrees: list 32 against block 36 at 16 cells an edge (E = 256), 75 against 148 at 64
  (E = 256), 484 against 1830 at 256 (E = 1024); and with even in-degrees, one after the other,
  220 against 69 at 1 (E = 1024). Hence `CELLS_PER_EDGE`.
- **Project before or after weighting**, on whichever side has fewer rows. Along a list, attention
  that is projected afterwards moves K·D numbers an edge instead of C, which costs as much as to
  project twice the rows: 10,000 nodes took 6 % less processor time with that, 658 nodes 11 %
  (medians, in turns, on a busy machine). Hence `ROWS_PER_TARGET`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from tamiyo_jax.graph import NODE_TYPES, RELATIONS, GraphLayout, Relation

__all__ = ["LAYERS", "PLACES", "LayerPlan", "Place", "Route", "plan"]

Place = Literal["each", "all", "first"]
PLACES: tuple[Place, ...] = ("each", "all", "first")

LAYERS = ("sage_0", "sage_1", "gat_0", "gat_1")
CELLS_PER_EDGE = 16
ROWS_PER_TARGET = 2
_READ_BY_HEADS = frozenset({"global", "seed", "blueprint"})


@dataclass(frozen=True, slots=True)
class Route:
    """The way of one relation through one layer.

    Attributes:
      relation: the relation.
      attends: sources are weighted by attention, else equally.
      place: which targets receive: each its own row, all the same row, or the first alone.
      rows: T, rows of the weighting; 1 unless each target receives its own.
      sources: S, rows of the source's block that may send.
      edges: E of a listed relation, None of a complete one.
      dense: the weighting is a block f32[T, K, S], else a weight for each edge and head.
      before: sources are projected before they are weighted.
    """

    relation: Relation
    attends: bool
    place: Place
    rows: int
    sources: int
    edges: int | None
    dense: bool
    before: bool


@dataclass(frozen=True, slots=True)
class LayerPlan:
    """What one layer computes.

    Attributes:
      attention: a GAT layer, else a SAGE layer.
      targets: node types that it computes, in the order of the schema.
      routes: of the relations into them that have room for an edge, in the order of the schema.
    """

    attention: bool
    targets: tuple[str, ...]
    routes: tuple[Route, ...]

    def into(self, target: str) -> tuple[Route, ...]:
        """Routes into a type."""
        return tuple(route for route in self.routes if route.relation.target == target)

    def routes_projected_after(self, target: str, place: Place) -> tuple[Route, ...]:
        """Routes into one place of a type that are projected together, after weighting."""
        return tuple(r for r in self.into(target) if r.place == place and not r.before)

    @property
    def listed(self) -> tuple[Route, ...]:
        """Routes of listed relations."""
        return tuple(route for route in self.routes if route.edges is not None)

    def terms(self, kind: str) -> tuple[tuple[Route, Literal["source", "target"]], ...]:
        """Routes whose logits have a term of this node type, with the end that it is."""
        found: list[tuple[Route, Literal["source", "target"]]] = []
        for route in self.routes:
            if route.attends and route.relation.source == kind:
                found.append((route, "source"))
            if route.attends and route.relation.target == kind:
                found.append((route, "target"))
        return tuple(found)


@lru_cache(maxsize=64)
def plan(layout: GraphLayout) -> tuple[LayerPlan, ...]:
    """The plan of each layer of `LAYERS`: of the node types that a head reads, or a later layer."""
    wanted = _READ_BY_HEADS
    plans: list[LayerPlan] = []
    for name in reversed(LAYERS):
        attention = name.startswith("gat")
        relations = [relation for relation in RELATIONS if relation.target in wanted]
        routes = [_route(layout, relation, attention=attention) for relation in relations]
        plans.append(
            LayerPlan(
                attention,
                tuple(kind.name for kind in NODE_TYPES if kind.name in wanted),
                tuple(
                    route for route in routes if route.rows and route.sources and route.edges != 0
                ),
            )
        )
        wanted = wanted | {relation.source for relation in relations}
    return tuple(reversed(plans))


def _route(layout: GraphLayout, relation: Relation, *, attention: bool) -> Route:
    sources, targets = (
        layout.nodes[relation.source].capacity,
        layout.nodes[relation.target].capacity,
    )
    if layout.is_complete(relation):
        sources = min(sources, 1) if relation.active == "source" else sources
        attends = attention and sources > 1
        place: Place = "each"
        if targets > 1 and relation.active == "target":
            place = "first"
        elif targets > 1 and not attends:
            place = "all"
        rows = targets if place == "each" else 1
        return Route(
            relation, attends, place, rows, sources, None, dense=True, before=sources < rows
        )
    edges = layout.edges[relation.key].capacity
    dense = targets * sources <= CELLS_PER_EDGE * edges
    if dense:
        before = sources < targets
    else:
        before = min(sources, edges) <= targets * (ROWS_PER_TARGET if attention else 1)
    return Route(relation, attention, "each", targets, sources, edges, dense, before)
