"""Small graphs, packets and observations that the policy's tests share."""

from __future__ import annotations

from dataclasses import replace

import jax
import numpy as np

from tamiyo_jax.contracts import (
    ActivationSpec,
    Blueprint,
    CircuitBreakerState,
    LayerSpec,
    ParameterSpec,
    SeedStage,
    SeedState,
    SystemStatePacket,
)
from tamiyo_jax.graph import (
    NODE_TYPES,
    RELATIONS,
    GraphLayout,
    RawGraph,
    complete_attributes,
    complete_rows,
    expand_layout,
)
from tamiyo_jax.graph._raw import blank
from tamiyo_jax.graph._schema import find_node_type
from tamiyo_jax.policy import Legality, Observation, PolicyOutputs, legality

MAX_SEEDS, MAX_BLUEPRINTS = 3, 3
LAYOUT = GraphLayout.of(
    {"global": 1, "seed": 3, "blueprint": 3, "layer": 4, "activation": 3, "parameter": 2},
    {relation.key: 4 for relation in RELATIONS if not relation.complete},
)


def raw_graph(
    rng: np.random.Generator,
    counts: dict[str, int],
    *,
    edges: int = 4,
    layout: GraphLayout = LAYOUT,
) -> RawGraph:
    """A random graph with these many nodes; one has always one global node."""
    raw = blank(layout)
    for name, count in {"global": 1, **counts}.items():
        rows = slice(layout.nodes[name].start, layout.nodes[name].start + count)
        width = find_node_type(name).width
        raw.values[rows, :width] = rng.normal(size=(count, width)).astype(np.float32)
        raw.present[rows, :width] = True
        raw.mask[rows] = True
        raw.attributes[rows] = rng.uniform(size=(count, 2)).astype(np.float32)
    for key, block in layout.edges.items():
        source, _, target = key.split("__")
        ends = [np.flatnonzero(raw.mask[layout.nodes[kind].slice]) for kind in (source, target)]
        if not all(len(end) for end in ends):
            continue
        rows = slice(block.start, block.start + edges)
        raw.senders[rows] = layout.nodes[source].start + rng.choice(ends[0], edges)
        raw.receivers[rows] = layout.nodes[target].start + rng.choice(ends[1], edges)
        raw.edges[rows] = rng.normal(size=(edges, 3)).astype(np.float32)
        raw.edge_mask[rows] = True
    return raw


def written_out(raw: RawGraph) -> tuple[GraphLayout, RawGraph]:
    """The same graph with every complete relation listed edge by edge."""
    layout = expand_layout(LAYOUT)
    listed = blank(layout)
    for name in ("values", "present", "reported", "mask", "attributes"):
        getattr(listed, name)[:] = getattr(raw, name)
    for relation in RELATIONS:
        block = layout.edges[relation.key]
        if LAYOUT.is_complete(relation):
            senders, receivers = complete_rows(LAYOUT, relation, raw.mask)
            values = complete_attributes(relation, raw.attributes, senders, receivers)
            real = np.ones(len(senders), np.bool_)
        else:
            before = LAYOUT.edges[relation.key].slice
            senders, receivers = raw.senders[before], raw.receivers[before]
            values, real = raw.edges[before], raw.edge_mask[before]
        rows = slice(block.start, block.start + len(senders))
        listed.senders[rows], listed.receivers[rows] = senders, receivers
        listed.edges[rows], listed.edge_mask[rows] = values, real
    return layout, listed


FULL = {kind.name: LAYOUT.nodes[kind.name].capacity for kind in NODE_TYPES}


def blueprint(name: str, **fields: object) -> Blueprint:
    return replace(
        Blueprint(
            name,
            risk=0.2,
            layers=tuple(LayerSpec(f"l{i}", "dense", i) for i in range(4)),
            activations=(ActivationSpec("a0", "relu"),),
            parameters=(ParameterSpec("lr", 0.0, 1.0),),
            chain=True,
        ),
        **fields,
    )


ACTIVE, GROWN, OTHER = blueprint("network"), blueprint("module"), blueprint("other")


def seed(name: str, stage: SeedStage, **metrics: float) -> SeedState:
    return SeedState(name, stage, metrics=metrics)


def packet(*seeds: SeedState, **fields: object) -> SystemStatePacket:
    return replace(
        SystemStatePacket(
            "packet-7",
            "run-1",
            ACTIVE.blueprint_id,
            candidate_blueprint_ids=(GROWN.blueprint_id, OTHER.blueprint_id),
            seeds=seeds,
            optimizer_id="adam",
            training_metrics={"loss": 0.5, "gradient_norm": 1.0},
        ),
        **fields,
    )


def legal(
    of: SystemStatePacket,
    *candidates: Blueprint,
    seedless: bool = False,
    host_breaker: CircuitBreakerState = CircuitBreakerState.CLOSED,
) -> Legality:
    return legality(
        of,
        candidates or (ACTIVE, GROWN, OTHER),
        max_seeds=MAX_SEEDS,
        max_blueprints=MAX_BLUEPRINTS,
        seedless=seedless,
        host_breaker=host_breaker,
    )


def observation(of: SystemStatePacket, *candidates: Blueprint) -> Observation:
    return Observation(of, LAYOUT, blank(LAYOUT), legal(of, *candidates))


def row_of(outputs: PolicyOutputs, row: int) -> PolicyOutputs:
    """One decision of a batch."""
    return jax.tree.map(lambda array: array[row], outputs)
