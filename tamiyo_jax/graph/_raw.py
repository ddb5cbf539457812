"""`RawGraph`: a packet and its blueprint as arrays, before normalisation."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Int32

from tamiyo_jax.graph._layout import GraphLayout
from tamiyo_jax.graph._relations import EDGE_WIDTH, RELATIONS, find_relation
from tamiyo_jax.graph._schema import ATTRIBUTE_WIDTH, FEATURE_WIDTH, NODE_TYPES

__all__ = ["RawGraph", "blank"]


class RawGraph(NamedTuple):
    """Arrays in the shape of a layout with N node rows, E edge rows, T types, R relations.

    Attributes:
      values: f32[N, 16], raw column values; statistic columns are not yet normalised;
        0 where absent.
      present: bool[N, 16], a finite value stands there.
      reported: i32[T, 16], how many nodes of each type have a value in their source, finite or
        not, at the column of the value; what coverage counts.
      mask: bool[N], the row is a real node.
      attributes: f32[N, 2], per-node scalars that edges of complete relations read.
      edges: f32[E, 3], attributes of the listed edges.
      edge_mask: bool[E], the row is a real edge.
      senders: i32[E], row of the node table; the padding node's for padding.
      receivers: i32[E], row of the node table; the padding node's for padding.
      expected_nodes: i32[T], nodes that the input holds, cut or not.
      expected_edges: i32[R], edges that the input calls for, cut or not.
    """

    values: Float32[np.ndarray, "nodes 16"]
    present: Bool[np.ndarray, "nodes 16"]
    reported: Int32[np.ndarray, "types 16"]
    mask: Bool[np.ndarray, " nodes"]
    attributes: Float32[np.ndarray, "nodes 2"]
    edges: Float32[np.ndarray, "edges 3"]
    edge_mask: Bool[np.ndarray, " edges"]
    senders: Int32[np.ndarray, " edges"]
    receivers: Int32[np.ndarray, " edges"]
    expected_nodes: Int32[np.ndarray, " types"]
    expected_edges: Int32[np.ndarray, " relations"]


def blank(layout: GraphLayout) -> RawGraph:
    """A graph of padding alone, for the encoder to write into."""
    rows, links = layout.num_nodes, layout.num_edges
    senders = np.zeros(links, np.int32)
    receivers = np.zeros(links, np.int32)
    for key, block in layout.edges.items():
        senders[block.slice] = layout.nodes[find_relation(key).source].padding
        receivers[block.slice] = layout.nodes[find_relation(key).target].padding
    return RawGraph(
        values=np.zeros((rows, FEATURE_WIDTH), np.float32),
        present=np.zeros((rows, FEATURE_WIDTH), np.bool_),
        reported=np.zeros((len(NODE_TYPES), FEATURE_WIDTH), np.int32),
        mask=np.zeros(rows, np.bool_),
        attributes=np.zeros((rows, ATTRIBUTE_WIDTH), np.float32),
        edges=np.zeros((links, EDGE_WIDTH), np.float32),
        edge_mask=np.zeros(links, np.bool_),
        senders=senders,
        receivers=receivers,
        expected_nodes=np.zeros(len(NODE_TYPES), np.int32),
        expected_edges=np.zeros(len(RELATIONS), np.int32),
    )
