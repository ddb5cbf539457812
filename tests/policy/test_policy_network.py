"""The network: golden passes, both forms of relations, batches, platforms, compilations."""

from __future__ import annotations

from functools import partial
from operator import itemgetter

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from policy.worlds import FULL, LAYOUT, observation, packet, raw_graph, seed, written_out

from tamiyo_jax.config import GraphConfig, PolicyConfig
from tamiyo_jax.conformance._policy import compare_policy
from tamiyo_jax.contracts import SeedStage
from tamiyo_jax.errors import GraphSchemaError
from tamiyo_jax.graph import RELATIONS, GraphLayout, RawGraph, build, init_normalizer
from tamiyo_jax.policy import (
    GraphPolicy,
    PolicyNetwork,
    PolicyOutputs,
    abstract_params,
    init_params,
    policy_step,
)

CONFIG = PolicyConfig.small()
step = jax.jit(policy_step, static_argnames=("layout", "rate"))


@pytest.fixture(scope="module")
def params():
    """Random parameters, action logits and biases included, so that no term is zero."""
    start = init_params(CONFIG, jax.random.key(3))
    leaves, tree = jax.tree.flatten(start)
    rng = np.random.default_rng(4)
    noise = [jnp.asarray(rng.normal(0.0, 0.1, x.shape), jnp.float32) for x in leaves]
    return jax.tree.unflatten(tree, [x + y for x, y in zip(leaves, noise, strict=True)])


def run(params, layout: GraphLayout, raw: RawGraph) -> PolicyOutputs:
    _, outputs = step(params, init_normalizer(), raw, layout=layout, rate=0.1)
    return jax.device_get(outputs)


def assert_close(one: PolicyOutputs, other: PolicyOutputs, tolerance: float) -> None:
    chex.assert_trees_all_close(one, other, rtol=0, atol=tolerance)


@pytest.mark.slow
def test_a_golden_pass_is_reproduced_padded_and_unpadded(golden):
    """One of them; `tamiyo-jax conformance` takes all, and its test too."""
    errors = compare_policy(golden / "policy_small.npz")
    assert set(errors) == set(PolicyOutputs._fields) - {"rationale"}
    assert max(errors.values()) <= 1e-5, errors


counts = st.fixed_dictionaries(
    {name: st.integers(0, FULL[name]) for name in FULL if name != "global"}
)


@settings(max_examples=40)  # the two layouts compile once each
@given(counts=counts, edges=st.integers(0, 4), draw=st.integers(0, 2**31))
@pytest.mark.slow
def test_complete_relations_equal_the_same_relations_written_out(params, counts, edges, draw):
    raw = raw_graph(np.random.default_rng(draw), counts, edges=edges)
    assert_close(run(params, LAYOUT, raw), run(params, *written_out(raw)), 1e-5)


@pytest.mark.slow
def test_what_stands_in_padding_rows_changes_nothing(params):
    some = {"seed": 2, "blueprint": 1, "layer": 3, "activation": 2, "parameter": 1}
    raw = raw_graph(np.random.default_rng(0), some)
    before = run(params, LAYOUT, raw)
    raw.values[~raw.mask] = 7.0
    raw.attributes[~raw.mask] = 7.0
    raw.edges[~raw.edge_mask] = 7.0
    assert_close(before, run(params, LAYOUT, raw), 0.0)


def test_an_edge_that_occurs_twice_counts_twice(params):
    raw = raw_graph(np.random.default_rng(1), FULL, edges=2)
    block = LAYOUT.edges["seed__peer__seed"]
    twice = RawGraph(*(np.array(x) for x in raw))
    for array in (twice.senders, twice.receivers, twice.edges, twice.edge_mask):
        array[block.start + 2] = array[block.start]
    raw.receivers[block.start + 1] = raw.receivers[block.start]
    twice.receivers[block.start + 1] = twice.receivers[block.start]
    raw.senders[block.start + 1] = twice.senders[block.start + 1] = (
        LAYOUT.nodes["seed"].start
        if raw.senders[block.start] > LAYOUT.nodes["seed"].start
        else raw.senders[block.start] + 1
    )
    once, doubled = run(params, LAYOUT, raw), run(params, LAYOUT, twice)
    assert np.max(np.abs(once.seed_scores - doubled.seed_scores)) > 1e-6


