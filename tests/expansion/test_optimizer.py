"""The optimiser's state grows with the network, and new parameters warm up again."""

from __future__ import annotations

import growable
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tamiyo_jax import expansion, host
from tamiyo_jax.errors import ConfigurationError

# Optax's own optimisers mix dtypes.
pytestmark = pytest.mark.usefixtures("standard_promotion")

HIDDEN = expansion.Dimension(
    made_by={"block_*/expand/kernel": -1, "block_*/expand/bias": 0},
    used_by={"block_*/project/kernel": 0},
    normalised=False,
)


def model(**sizes: int) -> growable.Model:
    return growable.linen(growable.Mlp(**sizes), growable.vectors())


@pytest.fixture(scope="module")
def small() -> growable.Model:
    return model()


@pytest.fixture(scope="module")
def deep() -> growable.Model:
    return model(blocks=4)


@pytest.fixture(scope="module")
def deepening(small, deep) -> expansion.Growth:
    return expansion.deepen(
        small.params,
        deep.params,
        blocks="block_{}",
        order=(0, 1, 0, None),
        outputs=("project/kernel", "project/bias"),
        share=0.0,
    )


def trained(tx: optax.GradientTransformation, params, steps: int):
    """Parameters and state after some steps on gradients of ones."""
    state = tx.init(params)
    for _ in range(steps):
        updates, state = tx.update(jax.tree.map(jnp.ones_like, params), state, params)
        params = optax.apply_updates(params, updates)
    return params, state


def test_moments_follow_their_parameters_and_counts_go_on(small, deep, deepening) -> None:
    tx = optax.adam(optax.linear_schedule(1e-3, 0.0, 100))
    _, state = trained(tx, small.params, 3)
    grown = expansion.grow_opt_state(deepening, tx, state, deep.params)
    adam, schedule = grown
    assert int(adam.count) == int(schedule.count) == 3
    for moments, old in ((adam.mu, state[0].mu), (adam.nu, state[0].nu)):
        jax.tree.map(np.testing.assert_array_equal, moments["block_2"], old["block_0"])
        jax.tree.map(np.testing.assert_array_equal, moments["stem"], old["stem"])
        assert not any(np.any(x) for x in jax.tree.leaves(moments["block_3"]))
    jax.tree.map(lambda a, b: np.testing.assert_equal(a.shape, b.shape), adam.mu, deep.params)


def test_moments_of_split_units_are_those_of_their_gradient(small) -> None:
    wide = model(width=10)
    plan = expansion.widen(small.params, wide.params, dimensions=[HIDDEN], noise=0.0)
    tx = optax.adam(1e-3)
    _, state = trained(tx, small.params, 1)
    adam, _ = expansion.grow_opt_state(plan, tx, state, wide.params)
    before, after = state[0].mu["block_0"], adam.mu["block_0"]
    tile = np.tile(before["expand"]["kernel"], (1, 2))
    np.testing.assert_allclose(after["expand"]["kernel"], tile / 2)
    np.testing.assert_allclose(adam.nu["block_0"]["expand"]["bias"], 0.001 / 4, rtol=1e-4)
    np.testing.assert_allclose(
        after["project"]["kernel"], np.tile(before["project"]["kernel"], (2, 1))
    )


def test_an_adam_step_of_old_parameters_is_the_one_they_would_have_made(
    small, deep, deepening
) -> None:
    tx = optax.adam(1e-2)
    params, state = trained(tx, small.params, 5)
    grown = expansion.grow_params(deepening, params, deep.params, jax.random.key(0))
    opt_state = expansion.grow_opt_state(deepening, tx, state, grown)

    def gradient(like):
        return jax.tree.map(lambda x: jnp.full_like(x, 0.5), like)

    expected, _ = tx.update(gradient(params), state, params)
    found, _ = tx.update(gradient(grown), opt_state, grown)
    for layer in ("stem", "head", "block_0", "block_1"):
        jax.tree.map(np.testing.assert_array_equal, found[layer], expected[layer])


@pytest.mark.slow
def test_a_monitored_and_scaled_optimiser_grows(small, deep, deepening) -> None:
    tx = host.monitor(optax.chain(optax.adamw(1e-3), host.tamiyo_scale()))
    params, state = trained(tx, small.params, 2)
    grown = expansion.grow_params(deepening, params, deep.params, jax.random.key(0))
    opt_state = expansion.grow_opt_state(deepening, tx, state, grown)
    assert host.scale_of(opt_state) == host.scale_of(state)
    assert jax.tree.structure(opt_state) == jax.tree.structure(tx.init(grown))
    _, after = tx.update(jax.tree.map(jnp.ones_like, grown), opt_state, grown)
    assert len(host.statistics(after).gradient_norm) == len(host.layer_names(grown))


@pytest.mark.parametrize("kind", ["nnx", "equinox"])
def test_the_optimiser_of_another_library_s_model_grows(kind) -> None:
    make, blocks, last = {
        "nnx": (growable.nnx_mlp, "blocks/{}", "project/*"),
        "equinox": (growable.eqx_mlp, "blocks/{}", "project/*"),
    }[kind]
    small, deep = make(blocks=2), make(blocks=3)
    plan = expansion.deepen(
        small.params, deep.params, blocks=blocks, order=(0, 1, 1), outputs=(last,), share=0.0
    )
    tx = optax.sgd(0.1, momentum=0.9)
    _, state = trained(tx, small.params, 1)
    grown = expansion.grow_opt_state(plan, tx, state, deep.params)
    assert all(np.all(np.asarray(x) == 1) for x in jax.tree.leaves(grown[0].trace))
    assert jax.tree.structure(grown) == jax.tree.structure(tx.init(deep.params))


def test_state_that_depends_on_the_parameters_in_another_way_is_an_error(
    small, deep, deepening
) -> None:
    masked = optax.masked(
        optax.adam(1e-3),
        lambda params: {
            name: jax.tree.map(lambda _, name=name: name != "head", tree)
            for name, tree in params.items()
        },
    )
    state = masked.init(small.params)
    with pytest.raises(ConfigurationError, match="depends on the parameters"):
        expansion.grow_opt_state(deepening, masked, state, deep.params)


def test_new_parameters_warm_up_and_the_others_do_not(small, deep, deepening) -> None:
    tx = optax.chain(optax.sgd(1.0), expansion.warm_up_new(4))
    params, state = trained(tx, small.params, 1)
    grown = expansion.grow_params(deepening, params, deep.params, jax.random.key(0))
    state = expansion.grow_opt_state(deepening, tx, state, grown)
    ones = jax.tree.map(jnp.ones_like, grown)
    sizes = []
    for _ in range(6):
        updates, state = tx.update(ones, state, grown)
        assert all(np.all(np.asarray(x) == -1) for x in jax.tree.leaves(updates["block_1"]))
        sizes.append(float(-updates["block_2"]["expand"]["kernel"][0, 0]))
    np.testing.assert_allclose(sizes, [0.25, 0.5, 0.75, 1, 1, 1])


def test_a_network_that_never_grew_is_not_warmed_up(small) -> None:
    ones = jax.tree.map(jnp.ones_like, small.params)
    tx = expansion.warm_up_new(4)
    updates, _ = tx.update(ones, tx.init(small.params))
    jax.tree.map(np.testing.assert_array_equal, updates, ones)


def test_a_warm_up_over_no_step_is_an_error() -> None:
    with pytest.raises(ConfigurationError, match="at least 1"):
        expansion.warm_up_new(0)
