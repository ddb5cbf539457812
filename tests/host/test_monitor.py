"""What the monitor measures equals its formulas in NumPy, and costs the optimiser nothing."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from tamiyo_jax import host
from tamiyo_jax.errors import CommandRejectedError, ConfigurationError
from tamiyo_jax.host.monitor import CONFLICT_COSINE, RATE

PARAMS = {
    "a": {"w": jnp.arange(6, dtype=jnp.float32).reshape(2, 3), "b": jnp.ones(3, jnp.float32)},
    "b": {"w": jnp.full((3, 2), -0.5, jnp.float32)},
    "zero": {"w": jnp.zeros(2, jnp.float32)},
}
LAYERS = ("a", "b", "zero")


def gradients(index: int):
    generator = np.random.default_rng(index)
    return jax.tree.map(
        lambda leaf: jnp.asarray(generator.normal(size=leaf.shape), jnp.float32), PARAMS
    )


def flat(tree, layer: str) -> np.ndarray:
    return np.concatenate([np.asarray(x, np.float64).ravel() for x in jax.tree.leaves(tree[layer])])


def test_every_number_follows_its_formula_over_several_steps():
    tx = host.monitor(optax.sgd(0.1))
    params, state = PARAMS, tx.init(PARAMS)
    mean = {layer: np.zeros_like(flat(PARAMS, layer)) for layer in LAYERS}
    variance = dict.fromkeys(LAYERS, 0.0)
    for index in range(6):
        gradient = gradients(index)
        updates, state = jax.jit(tx.update)(gradient, state, params)
        seen = host.statistics(state)
        conflicts = []
        for position, layer in enumerate(LAYERS):
            g, w = flat(gradient, layer), flat(params, layer)
            d = g - mean[layer]
            scale = np.linalg.norm(g) * np.linalg.norm(mean[layer])
            conflicts.append(scale > 0 and g @ mean[layer] / scale < CONFLICT_COSINE)
            variance[layer] = (1 - RATE) * (variance[layer] + RATE * np.mean(d**2))
            mean[layer] = mean[layer] + RATE * d
            norm = np.linalg.norm(w)
            ratio = 0.1 * np.linalg.norm(g) / norm if norm else 0.0
            np.testing.assert_allclose(seen.gradient_norm[position], np.linalg.norm(g), rtol=1e-5)
            np.testing.assert_allclose(seen.weight_norm[position], norm, rtol=1e-5)
            np.testing.assert_allclose(seen.update_ratio[position], ratio, rtol=1e-5)
            np.testing.assert_allclose(seen.gradient_variance[position], variance[layer], rtol=1e-4)
        np.testing.assert_allclose(seen.conflict, np.mean(conflicts), rtol=1e-6)
        params = optax.apply_updates(params, updates)


def test_the_wrapped_optimiser_makes_the_updates_that_it_would_make_alone(standard_promotion):
    plain, watched = optax.adamw(1e-2), host.monitor(optax.adamw(1e-2))
    expected, _ = jax.jit(plain.update)(gradients(0), plain.init(PARAMS), PARAMS)
    seen, _ = jax.jit(watched.update)(gradients(0), watched.init(PARAMS), PARAMS)
    jax.tree.map(np.testing.assert_array_equal, seen, expected)


def test_the_monitor_is_found_inside_other_transformations():
    tx = optax.chain(optax.clip_by_global_norm(1.0), host.monitor(optax.sgd(0.1)))
    assert host.statistics(tx.init(PARAMS)).gradient_norm.shape == (3,)


def test_an_unmonitored_optimiser_and_absent_parameters_are_told():
    with pytest.raises(ConfigurationError, match="not monitored"):
        host.statistics(optax.sgd(0.1).init(PARAMS))
    tx = host.monitor(optax.sgd(0.1))
    with pytest.raises(ConfigurationError, match="params"):
        tx.update(gradients(0), tx.init(PARAMS))


def test_layers_are_named_by_their_paths_in_dicts_lists_and_nnx_states():
    assert host.layer_names(PARAMS) == LAYERS
    assert host.layer_names([{"w": jnp.ones(1)}, jnp.ones(1)]) == ("0", "1")
    state = nnx.state(nnx.Linear(2, 3, rngs=nnx.Rngs(0)), nnx.Param)
    assert len(host.layer_names({"linear": nnx.to_pure_dict(state)})) == 1


def test_the_multiplier_scales_updates_and_stays_within_its_limits():
    tx = optax.chain(optax.sgd(1.0), host.tamiyo_scale())
    state = host.scale_by(tx.init(PARAMS), 0.5, host.LIMITS)
    updates, _ = tx.update(gradients(0), state)
    jax.tree.map(
        lambda u, g: np.testing.assert_allclose(u, -0.5 * np.asarray(g)), updates, gradients(0)
    )
    for _ in range(10):
        state = host.scale_by(state, 0.5, host.LIMITS)
    np.testing.assert_allclose(host.scale_of(state), 0.1)
    for _ in range(10):
        state = host.scale_by(state, 3.0, host.LIMITS)
    np.testing.assert_allclose(host.scale_of(state), 10.0)


def test_an_optimiser_without_the_multiplier_is_told():
    with pytest.raises(CommandRejectedError, match="tamiyo_scale"):
        host.scale_by(optax.sgd(0.1).init(PARAMS), 0.5, host.LIMITS)