def test_scores_of_padding_are_minus_infinity_and_all_else_is_finite(params):
    raw = raw_graph(np.random.default_rng(2), {**FULL, "seed": 1, "blueprint": 2})
    outputs = run(params, LAYOUT, raw)
    np.testing.assert_array_equal(np.isneginf(outputs.seed_scores), [False, True, True])
    np.testing.assert_array_equal(np.isneginf(outputs.blueprint_scores), [False, False, True])
    for name in outputs.named_arrays().keys() - {"seed_scores", "blueprint_scores"}:
        assert np.all(np.isfinite(getattr(outputs, name)))


@pytest.mark.slow
def test_256_decisions_at_once_equal_256_single_ones(params):
    rng = np.random.default_rng(5)
    graphs = [
        raw_graph(rng, {name: int(rng.integers(0, most + 1)) for name, most in FULL.items()})
        for _ in range(256)
    ]
    batch = RawGraph(*(np.stack(column) for column in zip(*graphs, strict=True)))
    many = jax.jit(jax.vmap(partial(policy_step, layout=LAYOUT, rate=0.1), in_axes=(None, None, 0)))
    _, together = jax.device_get(many(params, init_normalizer(), batch))
    for row, raw in enumerate(graphs):
        own = jax.tree.map(itemgetter(row), together)
        assert_close(own, run(params, LAYOUT, raw), 1e-6)


def test_relations_without_edges_need_no_invented_attributes(params):
    """A relation without features used to crash the reviewed network."""
    raw = raw_graph(np.random.default_rng(6), FULL, edges=0)
    assert np.isfinite(run(params, LAYOUT, raw).value)


def test_a_graph_of_the_global_node_alone_is_answered(params):
    """Placing edges by the first array of an empty input used to fail."""
    raw = raw_graph(np.random.default_rng(7), dict.fromkeys(set(FULL) - {"global"}, 0))
    outputs = run(params, LAYOUT, raw)
    assert np.isfinite(outputs.policy_logits).all()
    assert np.isneginf(outputs.seed_scores).all()


def test_an_unknown_node_type_or_relation_fails_at_construction():
    """It used to bypass the encoder in silence."""
    with pytest.raises(GraphSchemaError, match="planet"):
        GraphLayout.of({**FULL, "planet": 1}, {})
    with pytest.raises(GraphSchemaError, match="seed__eats__seed"):
        GraphLayout.of(FULL, {"seed__eats__seed": 1})


def test_untrained_logits_prefer_action_0_and_depend_on_nothing():
    start = init_params(CONFIG, jax.random.key(0))
    np.testing.assert_array_equal(start["policy_logits"]["kernel"], 0.0)
    np.testing.assert_array_equal(start["policy_logits"]["bias"], [0.5] + [-0.5] * 31)


def test_untrained_parameters_follow_the_key_and_have_the_abstract_shapes():
    one, same, other = (init_params(CONFIG, jax.random.key(key)) for key in (0, 0, 1))
    assert jax.tree.all(jax.tree.map(lambda x, y: bool(jnp.array_equal(x, y)), one, same))
    assert not jnp.array_equal(one["value"]["kernel"], other["value"]["kernel"])
    shapes = jax.tree.map(lambda x: (x.shape, x.dtype), one)
    assert shapes == jax.tree.map(lambda x: (x.shape, x.dtype), abstract_params(CONFIG))


def test_the_reference_network_has_a_parameter_for_every_relation():
    shapes = abstract_params(PolicyConfig.reference())
    for layer in ("sage_0", "sage_1", "gat_0", "gat_1"):
        assert set(shapes[layer]) == {relation.key for relation in RELATIONS}
    assert shapes["gat_0"][RELATIONS[0].key]["source_kernel"].shape == (256, 4, 128)


