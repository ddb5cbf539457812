"""The padded graph and its ordinary jraph form give the same results."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import jraph
import numpy as np
import pytest

from tamiyo_jax.config import GraphConfig
from tamiyo_jax.graph import (
    NODE_TYPES,
    RELATIONS,
    Registries,
    build,
    compact,
    encode,
    expand_layout,
    init_normalizer,
    layout_for,
)

CONFIG = GraphConfig(max_seeds=4, max_blueprints=2)
TYPES = [kind.name for kind in NODE_TYPES]


@pytest.fixture(params=["complete", "expanded"], scope="module")
def example(request, make_packet, make_blueprint):
    blueprint = make_blueprint(depth=5, allowed_blending_methods=("linear",))
    other = make_blueprint("other", depth=2)
    layout = layout_for(blueprint, CONFIG)
    layout = layout if request.param == "complete" else expand_layout(layout)
    packet = make_packet(candidate_blueprint_ids=("bp", "other"))
    raw, _ = encode(packet, blueprint, (other,), Registries.empty(), layout, config=CONFIG)
    _, graph = jax.jit(build, static_argnums=0)(layout, init_normalizer(), raw)
    return layout, graph


def test_real_nodes_and_edges_come_first_and_one_padding_graph_follows(example):
    layout, graph = example
    ordinary = compact(layout, graph)
    real = int(graph.nodes["mask"].sum())
    assert ordinary.n_node.tolist() == [real, layout.num_nodes - real]
    assert ordinary.globals.shape == (2, 16)
    assert not np.asarray(ordinary.globals[1]).any()
    mask = np.asarray(jraph.get_node_padding_mask(ordinary))
    assert mask.sum() == real
    np.testing.assert_array_equal(
        np.asarray(ordinary.nodes["x"])[mask],
        np.asarray(graph.nodes["x"])[np.asarray(graph.nodes["mask"])],
    )
    assert int(jraph.get_number_of_padding_with_graphs_edges(ordinary)) == ordinary.n_edge[1]
    edges = int(ordinary.n_edge[0])
    assert np.asarray(ordinary.senders)[:edges].max() < real
    assert np.asarray(ordinary.receivers)[edges:].min() >= real


def test_the_complete_and_the_written_out_form_compact_to_the_same_graph(
    make_packet, make_blueprint
):
    blueprint = make_blueprint(depth=5)
    forms = []
    for layout in (
        layout_for(blueprint, CONFIG),
        expand_layout(layout_for(blueprint, CONFIG)),
    ):
        raw, _ = encode(make_packet(), blueprint, (), Registries.empty(), layout, config=CONFIG)
        _, graph = jax.jit(build, static_argnums=0)(layout, init_normalizer(), raw)
        forms.append(compact(layout, graph))
    for ours, theirs in zip(*map(jax.tree.leaves, forms), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def padded_mean(layout, graph, one):
    """Mean over the neighbours of each target row, read off the padded blocks."""
    source, target = layout.nodes[one.source], layout.nodes[one.target]
    x, mask = np.asarray(graph.nodes["x"]), np.asarray(graph.nodes["mask"])
    if not layout.is_complete(one):
        outside = np.ones(layout.num_edges, np.bool_)
        outside[layout.edges[one.key].slice] = False
        receivers = np.where(outside, layout.nodes["global"].padding, graph.receivers)
        means = jraph.segment_mean(
            jnp.asarray(x[graph.senders]), jnp.asarray(receivers), layout.num_nodes
        )
        return np.asarray(means)[target.slice][mask[target.slice]]
    neighbours = x[source.slice][mask[source.slice]]
    neighbours = neighbours[:1] if one.active == "source" else neighbours
    means = np.zeros((np.count_nonzero(mask[target.slice]), x.shape[1]), np.float32)
    means[: 1 if one.active == "target" else None] = neighbours.mean(axis=0)
    return means


@pytest.mark.parametrize("one", RELATIONS, ids=lambda one: one.key)
def test_means_over_neighbours_agree_with_jraph_on_the_compact_form(example, one):
    layout, graph = example
    ordinary = compact(layout, graph)
    real_nodes = np.asarray(jraph.get_node_padding_mask(ordinary))
    keep = np.asarray(ordinary.edges["relation"]) == RELATIONS.index(one)
    keep &= np.asarray(jraph.get_edge_padding_mask(ordinary))
    receivers = np.where(keep, np.asarray(ordinary.receivers), layout.num_nodes - 1)
    theirs = np.asarray(
        jraph.segment_mean(
            jnp.asarray(np.asarray(ordinary.nodes["x"])[np.asarray(ordinary.senders)]),
            jnp.asarray(receivers),
            layout.num_nodes,
        )
    )
    of_type = real_nodes & (np.asarray(ordinary.nodes["type"]) == TYPES.index(one.target))
    assert keep.any()
    np.testing.assert_allclose(padded_mean(layout, graph, one), theirs[of_type], atol=1e-5)


def test_a_jraph_network_runs_on_the_compact_form(example):
    layout, graph = example
    ordinary = compact(layout, graph)
    ordinary = ordinary._replace(nodes=ordinary.nodes["x"], edges=ordinary.edges["x"])
    network = jraph.GraphConvolution(
        update_node_fn=lambda nodes: nodes, symmetric_normalization=False
    )
    out = network(ordinary).nodes
    assert out.shape == (layout.num_nodes, 16)
    assert np.isfinite(np.asarray(out)).all()
