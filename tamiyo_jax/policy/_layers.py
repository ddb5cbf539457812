"""Message passing along one relation, in two forms with one set of parameters.

A *listed* relation has edges in the graph's edge table and uses segment operations. A
*complete* one links every source with every target; its edges are never materialised: the
mean is one row for all targets, and attention logits are a broadcast sum over node terms.
Either form computes the same function, so a layout may change under the same parameters.

Shapes: S and T are the rows of the source's and the target's block, capacity plus one; the
last row of a block is its padding node. D is the width of the input.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32, Integer

from tamiyo_jax.graph import EDGE_WIDTH, NODE_TYPES, RELATIONS, GraphLayout, GraphsTuple, Relation

__all__ = [
    "LEAKY_SLOPE",
    "SOFTMAX_EPSILON",
    "Complete",
    "Edges",
    "GatRelation",
    "Listed",
    "RelationalLayer",
    "SageRelation",
    "Tables",
    "gelu",
    "node_blocks",
    "relation_edges",
    "tables",
]

LEAKY_SLOPE = 0.2
SOFTMAX_EPSILON = 1e-16  # what PyTorch Geometric adds to the denominator


class Listed(NamedTuple):
    """Edges from the table; padding edges join the padding nodes of both blocks.

    Attributes:
      senders: i32[E], rows within the source's block.
      receivers: i32[E], rows within the target's block.
      attributes: f32[E, 3].
    """

    senders: jax.Array
    receivers: jax.Array
    attributes: jax.Array


class Complete(NamedTuple):
    """Every sending source meets every receiving target.

    The attributes of the edge s → t are ``source_terms[s] + target_terms[t]``.

    Attributes:
      sources: bool[S], rows that send.
      targets: bool[T], rows that receive.
      source_terms: f32[S, 3], what the source contributes, constants included.
      target_terms: f32[T, 3], what the target contributes.
    """

    sources: jax.Array
    targets: jax.Array
    source_terms: jax.Array
    target_terms: jax.Array


Edges = Listed | Complete


class Tables(NamedTuple):
    """The arrays of a graph that the network reads, with the types that `GraphsTuple` leaves open.

    Attributes:
      x: f32[N, 16], node features.
      mask: bool[N], the row is a real node.
      attributes: f32[N, 2], node scalars that edges of complete relations read.
      edges: f32[E, 3], attributes of the listed edges.
      senders: i32[E].
      receivers: i32[E].
    """

    x: jax.Array
    mask: jax.Array
    attributes: jax.Array
    edges: jax.Array
    senders: jax.Array
    receivers: jax.Array


def tables(graph: GraphsTuple) -> Tables:
    """The tables of a graph."""
    nodes = cast(Mapping[str, jax.Array], graph.nodes)
    edges = cast(Mapping[str, jax.Array], graph.edges)
    return Tables(
        nodes["x"],
        nodes["mask"],
        nodes["attributes"],
        edges["x"],
        cast(jax.Array, graph.senders),
        cast(jax.Array, graph.receivers),
    )


def node_blocks(layout: GraphLayout, table: jax.Array) -> dict[str, jax.Array]:
    """Split a node table [N, ...] into its blocks [capacity + 1, ...], by node type."""
    return {name: table[block.start : block.padding + 1] for name, block in layout.nodes.items()}


def relation_edges(layout: GraphLayout, graph: Tables) -> dict[str, Edges]:
    """Edges of each relation, by key, in the form that the layout gives it."""
    masks = node_blocks(layout, graph.mask)
    attributes = node_blocks(layout, graph.attributes)
    return {
        relation.key: (
            _complete(relation, masks, attributes)
            if layout.is_complete(relation)
            else _gather_listed(layout, relation, graph)
        )
        for relation in RELATIONS
    }


def _gather_listed(layout: GraphLayout, relation: Relation, graph: Tables) -> Listed:
    rows = layout.edges[relation.key].slice
    return Listed(
        graph.senders[rows] - layout.nodes[relation.source].start,
        graph.receivers[rows] - layout.nodes[relation.target].start,
        graph.edges[rows],
    )


def _complete(
    relation: Relation, masks: Mapping[str, jax.Array], attributes: Mapping[str, jax.Array]
) -> Complete:
    ends = {"source": relation.source, "target": relation.target}
    real = {end: masks[kind] for end, kind in ends.items()}
    if relation.active is not None:  # the active blueprint is row 0 of its block
        real[relation.active] &= jnp.arange(real[relation.active].shape[0]) == 0
    terms = {end: [jnp.zeros(mask.shape)] * EDGE_WIDTH for end, mask in real.items()}
    for column, term in enumerate(relation.terms or ()):
        if term.end == "constant":
            terms["source"][column] = jnp.full(real["source"].shape, term.value)
        else:
            terms[term.end][column] = attributes[ends[term.end]][:, term.attribute]
    return Complete(
        real["source"],
        real["target"],
        jnp.stack(terms["source"], axis=1),
        jnp.stack(terms["target"], axis=1),
    )


def gelu(x: Float32[Array, "*shape"]) -> Float32[Array, "*shape"]:
    """The exact GELU, by the error function."""
    return nn.gelu(x, approximate=False)


class SageRelation(nn.Module):
    """``W_l · mean of the neighbours + W_r · own + b`` (Hamilton et al. 2017, mean variant).

    The mean over no neighbours is 0; an edge that occurs twice counts twice.
    """

    width: int

    @nn.compact
    def __call__(self, source: jax.Array, target: jax.Array, edges: Edges) -> jax.Array:
        """Messages f32[T, width] from `source` f32[S, D] to `target` f32[T, D]."""
        project = nn.Dense(self.width, use_bias=False, name="neighbours")
        if isinstance(edges, Listed):
            mean = _segment_mean(source[edges.senders], edges.receivers, target.shape[0])
            neighbours = project(mean)
        else:
            count = jnp.maximum(jnp.sum(edges.sources, dtype=jnp.float32), 1.0)
            total = jnp.sum(source, axis=0, keepdims=True, where=edges.sources[:, None])
            neighbours = jnp.where(edges.targets[:, None], project(total / count), 0.0)
        return neighbours + nn.Dense(self.width, name="root")(target)


class GatRelation(nn.Module):
    """Attention over the neighbours with edge attributes, heads averaged, no self loops.

    Veličković et al. 2018, equations 1–4 and 6, with the edge term of PyTorch Geometric's
    ``GATConv(edge_dim=3)``. A node without edges receives the bias alone. The attention
    weights are sown into the collection ``intermediates`` as ``attention``: f32[E, K] of a
    listed relation, f32[T, S, K] of a complete one.
    """

    width: int
    heads: int

    @nn.compact
    def __call__(self, source: jax.Array, target: jax.Array, edges: Edges) -> jax.Array:
        """Messages f32[T, width] from `source` f32[S, D] to `target` f32[T, D]."""
        project_source, attend_source = self._projection("source", source.shape[1])
        project_target, attend_target = self._projection("target", target.shape[1])
        project_edge, attend_edge = self._projection("edge", EDGE_WIDTH)
        bias = self.param("bias", nn.initializers.zeros, (self.width,))

        values = jnp.einsum("sd,dkc->skc", source, project_source)
        queries = jnp.einsum("td,dkc->tkc", target, project_target)
        from_source = jnp.einsum("skc,kc->sk", values, attend_source)
        from_target = jnp.einsum("tkc,kc->tk", queries, attend_target)
        from_edge = jnp.einsum("akc,kc->ak", project_edge, attend_edge)  # [3, K]

        if isinstance(edges, Listed):
            logits = from_source[edges.senders] + from_target[edges.receivers]
            logits = nn.leaky_relu(logits + edges.attributes @ from_edge, LEAKY_SLOPE)
            rows = target.shape[0]
            # Padding edges share the padding node's segment, so no real softmax sees them.
            attention = _segment_softmax(logits, edges.receivers, rows)
            messages = jnp.mean(attention[:, :, None] * values[edges.senders], axis=1)
            received = jax.ops.segment_sum(messages, edges.receivers, rows)
        else:
            sent = from_source + edges.source_terms @ from_edge
            asked = from_target + edges.target_terms @ from_edge
            logits = nn.leaky_relu(asked[:, None, :] + sent[None, :, :], LEAKY_SLOPE)
            joined = edges.targets[:, None, None] & edges.sources[None, :, None]
            attention = _masked_softmax(logits, joined)
            received = jnp.einsum("tsk,skc->tc", attention, values) / self.heads
        self.sow("intermediates", "attention", attention)
        return received + bias[None, :]

    def _projection(self, end: str, width: int) -> tuple[jax.Array, jax.Array]:
        """Projection f32[width, K, C] and attention vectors f32[K, C] of one term."""
        project = nn.initializers.glorot_uniform(in_axis=0, out_axis=(1, 2))
        shape = (self.heads, self.width)
        return (
            self.param(f"{end}_kernel", project, (width, *shape)),
            self.param(f"{end}_attention", nn.initializers.glorot_uniform(), shape),
        )


def _segment_mean(
    values: Float32[Array, "edges d"], segments: Integer[Array, " edges"], count: int
) -> Float32[Array, "segments d"]:
    """Mean of the rows of each segment, f32[count, D]; 0 where a segment has none."""
    total = jax.ops.segment_sum(values, segments, count)
    rows = jax.ops.segment_sum(jnp.ones(segments.shape, values.dtype), segments, count)
    return total / jnp.maximum(rows, 1.0)[:, None]


def _segment_softmax(
    logits: Float32[Array, "edges heads"], segments: Integer[Array, " edges"], count: int
) -> Float32[Array, "edges heads"]:
    """Softmax of f32[E, K] over the rows of each segment, by column."""
    peak = jax.lax.stop_gradient(jax.ops.segment_max(logits, segments, count))
    weights = jnp.exp(logits - peak[segments])
    return weights / jax.ops.segment_sum(weights, segments, count)[segments]


def _masked_softmax(logits: jax.Array, mask: jax.Array) -> jax.Array:
    """Softmax over axis 1 where `mask` holds, and 0 elsewhere, also where it never holds."""
    lowest = jnp.finfo(logits.dtype).min
    mask = jnp.broadcast_to(mask, logits.shape)
    peak = jnp.max(logits, axis=1, keepdims=True, where=mask, initial=lowest)
    weights = jnp.exp(jnp.where(mask, logits - jax.lax.stop_gradient(peak), -jnp.inf))
    return weights / (jnp.sum(weights, axis=1, keepdims=True) + SOFTMAX_EPSILON)


class RelationalLayer(nn.Module):
    """One layer over all relations: ``h_t ← GELU(mean of what arrives) + h_t``.

    Every relation into a type enters its mean, with or without edges. The input is added
    wherever the widths agree. Dropout follows, in training only.

    Attributes:
      relation: makes the module of one relation, by name.
      dropout: rate of dropout.
    """

    relation: Callable[..., nn.Module]
    dropout: float

    @nn.compact
    def __call__(
        self, h: Mapping[str, jax.Array], edges: Mapping[str, Edges], *, deterministic: bool
    ) -> dict[str, jax.Array]:
        """New embeddings by node type, each f32[capacity + 1, width]."""
        arriving: dict[str, list[jax.Array]] = {kind.name: [] for kind in NODE_TYPES}
        for relation in RELATIONS:
            message = self.relation(name=relation.key)(
                h[relation.source], h[relation.target], edges[relation.key]
            )
            arriving[relation.target].append(message)
        dropout = nn.Dropout(self.dropout, deterministic=deterministic)
        return {name: dropout(self._update(h[name], ys)) for name, ys in arriving.items()}

    @staticmethod
    def _update(before: jax.Array, messages: list[jax.Array]) -> jax.Array:
        after = gelu(jnp.mean(jnp.stack(messages), axis=0))
        return after + before if after.shape == before.shape else after
