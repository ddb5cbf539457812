"""From a `RawGraph` to the `GraphsTuple` that the network reads."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float32

from tamiyo_jax.graph._edges import complete_attributes, complete_rows
from tamiyo_jax.graph._jraph import GraphsTuple, pad_with_graphs
from tamiyo_jax.graph._layout import GraphLayout, bucket
from tamiyo_jax.graph._normalizer import Normalizer, update_and_normalize
from tamiyo_jax.graph._raw import RawGraph
from tamiyo_jax.graph._relations import EDGE_WIDTH, RELATIONS

__all__ = ["build", "compact"]


def build(
    layout: GraphLayout,
    normalizer: Normalizer,
    raw: RawGraph,
    *,
    rate: float | Float32[Array, ""] = 0.1,
) -> tuple[Normalizer, GraphsTuple]:
    """Update the normaliser with a graph's values and normalise them.

    Jit with `layout` static; `vmap` over `normalizer` and `raw`.

    Args:
      layout: N node rows, E edge rows.
      normalizer: the state before the step.
      raw: arrays in the shape of the layout.
      rate: weight of the newest step in the statistics.

    Returns:
      The state after the step, and one padded graph: ``nodes = {"x": f32[N, 16],
      "mask": bool[N], "attributes": f32[N, 2]}``, ``edges = {"x": f32[E, 3], "mask":
      bool[E]}``, `senders` and `receivers` i32[E] into the node table. Padding stands
      inside each block, so the masks decide; `compact` gives the form that jraph's own
      functions expect.
    """
    values, present = jnp.asarray(raw.values), jnp.asarray(raw.present)
    normalizer, x = update_and_normalize(layout, normalizer, values, present, rate=rate)
    graph = GraphsTuple(
        nodes={"x": x, "mask": jnp.asarray(raw.mask), "attributes": jnp.asarray(raw.attributes)},
        edges={"x": jnp.asarray(raw.edges), "mask": jnp.asarray(raw.edge_mask)},
        senders=jnp.asarray(raw.senders),
        receivers=jnp.asarray(raw.receivers),
        globals=None,
        n_node=jnp.array([layout.num_nodes], jnp.int32),
        n_edge=jnp.array([layout.num_edges], jnp.int32),
    )
    return normalizer, graph


def compact(layout: GraphLayout, graph: GraphsTuple) -> GraphsTuple:
    """The ordinary jraph form of a built graph, on the host.

    Real nodes and edges come first, complete relations are written out, and one padding
    graph follows, so `jraph.get_node_padding_mask` and its kind apply.

    Args:
      layout: of the graph.
      graph: one graph from `build`, without a batch axis.

    Returns:
      A graph with ``nodes = {"x": f32[n, 16], "attributes": f32[n, 2], "type": i32[n]}``,
      ``edges = {"x": f32[e, 3], "relation": i32[e]}`` (places in `NODE_TYPES` and
      `RELATIONS`), ``globals`` f32[2, 16] (the global node's features, and zeros),
      ``n_node = [real, padding]`` and ``n_edge`` alike; n is the layout's number of rows,
      e a power of two.
    """
    table = jax.tree.map(np.asarray, graph)
    mask, attributes = table.nodes["mask"], table.nodes["attributes"]
    types = np.concatenate(
        [np.full(capacity + 1, i) for i, (_, capacity) in enumerate(layout.node_capacities)]
    ).astype(np.int32)
    row = np.cumsum(mask, dtype=np.int32) - 1

    parts: list[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]] = []
    for index, relation in enumerate(RELATIONS):
        if layout.is_complete(relation):
            senders, receivers = complete_rows(layout, relation, mask)
            values = complete_attributes(relation, attributes, senders, receivers)
        else:
            block = layout.edges[relation.key].slice
            real = table.edges["mask"][block]
            senders, receivers = table.senders[block][real], table.receivers[block][real]
            values = table.edges["x"][block][real]
        parts.append((senders, receivers, values, np.full(len(senders), index, np.int32)))
    senders, receivers, values, relations = (
        np.concatenate(column) for column in zip(*parts, strict=True)
    )
    links = len(senders)
    ordinary = GraphsTuple(
        nodes={
            "x": table.nodes["x"][mask],
            "attributes": attributes[mask],
            "type": types[mask],
        },
        edges={"x": values.reshape(links, EDGE_WIDTH), "relation": relations},
        senders=jnp.asarray(row[senders]),
        receivers=jnp.asarray(row[receivers]),
        globals=table.nodes["x"][:1],
        n_node=jnp.array([np.count_nonzero(mask)], jnp.int32),
        n_edge=jnp.array([links], jnp.int32),
    )
    return pad_with_graphs(
        ordinary, n_node=layout.num_nodes, n_edge=bucket(links, 2 * links + 1), n_graph=2
    )
