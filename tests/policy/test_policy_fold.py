"""Folding: the same outputs from rewritten parameters, whatever the graph and the layout."""

from __future__ import annotations

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from policy.worlds import FULL, LAYOUT, observation, packet, raw_graph, row_of, seed, written_out

from tamiyo_jax.config import GraphConfig, PolicyConfig
from tamiyo_jax.contracts import SeedStage
from tamiyo_jax.graph import NODE_TYPES, RELATIONS, GraphLayout, RawGraph, init_normalizer
from tamiyo_jax.graph._raw import blank
from tamiyo_jax.policy import GraphPolicy, PolicyOutputs, fold, init_params, policy_step
from tamiyo_jax.policy._routes import LAYERS, plan

CONFIG = PolicyConfig.small()
step = jax.jit(policy_step, static_argnames=("layout", "rate"))

# Listed relations between so many nodes that edges stay a list, and are fewer than the nodes.
SPARSE = GraphLayout.of(
    {"global": 1, "seed": 5, "blueprint": 1, "layer": 100, "activation": 50, "parameter": 30},
    {relation.key: 6 for relation in RELATIONS if not relation.complete}
    | {"activation__affects__layer": 6, "layer__belongs_to__blueprint": 6},
)


@pytest.fixture(scope="module")
def params():
    """Random parameters, action logits and biases included, so that no term is zero."""
    start = init_params(CONFIG, jax.random.key(3))
    leaves, tree = jax.tree.flatten(start)
    rng = np.random.default_rng(4)
    noise = [jnp.asarray(rng.normal(0.0, 0.1, x.shape), jnp.float32) for x in leaves]
    return jax.tree.unflatten(tree, [x + y for x, y in zip(leaves, noise, strict=True)])


@pytest.fixture(scope="module")
def folded(params):
    """The parameters folded for the layouts of this file."""
    layouts = (LAYOUT, SPARSE, written_out(blank(LAYOUT))[0])
    return {layout: fold(params, layout) for layout in layouts}


def run(params, layout: GraphLayout, raw: RawGraph) -> PolicyOutputs:
    _, outputs = step(params, init_normalizer(), raw, layout=layout, rate=0.1)
    return jax.device_get(outputs)


def assert_close(one: PolicyOutputs, other: PolicyOutputs) -> None:
    chex.assert_trees_all_close(one, other, rtol=0, atol=1e-5)


def counts(full: dict[str, int]) -> st.SearchStrategy[dict[str, int]]:
    return st.fixed_dictionaries(
        {name: st.sampled_from([0, 1, most]) for name, most in full.items() if name != "global"}
    )


@pytest.mark.slow
@settings(max_examples=40)
@given(counts=counts(FULL), edges=st.integers(0, 4), draw=st.integers(0, 2**31))
def test_folded_parameters_give_the_same_outputs(params, folded, counts, edges, draw):
    """Empty types, empty relations, edges that occur twice, single nodes and full blocks."""
    raw = raw_graph(np.random.default_rng(draw), counts, edges=edges)
    assert_close(run(params, LAYOUT, raw), run(folded[LAYOUT], LAYOUT, raw))


@pytest.mark.slow
@settings(max_examples=20)
@given(counts=counts(FULL), edges=st.integers(0, 4), draw=st.integers(0, 2**31))
def test_they_do_where_every_relation_is_written_out(params, folded, counts, edges, draw):
    raw = raw_graph(np.random.default_rng(draw), counts, edges=edges)
    assert_close(run(params, LAYOUT, raw), run(folded[written_out(raw)[0]], *written_out(raw)))


@settings(max_examples=20)
@given(
    counts=counts({kind.name: SPARSE.nodes[kind.name].capacity for kind in NODE_TYPES}),
    edges=st.integers(0, 6),
    draw=st.integers(0, 2**31),
)
@pytest.mark.slow
def test_they_do_where_edges_stay_a_list(params, folded, counts, edges, draw):
    raw = raw_graph(np.random.default_rng(draw), counts, edges=edges, layout=SPARSE)
    assert_close(run(params, SPARSE, raw), run(folded[SPARSE], SPARSE, raw))


def test_the_layouts_of_these_tests_take_every_way_through_a_layer():
    ways = {
        (route.attends, route.place, route.dense, route.before)
        for layout in (LAYOUT, SPARSE, written_out(blank(LAYOUT))[0])
        for layer in plan(layout)
        for route in layer.routes
    }
    assert ways == {
        (False, "each", True, False),
        (False, "each", True, True),
        (False, "each", False, False),
        (False, "each", False, True),
        (False, "all", True, False),
        (False, "first", True, False),
        (True, "each", True, False),
        (True, "each", True, True),
        (True, "each", False, False),
        (True, "each", False, True),
        (True, "first", True, False),
    }


