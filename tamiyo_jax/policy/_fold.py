"""Exact folding: parameters rewritten once, so that each decision reads fewer bytes of them.

Algebra that changes no output beyond rounding:

- Root weights and biases of the SAGE relations that share a target are summed. The ``1/R`` of
  the mean over R relations and the ``1/K`` of the mean over heads go into the weights.
- Attention vectors are folded through their projections: ``a_s · W_s`` and ``a_t · W_t`` become
  D×K matrices, one for all terms of a node type, and ``a_e · W_e`` becomes 3×K. Complete
  relations add the shares of an edge's attributes to the terms of its ends. ``W_t`` is applied
  in no other way.
- Attention to a single source is 1, so the heads' projections are averaged.
- What is projected after it is weighted, for one target type, is projected by one product.
- Of each layer only what a head reads remains, at the end or on the way.

`routes.plan` says which way each relation goes; folded parameters depend on the layout by it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tamiyo_jax.graph import ATTRIBUTE_WIDTH, EDGE_WIDTH, NODE_TYPES, RELATIONS, GraphLayout
from tamiyo_jax.policy._network import Params
from tamiyo_jax.policy._outputs import Array
from tamiyo_jax.policy._routes import LAYERS, PLACES, LayerPlan, Place, Route, plan

__all__ = ["BOUNDED_HEADS", "LINEAR_HEADS", "FoldedLayer", "FoldedParams", "fold"]

LINEAR_HEADS = ("policy_logits", "blending_logits", "risk_logits", "value", "breaker_logits")
BOUNDED_HEADS = ("policy_params", "schedule_params")

Linear = tuple[Array, Array]
"""Kernel f32[D, width] and bias f32[width]."""


class FoldedLayer(NamedTuple):
    """Weights of one layer; D is the width of its input and C of its output.

    Attributes:
      after: by place and target, f32[n, C]: projects all that one place receives, side by side:
        the weighted sources of its relations, and in a SAGE layer, for "each", first of all
        the target's own embedding.
      before: by relation, f32[D, K·C]: projects sources before they are weighted.
      bias: by target, f32[C].
      terms: by node type, f32[D + 3, n·K]: terms of attention logits; the last three rows read
        a node's attributes and the constant 1.
      edges: f32[L, 3, K]: what the attributes of the L listed relations' edges add to logits.
    """

    after: dict[Place, dict[str, Array]]
    before: dict[str, Array]
    bias: dict[str, Array]
    terms: dict[str, Array]
    edges: Array


class FoldedParams(NamedTuple):
    """Parameters in the form that `apply_folded` reads, for the graphs of one layout.

    Attributes:
      encoders: by node type, a linear map, and scale and bias of the normalisation.
      layers: in the order of `routes.LAYERS`.
      heads: all that reads the graph embedding linearly, side by side: `LINEAR_HEADS`, then
        the hidden layers of `BOUNDED_HEADS`.
      bounded: by name, the last layer of the bounded heads.
      scores: by node type.
    """

    encoders: dict[str, tuple[Linear, Linear]]
    layers: tuple[FoldedLayer, ...]
    heads: Linear
    bounded: dict[str, Linear]
    scores: dict[str, Linear]


def fold(params: Params, layout: GraphLayout) -> FoldedParams:
    """Fold parameters for graphs of one layout.

    In NumPy: it is done once, and to compile it would take longer than to do it.

    Args:
      params: parameters of the network.
      layout: of the graphs.

    Returns:
      Arrays on JAX's default device.
    """
    params = jax.device_get(params)
    linear = [_linear(params[name]) for name in LINEAR_HEADS]
    linear += [_linear(params[name]["hidden"]) for name in BOUNDED_HEADS]
    kernels, biases = zip(*linear, strict=True)
    encoders = {kind.name: params[f"encoder_{kind.name}"] for kind in NODE_TYPES}
    folded = FoldedParams(
        encoders={
            name: (_linear(encoder["linear"]), (encoder["norm"]["scale"], encoder["norm"]["bias"]))
            for name, encoder in encoders.items()
        },
        layers=tuple(
            (_fold_attention if layer_plan.attention else _fold_mean)(params[name], layer_plan)
            for name, layer_plan in zip(LAYERS, plan(layout), strict=True)
        ),
        heads=(np.concatenate(kernels, axis=1), np.concatenate(biases)),
        bounded={name: _linear(params[name]["out"]) for name in BOUNDED_HEADS},
        scores={kind: _linear(params[f"{kind}_scores"]) for kind in ("seed", "blueprint")},
    )
    return jax.tree.map(jnp.asarray, folded)


def _linear(dense: Params) -> Linear:
    return dense["kernel"], dense["bias"]


def _fold_mean(layer: Params, layer_plan: LayerPlan) -> FoldedLayer:
    kernels = {
        r.relation.key: layer[r.relation.key]["neighbours"]["kernel"] for r in layer_plan.routes
    }
    roots = {target: [layer[key]["root"] for key in _into(target)] for target in layer_plan.targets}
    own = {target: [_mean([root["kernel"] for root in found])] for target, found in roots.items()}
    after, before = _projections(layer_plan, kernels, own)
    return FoldedLayer(
        after,
        before,
        bias={target: _mean([root["bias"] for root in found]) for target, found in roots.items()},
        terms={},
        edges=np.zeros((0, EDGE_WIDTH, 0), np.float32),
    )


def _fold_attention(layer: Params, layer_plan: LayerPlan) -> FoldedLayer:
    kernels = {
        route.relation.key: _by_heads(layer[route.relation.key]["source_kernel"], route)
        for route in layer_plan.routes
    }
    edges = [_logits(layer[route.relation.key], "edge") for route in layer_plan.listed]
    after, before = _projections(layer_plan, kernels, {})
    return FoldedLayer(
        after,
        before,
        bias={t: _mean([layer[key]["bias"] for key in _into(t)]) for t in layer_plan.targets},
        terms={
            kind.name: np.concatenate(
                [_term(layer[route.relation.key], route, end) for route, end in found], axis=1
            )
            for kind in NODE_TYPES
            if (found := layer_plan.terms(kind.name))
        },
        edges=np.stack(edges) if edges else np.zeros((0, EDGE_WIDTH, 0), np.float32),
    )


def _into(target: str) -> list[str]:
    """The relations into a type; all of them enter its mean, with or without edges."""
    return [relation.key for relation in RELATIONS if relation.target == target]


def _mean(arrays: list[np.ndarray]) -> np.ndarray:
    return np.mean(arrays, axis=0)


def _by_heads(kernel: np.ndarray, route: Route) -> np.ndarray:
    """Weights f32[D, K, C] of all heads as one matrix, with the mean over heads in it."""
    width, heads, _ = kernel.shape
    if not route.attends:
        return np.mean(kernel, axis=1)
    kernel = kernel / np.float32(heads)
    if route.before:
        return kernel.reshape(width, -1)
    return np.swapaxes(kernel, 0, 1).reshape(heads * width, -1)


def _logits(relation: Params, end: str) -> np.ndarray:
    """A projection folded with its attention vectors: f32[D, K]."""
    return np.einsum("dkc,kc->dk", relation[f"{end}_kernel"], relation[f"{end}_attention"])


def _term(relation: Params, route: Route, end: str) -> np.ndarray:
    """What one end's embedding, its attributes and the constant add to the logits: [D + 3, K]."""
    of_node, of_edge = _logits(relation, end), _logits(relation, "edge")
    rest = np.zeros((ATTRIBUTE_WIDTH + 1, of_edge.shape[1]), of_edge.dtype)
    if route.edges is None:
        for column, term in enumerate(route.relation.terms or ()):
            if term.end == end:
                rest[term.attribute] += of_edge[column]
            elif term.end == "constant" and end == "source":
                rest[-1] += term.value * of_edge[column]
    return np.concatenate([of_node, rest])


def _projections(
    layer_plan: LayerPlan, kernels: Mapping[str, np.ndarray], own: Mapping[str, list[np.ndarray]]
) -> tuple[dict[Place, dict[str, Array]], dict[str, Array]]:
    """`after` and `before` of a layer: its kernels where they are applied, 1/R of each.

    Args:
      layer_plan: the plan of the layer.
      kernels: by relation.
      own: by target, the weight of its own embedding, if the layer has one.
    """
    shared = {
        route.relation.key: kernels[route.relation.key]
        * np.float32(1.0 / len(_into(route.relation.target)))
        for route in layer_plan.routes
    }
    after: dict[Place, dict[str, Array]] = {place: {} for place in PLACES}
    for place in PLACES:
        for target in layer_plan.targets:
            parts = [
                shared[route.relation.key]
                for route in layer_plan.routes_projected_after(target, place)
            ]
            if place == "each":
                parts = [*own.get(target, []), *parts]
            if parts:
                after[place][target] = np.concatenate(parts)
    return after, {r.relation.key: shared[r.relation.key] for r in layer_plan.routes if r.before}