@pytest.mark.slow
def test_attention_weights_can_be_looked_at_and_sum_to_one(params):
    raw = raw_graph(np.random.default_rng(8), FULL)
    _, graph = build(LAYOUT, init_normalizer(), raw)
    network = PolicyNetwork(CONFIG, LAYOUT)
    _, seen = jax.jit(partial(network.apply, mutable="intermediates"))({"params": params}, graph)
    (attention,) = seen["intermediates"]["gat_1"]["seed__reports__global"]["attention"]
    assert attention.shape == (2, 4, CONFIG.heads)
    np.testing.assert_allclose(attention.sum(axis=1)[0], 1.0, atol=1e-6)


@pytest.mark.slow
def test_dropout_acts_in_training_only(params):
    raw = raw_graph(np.random.default_rng(9), FULL)
    _, graph = build(LAYOUT, init_normalizer(), raw)
    network = PolicyNetwork(CONFIG, LAYOUT)

    @jax.jit
    def train(params, graph, key):
        return network.apply(
            {"params": params}, graph, deterministic=False, rngs={"dropout": key}
        ).value

    values = {float(train(params, graph, jax.random.key(key))) for key in range(3)}
    assert len(values) == 3
    assert float(run(params, LAYOUT, raw).value) == float(run(params, LAYOUT, raw).value)


@pytest.mark.slow
def test_gradients_are_finite_with_empty_types_and_padding(params):
    raw = raw_graph(np.random.default_rng(10), {"seed": 1, "layer": 2}, edges=2)

    def loss(params):
        _, outputs = policy_step(params, init_normalizer(), raw, layout=LAYOUT, rate=0.1)
        return outputs.value + outputs.seed_scores[0] + jnp.sum(outputs.policy_logits)

    assert all(
        bool(jnp.isfinite(x).all()) for x in jax.tree.leaves(jax.jit(jax.grad(loss))(params))
    )


def test_one_layout_compiles_once_whatever_the_packets_hold(params, count_compilations):
    policy = GraphPolicy(GraphConfig())
    state = policy.initial_state()
    seen = observation(packet(seed("s0", SeedStage.DORMANT)))
    with count_compilations() as compiled:
        for size in (0, 1, 3):
            raw = raw_graph(np.random.default_rng(size), {"seed": size, "layer": 4})
            state, _ = policy.decide(
                params, state, type(seen)(seen.packet, LAYOUT, raw, seen.legality)
            )
    assert compiled.names.count("jit(policy_step)") + compiled.names.count("policy_step") <= 1
    np.testing.assert_array_equal(np.max(state.count), 3.0)


def test_a_failure_inside_the_network_propagates(params):
    broken = {**params, "value": {"kernel": jnp.zeros((3, 1)), "bias": jnp.zeros(1)}}
    policy = GraphPolicy(GraphConfig())
    with pytest.raises(Exception, match=r"(?i)dimension"):
        policy.decide(
            broken, policy.initial_state(), observation(packet(seed("s", SeedStage.DORMANT)))
        )


def test_the_step_lowers_for_cpu_gpu_and_tpu(params):
    raw = raw_graph(np.random.default_rng(11), FULL)
    exported = jax.export.export(step, platforms=("cpu", "cuda", "tpu"))(
        params, init_normalizer(), raw, layout=LAYOUT, rate=0.1
    )
    assert exported.platforms == ("cpu", "cuda", "tpu")


@pytest.mark.slow
def test_untrained_parameters_are_the_same_under_jit_and_vmap() -> None:
    config = PolicyConfig.small()
    keys = jax.random.split(jax.random.key(3), 2)
    plain = [init_params(config, key) for key in keys]
    jitted = jax.jit(init_params, static_argnums=0)(config, keys[0])
    chex.assert_trees_all_equal(jitted, plain[0])
    ensemble = jax.vmap(lambda key: init_params(config, key))(keys)
    chex.assert_trees_all_equal(ensemble, jax.tree.map(lambda *leaves: jnp.stack(leaves), *plain))
    both = jax.jit(jax.vmap(lambda key: init_params(config, key)))(keys)
    chex.assert_trees_all_equal(both, ensemble)