@pytest.mark.parametrize("empty", ["seed", "blueprint", "layer", "activation", "parameter"])
@pytest.mark.slow
def test_types_without_room_are_left_out(params, empty):
    layout = GraphLayout.of(
        {**FULL, empty: 0},
        {relation.key: 0 if empty in (relation.source, relation.target) else 4
         for relation in RELATIONS if not relation.complete},
    )  # fmt: skip
    counts = {name: count for name, count in FULL.items() if name != empty}
    raw = raw_graph(np.random.default_rng(0), counts, layout=layout)
    assert_close(run(params, layout, raw), run(fold(params, layout), layout, raw))


def test_logits_beyond_the_range_of_exp_stay_finite(params, folded):
    """Attention is a softmax: shifted by the largest logit of each target."""
    loud = jax.tree.map(lambda x: x, params)
    for layer in LAYERS[2:]:
        for relation in loud[layer].values():
            relation["source_attention"] = relation["source_attention"] * 1e4
    raw = raw_graph(np.random.default_rng(1), FULL)
    raw.values[~raw.mask] = 7.0
    outputs = run(fold(loud, LAYOUT), LAYOUT, raw)
    assert all(np.isfinite(array).all() for array in outputs.named_arrays().values())


def test_what_stands_in_padding_rows_changes_nothing(folded):
    some = {"seed": 2, "blueprint": 1, "layer": 3, "activation": 2, "parameter": 1}
    raw = raw_graph(np.random.default_rng(0), some)
    before = run(folded[LAYOUT], LAYOUT, raw)
    raw.values[~raw.mask] = 7.0
    raw.attributes[~raw.mask] = 7.0
    raw.edges[~raw.edge_mask] = 7.0
    after = run(folded[LAYOUT], LAYOUT, raw)
    assert jax.tree.all(jax.tree.map(np.array_equal, before, after))


def test_complete_relations_are_never_written_out_as_edges(params):
    """No array of the program has a row for each edge of layer × activation."""
    layout = GraphLayout.of(
        {**FULL, "layer": 96, "activation": 89},
        {relation.key: 4 for relation in RELATIONS if not relation.complete},
    )
    raw = raw_graph(np.random.default_rng(0), FULL, layout=layout)
    made = jax.make_jaxpr(partial(policy_step, layout=layout, rate=0.1))(
        fold(params, layout), init_normalizer(), raw
    )
    shapes = [v.aval.shape for eqn in made.jaxpr.eqns for v in eqn.outvars]
    assert not [shape for shape in shapes if 96 * 89 in shape]


def test_folded_parameters_are_less_than_half_of_the_reference_network():
    start = init_params(PolicyConfig.reference(), jax.random.key(0))
    sizes = [sum(x.size for x in jax.tree.leaves(tree)) for tree in (start, fold(start, LAYOUT))]
    assert sizes[1] < 0.5 * sizes[0]


def test_rows_of_a_batch_do_not_leak(folded):
    rng = np.random.default_rng(5)
    graphs = [raw_graph(rng, {"seed": n % 4, "layer": n % 5, "parameter": 1}) for n in range(16)]
    batch = RawGraph(*(np.stack(column) for column in zip(*graphs, strict=True)))
    many = jax.jit(jax.vmap(partial(policy_step, layout=LAYOUT, rate=0.1), in_axes=(None, None, 0)))
    _, together = jax.device_get(many(folded[LAYOUT], init_normalizer(), batch))
    for row, raw in enumerate(graphs):
        alone = run(folded[LAYOUT], LAYOUT, raw)
        assert_close(row_of(together, row), alone)


def test_the_step_lowers_for_cpu_gpu_and_tpu(folded):
    raw = raw_graph(np.random.default_rng(11), FULL)
    exported = jax.export.export(step, platforms=("cpu", "cuda", "tpu"))(
        folded[LAYOUT], init_normalizer(), raw, layout=LAYOUT, rate=0.1
    )
    assert exported.platforms == ("cpu", "cuda", "tpu")


def test_a_policy_folds_once_for_its_parameters_and_again_for_new_ones(params, monkeypatch):
    folds = []

    def counted(params, layout):
        folds.append(layout)
        return fold(params, layout)

    monkeypatch.setattr("tamiyo_jax.policy._graph_policy.fold", counted)
    policy = GraphPolicy(GraphConfig())
    state, seen = policy.initial_state(), observation(packet(seed("s", SeedStage.DORMANT)))
    first = [policy.decide(params, state, seen)[1].value for _ in range(3)]
    assert folds == [LAYOUT]
    changed = {**params, "value": jax.tree.map(lambda x: x + 1.0, params["value"])}
    _, outputs = policy.decide(changed, state, seen)
    assert len(folds) == 2
    assert float(outputs.value) != float(first[0])
