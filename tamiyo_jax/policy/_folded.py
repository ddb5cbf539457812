"""The network by folded parameters: the same outputs, for one reading of far fewer weights.

Shapes: T, S and E are the rows of a route's weighting, its sources and its edges, D and C the
widths of a layer's input and output, K its heads. A block has the rows of its capacity and no
padding node: rows without a node hold finite values that no weighting reads, and edges that join
padding nodes lie out of range and are dropped, or fall into a cell of their own, which is cut off.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from tamiyo_jax.graph import EDGE_WIDTH, NODE_TYPES, GraphLayout, GraphsTuple
from tamiyo_jax.policy._fold import BOUNDED_HEADS, LINEAR_HEADS, FoldedLayer, FoldedParams, Linear
from tamiyo_jax.policy._layers import LEAKY_SLOPE, SOFTMAX_EPSILON, tables
from tamiyo_jax.policy._network import LAYER_NORM_EPSILON, NUM_BREAKER_LOGITS, NUM_RISK_CLASSES
from tamiyo_jax.policy._outputs import NUM_ACTIONS, Array, PolicyOutputs
from tamiyo_jax.policy._routes import LayerPlan, Route, plan

__all__ = ["apply_folded"]

Blocks = Mapping[str, jax.Array]
"""Rows by node type."""

Weightings = dict[str, jax.Array]
"""By relation, f32[T, K, S] of a dense route or f32[E, K] of one that stays a list."""


class _Links(NamedTuple):
    """Edges of one listed relation.

    Attributes:
      senders: i32[E], rows of the source's block; any for padding.
      receivers: i32[E], rows of the target's block; T, which is out of range, for padding.
      attributes: f32[E, 3].
    """

    senders: jax.Array
    receivers: jax.Array
    attributes: jax.Array


class _Graph(NamedTuple):
    """What every layer reads of a graph.

    Attributes:
      real: by node type, bool[C], the row is a node.
      extras: by node type, f32[C, 3], a node's attributes and the constant 1.
      links: by listed relation.
    """

    real: Blocks
    extras: Blocks
    links: Mapping[str, _Links]


def apply_folded(folded: FoldedParams, layout: GraphLayout, graph: GraphsTuple) -> PolicyOutputs:
    """Outputs for one graph, as `apply` gives them; pure, jittable, vmappable.

    Args:
      folded: parameters that were folded for this layout.
      layout: the graph's layout, static.
      graph: a padded graph with N node and E edge rows of that layout.
    """
    plans = plan(layout)
    features, seen = _read(layout, graph, plans[0].listed)
    h = {kind.name: _encode(folded, kind.name, features[kind.name]) for kind in NODE_TYPES}
    for weights, layer_plan in zip(folded.layers, plans, strict=True):
        h = _layer(weights, layer_plan, seen, h)
    return _heads(folded, seen.real, h)


def _read(
    layout: GraphLayout, graph: GraphsTuple, listed: Sequence[Route]
) -> tuple[Blocks, _Graph]:
    """Features f32[C, 16] by node type, and the rest."""
    table = tables(graph)
    ones = jnp.ones((layout.num_nodes, 1), table.attributes.dtype)
    extras = jnp.concatenate([table.attributes, ones], axis=1)
    links: dict[str, _Links] = {}
    for route in listed:
        rows = layout.edges[route.relation.key].slice
        source, target = (layout.nodes[x] for x in (route.relation.source, route.relation.target))
        links[route.relation.key] = _Links(
            jnp.minimum(table.senders[rows] - source.start, source.capacity - 1),
            table.receivers[rows] - target.start,
            table.edges[rows],
        )
    features, real, rest = (
        {name: array[block.slice] for name, block in layout.nodes.items()}
        for array in (table.x, table.mask, extras)
    )
    return features, _Graph(real, rest, links)


def _encode(folded: FoldedParams, kind: str, x: jax.Array) -> jax.Array:
    linear, (scale, bias) = folded.encoders[kind]
    x = _gelu(_affine(x[:, : linear[0].shape[0]], linear))
    centred = x - jnp.mean(x, axis=1, keepdims=True)
    variance = jnp.mean(centred * centred, axis=1, keepdims=True)
    return centred * jax.lax.rsqrt(variance + LAYER_NORM_EPSILON) * scale[None] + bias[None]


def _gelu(x: jax.Array) -> jax.Array:
    """The exact GELU, by erf: fewer kernels than erfc, at the last digits of results near 0."""
    return 0.5 * x * (1.0 + jax.lax.erf(x * np.float32(np.sqrt(0.5))))


def _affine(x: jax.Array, linear: Linear) -> jax.Array:
    kernel, bias = linear
    return x @ kernel + bias[None]


def _layer(
    folded: FoldedLayer, layer_plan: LayerPlan, graph: _Graph, h: Blocks
) -> dict[str, jax.Array]:
    """``h_t ← GELU(mean of what arrives) + h_t``, for the targets of the plan."""
    weightings = (_attention if layer_plan.attention else _equal)(folded, layer_plan, graph, h)
    after: dict[str, jax.Array] = {}
    for target in layer_plan.targets:
        arriving = jnp.asarray(folded.bias[target])[None]
        for place, kernels in folded.after.items():
            if target in kernels:
                own = [h[target]] if place == "each" and not layer_plan.attention else []
                routes = layer_plan.routes_projected_after(target, place)
                parts = [_weigh(r, weightings, graph, h, folded.before) for r in routes]
                row = jnp.concatenate(own + parts, axis=1) @ kernels[target]
                spare = len(h[target]) - 1 if place == "first" else 0
                arriving = arriving + jnp.pad(row, ((0, spare), (0, 0)))
        for route in [route for route in layer_plan.into(target) if route.before]:
            if route.dense:
                arriving = arriving + _weigh(route, weightings, graph, h, folded.before)
            else:
                # Into the sum itself: a block of zeros for each relation would be as large as it.
                arriving = jnp.broadcast_to(arriving, (route.rows, arriving.shape[1]))
                messages = _messages(route, weightings, graph, h, folded.before)
                receivers = graph.links[route.relation.key].receivers
                arriving = arriving.at[receivers].add(messages, mode="drop")
        updated = jnp.broadcast_to(_gelu(arriving), (len(h[target]), arriving.shape[1]))
        same = updated.shape == h[target].shape
        after[target] = updated + h[target] if same else updated
    return after


def _weigh(
    route: Route, weightings: Weightings, graph: _Graph, h: Blocks, before: Mapping[str, Array]
) -> jax.Array:
    """Weighted sources: f32[T, C] if they are projected before, else f32[T, K·D]."""
    key = route.relation.key
    weights, x = weightings[key], h[route.relation.source][: route.sources]
    heads = weights.shape[1]
    if route.dense:
        if key in before:
            values = (x @ before[key]).reshape(route.sources, heads, -1)
            values = jnp.swapaxes(values, 0, 1).reshape(heads * route.sources, -1)
            return weights.reshape(route.rows, heads * route.sources) @ values
        return (weights.reshape(-1, route.sources) @ x).reshape(route.rows, -1)
    messages = _messages(route, weightings, graph, h, before)
    return jax.ops.segment_sum(messages, graph.links[key].receivers, route.rows)


def _messages(
    route: Route, weightings: Weightings, graph: _Graph, h: Blocks, before: Mapping[str, Array]
) -> jax.Array:
    """What the edges of a list carry: f32[E, C] if projected before, else f32[E, K·D]."""
    key = route.relation.key
    weights, x = weightings[key], h[route.relation.source]
    senders, heads = graph.links[key].senders, weights.shape[1]
    if not route.before:
        return (weights[:, :, None] * x[senders][:, None]).reshape(len(senders), -1)
    if len(senders) < route.sources:
        values = x[senders] @ before[key]
    else:
        values = (x @ before[key])[senders]
    parts = jnp.split(values, heads, axis=1)
    return jnp.asarray(sum(weights[:, k, None] * part for k, part in enumerate(parts)))


def _equal(folded: FoldedLayer, layer_plan: LayerPlan, graph: _Graph, h: Blocks) -> Weightings:
    """1/n over the n sources of each target."""
    del folded, h
    weightings = {r.relation.key: _share(r, graph) for r in layer_plan.routes if r.edges is None}
    if layer_plan.listed:
        slots, count = _slots(layer_plan.listed, graph.links)
        edges = jax.ops.segment_sum(jnp.ones(slots.shape, jnp.float32), slots, count + 1)
        weightings |= _spread(layer_plan.listed, graph.links, (1.0 / edges[slots])[:, None])
    return weightings


def _share(route: Route, graph: _Graph) -> jax.Array:
    """1/n of the real sources: f32[1, 1, S]."""
    real = graph.real[route.relation.source][: route.sources].astype(jnp.float32)
    return (real / jnp.maximum(jnp.sum(real), 1.0))[None, None]


def _attention(folded: FoldedLayer, layer_plan: LayerPlan, graph: _Graph, h: Blocks) -> Weightings:
    """Softmax over the sources of each target, by head."""
    terms: dict[str, jax.Array] = {}
    for kind, kernel in folded.terms.items():
        rows = jnp.concatenate([h[kind], graph.extras[kind]], axis=1) @ kernel
        terms[kind] = rows.reshape(len(rows), len(layer_plan.terms(kind)), -1)
    weightings = _attention_of_edges(folded, layer_plan, graph, terms) if layer_plan.listed else {}
    for route in layer_plan.routes:
        if route.edges is None:
            attends = route.attends
            key = route.relation.key
            weightings[key] = (
                _softmax(route, layer_plan, graph, terms) if attends else _share(route, graph)
            )
    return weightings


def _softmax(
    route: Route, layer_plan: LayerPlan, graph: _Graph, terms: Mapping[str, jax.Array]
) -> jax.Array:
    """Attention of a complete relation: f32[T, K, S], 0 where the source is no node.

    A logit is ``leaky(a_t + b_s)``, and the largest of a target is that of the largest ``b``. So
    ``exp(logit - largest)`` is ``exp(b_s - b)`` where ``a_t + b_s`` is positive, and elsewhere
    ``exp(0.2 (b_s - b))``, times ``exp(-0.8 (a_t + b))`` if ``a_t + b`` is positive: exponentials
    of rows, none of cells, and none of a positive number.
    """
    source, target = route.relation.source, route.relation.target
    real = graph.real[source][:, None]
    sent = terms[source][:, layer_plan.terms(source).index((route, "source"))]
    sent = jnp.where(real, sent, jnp.finfo(sent.dtype).min)
    asked = terms[target][: route.rows, layer_plan.terms(target).index((route, "target"))]
    largest = jnp.max(sent, axis=0)[None]
    above, below = (
        jnp.where(real, jnp.exp(slope * (sent - largest)), 0.0) for slope in (1.0, LEAKY_SLOPE)
    )
    fall = jnp.exp((LEAKY_SLOPE - 1.0) * nn.relu(asked + largest))
    positive = asked[:, :, None] + sent.T[None] > 0.0
    weights = jnp.where(positive, above.T[None], below.T[None] * fall[:, :, None])
    return weights / (jnp.sum(weights, axis=2, keepdims=True) + SOFTMAX_EPSILON)


def _attention_of_edges(
    folded: FoldedLayer, layer_plan: LayerPlan, graph: _Graph, terms: Mapping[str, jax.Array]
) -> Weightings:
    """Attention along the edges of all listed relations at once."""
    ends = accumulate((x.shape[0] * x.shape[1] for x in terms.values()), initial=0)
    starts = dict(zip(terms, ends, strict=False))  # the last end starts nothing
    table = jnp.concatenate([x.reshape(-1, x.shape[2]) for x in terms.values()])

    def rows(route: Route, end: str, kind: str, nodes: jax.Array) -> jax.Array:
        found = layer_plan.terms(kind)
        return starts[kind] + nodes * len(found) + found.index((route, end))

    listed = [(route, graph.links[route.relation.key]) for route in layer_plan.listed]
    senders = [rows(r, "source", r.relation.source, links.senders) for r, links in listed]
    receivers = [
        rows(r, "target", r.relation.target, jnp.minimum(links.receivers, r.rows - 1))
        for r, links in listed
    ]
    attributes = jnp.concatenate([links.attributes for _, links in listed])
    kernels = folded.edges[
        np.repeat(np.arange(len(listed)), [len(links.senders) for _, links in listed])
    ]
    logits = table[jnp.concatenate(senders)] + table[jnp.concatenate(receivers)]
    for column in range(EDGE_WIDTH):
        logits = logits + attributes[:, column, None] * kernels[:, column]
    logits = nn.leaky_relu(logits, LEAKY_SLOPE)
    slots, count = _slots(layer_plan.listed, graph.links)
    peak = jax.ops.segment_max(logits, slots, count + 1)
    weights = jnp.exp(logits - peak[slots])
    total = jax.ops.segment_sum(weights, slots, count + 1)
    return _spread(layer_plan.listed, graph.links, weights / total[slots])


def _slots(listed: Sequence[Route], links: Mapping[str, _Links]) -> tuple[jax.Array, int]:
    """Receivers as rows of the concatenated targets of all listed relations, and their number.

    The row after the last one is padding's.
    """
    count = sum(route.rows for route in listed)
    slots: list[jax.Array] = []
    start = 0
    for route in listed:
        receivers = links[route.relation.key].receivers
        slots.append(jnp.where(receivers < route.rows, start + receivers, count))
        start += route.rows
    return jnp.concatenate(slots), count


def _spread(listed: Sequence[Route], links: Mapping[str, _Links], weights: jax.Array) -> Weightings:
    """Weights f32[E, K] of all listed edges as weightings; an edge that occurs twice adds up."""
    ends = list(accumulate(route.edges or 0 for route in listed))
    parts = dict(zip(listed, jnp.split(weights, ends[:-1]), strict=True))
    dense = [route for route in listed if route.dense]
    weightings = {r.relation.key: part for r, part in parts.items() if not r.dense}
    if not dense:
        return weightings
    sizes = [route.rows * route.sources for route in dense]
    cells: list[jax.Array] = []
    for route, end, size in zip(dense, accumulate(sizes), sizes, strict=True):
        edges = links[route.relation.key]
        cell = end - size + edges.receivers * route.sources + edges.senders
        cells.append(jnp.where(edges.receivers < route.rows, cell, sum(sizes)))
    spread = jnp.zeros((sum(sizes) + 1, weights.shape[1]), weights.dtype)
    spread = spread.at[jnp.concatenate(cells)].add(jnp.concatenate([parts[r] for r in dense]))
    blocks = jnp.split(spread, list(accumulate(sizes)))
    for route, block in zip(dense, blocks[:-1], strict=True):
        block = block.reshape(route.rows, route.sources, -1)
        weightings[route.relation.key] = jnp.swapaxes(block, 1, 2)
    return weightings


def _heads(folded: FoldedParams, real: Blocks, h: Blocks) -> PolicyOutputs:
    embedding = h["global"][0]
    read = _affine(h["global"], folded.heads)[0]
    hidden = embedding.shape[0] // 2
    linear = len(read) - hidden * len(BOUNDED_HEADS)
    methods = linear - NUM_ACTIONS - NUM_RISK_CLASSES - 1 - NUM_BREAKER_LOGITS
    widths = (NUM_ACTIONS, methods, NUM_RISK_CLASSES, 1, NUM_BREAKER_LOGITS, hidden, hidden)
    values = jnp.split(read, list(accumulate(widths))[:-1])
    outputs = dict(zip((*LINEAR_HEADS, *BOUNDED_HEADS), values, strict=True))
    for name in BOUNDED_HEADS:
        outputs[name] = jnp.tanh(_affine(_gelu(outputs[name])[None], folded.bounded[name])[0])
    outputs["value"] = outputs["value"][0]
    scores = {
        f"{kind}_scores": jnp.where(real[kind], _affine(h[kind], linear)[:, 0], -jnp.inf)
        for kind, linear in folded.scores.items()
    }
    return PolicyOutputs(
        **outputs,
        **scores,
        param_delta=outputs["policy_params"][0],
        graph_embedding=embedding,
        rationale=None,
    )
