"""Compare golden forward passes with the network, plain and folded, exact and padded."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from tamiyo_jax.graph import (
    EDGE_WIDTH,
    FEATURE_WIDTH,
    NODE_TYPES,
    RELATIONS,
    GraphLayout,
    GraphsTuple,
)
from tamiyo_jax.policy import (
    PolicyOutputs,
    apply,
    apply_folded,
    fold,
    import_state_dict,
    load_state_dict,
)

__all__ = ["compare_policy", "golden_graph"]

_apply = jax.jit(apply, static_argnames="layout")
_apply_folded = jax.jit(apply_folded, static_argnames="layout")
_PADDING = 3  # rows added to each block of the padded layout


def compare_policy(path: Path) -> dict[str, float]:
    """Return the largest absolute error of each output, plain and folded, exact and padded.

    Args:
      path: a golden ``policy_*.npz``: nodes, edges, parameters and outputs.

    Raises:
      CheckpointMismatchError: the file is damaged, or its parameters do not fit.
    """
    arrays = load_state_dict(path)
    _, params = import_state_dict(_under("params", arrays))
    expected = _under("outputs", arrays)
    errors = dict.fromkeys(expected, 0.0)
    for padding in (0, _PADDING):
        layout, graph = golden_graph(arrays, padding=padding)
        folded = fold(params, layout)
        for outputs in (_apply(params, layout, graph), _apply_folded(folded, layout, graph)):
            for name, error in _errors(expected, outputs).items():
                errors[name] = max(errors[name], error)
    return errors


def golden_graph(
    arrays: Mapping[str, np.ndarray], *, padding: int
) -> tuple[GraphLayout, GraphsTuple]:
    """The golden graph with every relation listed and `padding` spare rows in each block."""
    nodes, edges = _under("nodes", arrays), _under("edges", arrays)
    layout = GraphLayout.of(
        {kind.name: len(nodes[kind.name]) + padding for kind in NODE_TYPES},
        {relation.key: edges[f"{relation.key}/attr"].shape[0] + padding for relation in RELATIONS},
    )
    x = np.zeros((layout.num_nodes, FEATURE_WIDTH), np.float32)
    node_mask = np.zeros(layout.num_nodes, np.bool_)
    for kind in NODE_TYPES:
        rows = slice(layout.nodes[kind.name].start, None)
        features = nodes[kind.name]
        x[rows][: len(features), : kind.width] = features
        node_mask[rows][: len(features)] = True
    attributes = np.zeros((layout.num_edges, EDGE_WIDTH), np.float32)
    edge_mask = np.zeros(layout.num_edges, np.bool_)
    ends = np.zeros((2, layout.num_edges), np.int32)
    for relation in RELATIONS:
        block = layout.edges[relation.key]
        blocks = layout.nodes[relation.source], layout.nodes[relation.target]
        index, count = edges[f"{relation.key}/index"], edges[f"{relation.key}/index"].shape[1]
        real = slice(block.start, block.start + count)
        ends[:, block.slice] = [[end.padding] for end in blocks]
        ends[:, real] = index + np.array([[end.start] for end in blocks], np.int32)
        attributes[real] = edges[f"{relation.key}/attr"]
        edge_mask[real] = True
    return layout, GraphsTuple(
        nodes={
            "x": jnp.asarray(x),
            "mask": jnp.asarray(node_mask),
            "attributes": jnp.zeros((layout.num_nodes, 2)),
        },
        edges={"x": jnp.asarray(attributes), "mask": jnp.asarray(edge_mask)},
        senders=jnp.asarray(ends[0]),
        receivers=jnp.asarray(ends[1]),
        n_node=jnp.array([layout.num_nodes]),
        n_edge=jnp.array([layout.num_edges]),
        globals=None,
    )


def _under(prefix: str, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    start = f"{prefix}/"
    return {
        name.removeprefix(start): array for name, array in arrays.items() if name.startswith(start)
    }


def _errors(expected: Mapping[str, np.ndarray], outputs: PolicyOutputs) -> dict[str, float]:
    """Largest error by output; rows of padding must be -inf, else the error is infinite."""
    found: dict[str, float] = {}
    for name, want in expected.items():
        got = np.asarray(getattr(outputs, name)).reshape(-1)
        real, spare = got[: want.size], got[want.size :]
        error = np.max(np.abs(real - want.reshape(-1)), initial=0.0)
        found[name] = float(error) if np.all(np.isneginf(spare)) else np.inf
    return found
