"""Compare golden edges with the encoder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tamiyo_jax.config import GraphConfig
from tamiyo_jax.contracts import (
    ActivationSpec,
    Blueprint,
    BlueprintTier,
    LayerEdge,
    LayerSpec,
    MonitoredLayer,
    ParameterSpec,
    SeedStage,
    SeedState,
    SystemStatePacket,
)
from tamiyo_jax.graph import (
    RELATIONS,
    GraphLayout,
    Registries,
    complete_attributes,
    complete_rows,
    encode,
    expand_layout,
    layout_for,
)

__all__ = ["EdgeComparison", "compare_edges", "read_blueprint", "read_packet"]


class EdgeComparison(NamedTuple):
    """Counts and error of a comparison; `largest_error` is inf if an edge is missing or surplus."""

    cases: int
    edges: int
    largest_error: float


def compare_edges(path: Path) -> EdgeComparison:
    """Encode every case of a golden ``edges.json`` and compare edge by edge.

    Each case is encoded twice: with every relation written out by the encoder, and with the
    complete relations left to the attributes of their ends.
    """
    cases = json.loads(path.read_text(encoding="utf-8"))
    compared, worst = 0, 0.0
    for number, case in enumerate(cases):
        blueprint = read_blueprint(case["blueprint"])
        packet = read_packet(case["packet"], blueprint.blueprint_id, number)
        layout = layout_for(blueprint, GraphConfig())
        for form in (layout, expand_layout(layout)):
            ours = _edges(packet, blueprint, form)
            for relation in RELATIONS:
                golden = case["edges"].get(relation.key, [])
                compared += len(golden)
                worst = max(worst, _difference(ours[relation.key], golden))
    return EdgeComparison(len(cases), compared, worst)


def read_packet(case: Mapping[str, Any], blueprint_id: str, number: int) -> SystemStatePacket:
    """Read the packet of a golden case, whose number in the file becomes its id."""
    seeds = tuple(
        SeedState(**{**seed, "stage": SeedStage(seed["stage"])}) for seed in case["seeds"]
    )
    return SystemStatePacket(
        packet_id=f"case-{number}", blueprint_id=blueprint_id, **{**case, "seeds": seeds}
    )


def read_blueprint(case: Mapping[str, Any]) -> Blueprint:
    """Read the blueprint of a golden case; its monitors name seeds as ``seed-<index>``."""
    capabilities = case["capabilities"]
    return Blueprint(
        blueprint_id=case["blueprint_id"],
        tier=BlueprintTier(case["tier"]),
        risk=case["risk"],
        stage=case["stage"],
        layers=tuple(LayerSpec(**layer) for layer in case["layers"]),
        activations=tuple(ActivationSpec(**activation) for activation in case["activations"]),
        parameters=tuple(ParameterSpec(**parameter) for parameter in case["parameters"]),
        layer_edges=tuple(LayerEdge(*edge) for edge in case["layer_edges"]),
        monitored_layers=tuple(
            MonitoredLayer(f"seed-{seed}", layer, weight)
            for seed, layer, weight in case["monitored_layers"]
        ),
        monitor_thresholds=case["monitor_thresholds"],
        allowed_blending_methods=tuple(capabilities["allowed_blending_methods"]),
        allowed_parameters_by_seed_id={
            seed_id: tuple(names)
            for seed_id, names in capabilities["allowed_parameters_by_seed_id"].items()
        },
    )


def _edges(
    packet: SystemStatePacket, blueprint: Blueprint, layout: GraphLayout
) -> dict[str, np.ndarray]:
    """Encode edges, f64[n, 5] by relation: source, target and three attributes."""
    raw, _ = encode(packet, blueprint, (), Registries.empty(), layout)
    edges: dict[str, np.ndarray] = {}
    for relation in RELATIONS:
        if layout.is_complete(relation):
            senders, receivers = complete_rows(layout, relation, raw.mask)
            values = complete_attributes(relation, raw.attributes, senders, receivers)
        else:
            block = layout.edges[relation.key].slice
            real = raw.edge_mask[block]
            senders, receivers = raw.senders[block][real], raw.receivers[block][real]
            values = raw.edges[block][real]
        source, target = layout.nodes[relation.source].start, layout.nodes[relation.target].start
        edges[relation.key] = np.column_stack([senders - source, receivers - target, values])
    return edges


def _difference(ours: np.ndarray, golden: list[list[float]]) -> float:
    """Largest difference of an attribute, edges matched by their ends."""
    theirs = np.array(golden, np.float64).reshape(-1, 5)
    ours, theirs = (edges[np.lexsort(edges.T[::-1])] for edges in (ours, theirs))
    if len(ours) != len(theirs) or not np.array_equal(ours[:, :2], theirs[:, :2]):
        return float("inf")
    return float(np.abs(ours - theirs).max(initial=0.0))
