"""What the monitor measures equals its formulas in NumPy, and costs the optimiser nothing."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tamiyo_jax import host
from tamiyo_jax.errors import CommandRejectedError, ConfigurationError
from tamiyo_jax.host._measuring import CONFLICT_COSINE, RATE, SAMPLE

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


def test_an_unmonitored_or_twice_monitored_optimiser_and_absent_parameters_raise():
    both_causes = r"not monitored once but 0 .*monitor\(tx\).*parameters alone"
    for nowhere in (optax.sgd(0.1).init(PARAMS), PARAMS):
        with pytest.raises(ConfigurationError, match=both_causes):
            host.statistics(nowhere)
    with pytest.raises(ConfigurationError, match="2 times; wrap it once"):
        host.statistics(
            optax.chain(host.monitor(optax.sgd(0.1)), host.monitor(optax.sgd(0.1))).init(PARAMS)
        )
    tx = host.monitor(optax.sgd(0.1))
    with pytest.raises(ConfigurationError, match="params"):
        tx.update(gradients(0), tx.init(PARAMS))
    with pytest.raises(ConfigurationError, match="no array"):
        tx.init({})


def test_layers_are_named_by_their_paths():
    assert host.layer_names(PARAMS) == LAYERS
    assert host.layer_names([{"w": jnp.ones(1)}, jnp.ones(1)]) == ("0", "1")


def test_a_step_measures_without_a_transfer_even_where_its_state_is_donated(count_compilations):
    tx = host.monitor(optax.sgd(0.1, momentum=0.9))

    @partial(jax.jit, donate_argnums=(0, 1))
    def step(params, state, gradient):
        updates, state = tx.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, host.statistics(state)

    params = jax.tree.map(jnp.copy, PARAMS)
    state, several = tx.init(params), [gradients(index) for index in range(4)]
    norms = [
        np.sqrt(sum(np.sum(x**2) for x in jax.tree.leaves(jax.device_get(one)))) for one in several
    ]
    outputs = []
    with jax.transfer_guard("disallow"), count_compilations() as compiled:
        for gradient in several:
            params, state, measured = step(params, state, gradient)
            outputs.append(measured)
    assert compiled.names.count("jit(step)") + compiled.names.count("step") == 1
    for measured, norm in zip(outputs, norms, strict=True):  # all readable, though late
        np.testing.assert_allclose(np.linalg.norm(measured.gradient_norm), norm, rtol=1e-5)


def test_a_large_array_costs_a_sample_and_its_estimates_are_close_to_the_whole():
    shape = (300, 700)
    params = {"large": {"w": jnp.ones(shape, jnp.float32), "b": jnp.ones(700, jnp.float32)}}
    tx = host.monitor(optax.sgd(0.1))
    state = tx.init(params)
    assert sum(array.size for array in state.gradient_mean) <= SAMPLE + 700
    generator = np.random.default_rng(0)
    mean, variance = np.zeros(300 * 700 + 700), 0.0
    update = jax.jit(tx.update)
    for _ in range(5):
        gradient = {
            "large": {
                "w": generator.normal(size=shape).astype(np.float32),
                "b": 3 * generator.normal(size=700).astype(np.float32),
            }
        }
        _, state = update(gradient, state, params)
        whole = flat(gradient, "large")
        variance = (1 - RATE) * (variance + RATE * np.mean((whole - mean) ** 2))
        mean += RATE * (whole - mean)
    seen = host.statistics(state)
    np.testing.assert_allclose(seen.gradient_norm[0], np.linalg.norm(whole), rtol=1e-5)
    np.testing.assert_allclose(seen.gradient_variance[0], variance, rtol=0.1)


@pytest.mark.parametrize(("turned", "share"), [(1.0, 0.0), (-1.0, 1.0), (0.0, 0.0)])
def test_a_layer_conflicts_when_it_pulls_against_its_recent_direction(turned, share):
    generator = np.random.default_rng(1)
    ahead, aside = generator.normal(size=(2, 200, 300)).astype(np.float32)
    params = {"layer": {"w": jnp.ones((200, 300), jnp.float32)}}
    tx = host.monitor(optax.sgd(0.1))
    _, state = tx.update({"layer": {"w": jnp.asarray(ahead)}}, tx.init(params), params)
    last = {"layer": {"w": jnp.asarray(turned * ahead if turned else aside)}}
    _, state = tx.update(last, state, params)
    assert float(host.statistics(state).conflict) == share


def test_one_gradient_that_is_not_finite_does_not_spoil_the_steps_after_it():
    tx = host.monitor(optax.sgd(0.1))
    spoilt = gradients(1)
    spoilt["a"]["w"] = spoilt["a"]["w"].at[0, 0].set(jnp.nan)
    update = jax.jit(tx.update)
    _, before = update(gradients(0), tx.init(PARAMS), PARAMS)
    _, hit = update(spoilt, before, PARAMS)
    assert np.isnan(host.statistics(hit).gradient_norm[0])
    assert np.isfinite(host.statistics(hit).gradient_norm[1])
    _, after = update(gradients(2), hit, PARAMS)
    for number in jax.tree.leaves(host.statistics(after)):
        assert np.all(np.isfinite(number))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.complex64])
def test_narrow_and_complex_parameters_are_measured_in_single_precision(dtype):
    numbers = np.linspace(-1, 1, 3000).astype(np.float32)
    value = jnp.asarray(numbers).astype(dtype) * jnp.asarray(
        1 if dtype != jnp.complex64 else 1j, dtype
    )
    params = {"layer": {"w": value}}
    tx = host.monitor(optax.identity())
    _, state = tx.update(params, tx.init(params), params)
    seen = host.statistics(state)
    exact = np.linalg.norm(np.asarray(value).astype(np.complex128))
    np.testing.assert_allclose(seen.weight_norm[0], exact, rtol=1e-5)
    np.testing.assert_allclose(seen.update_ratio[0], 1.0, rtol=1e-5)
    np.testing.assert_allclose(seen.gradient_variance[0], 0.09 * exact**2 / 3000, rtol=1e-3)
    assert all(number.dtype == jnp.float32 for number in jax.tree.leaves(seen))


@given(
    shapes=st.lists(st.lists(st.integers(0, 5), max_size=3).map(tuple), min_size=1, max_size=4),
    seed=st.integers(0, 2**16),
)
@settings(max_examples=15)
@pytest.mark.slow
def test_any_tree_of_arrays_is_measured_layer_by_layer(shapes, seed):
    generator = np.random.default_rng(seed)
    params = {
        f"layer-{index}": (generator.normal(size=shape).astype(np.float32), None, {})
        for index, shape in enumerate(shapes)
    }
    params = jax.tree.map(jnp.asarray, params)
    tx = host.monitor(optax.sgd(0.5))
    with jax.disable_jit():
        _, state = tx.update(params, tx.init(params), params)
    seen = host.statistics(state)
    norms = [np.linalg.norm(np.ravel(params[name][0])) for name in host.layer_names(params)]
    np.testing.assert_allclose(seen.weight_norm, norms, rtol=1e-5)
    np.testing.assert_allclose(seen.gradient_norm, norms, rtol=1e-5)
    np.testing.assert_allclose(
        seen.update_ratio, [0.5 if norm else 0.0 for norm in norms], rtol=1e-5
    )


def test_the_multiplier_scales_updates_and_stays_within_its_limits():
    tx = optax.chain(optax.sgd(1.0), host.tamiyo_scale())
    state = host.scale_by(tx.init(PARAMS), 0.5, host.LIMITS)
    updates, _ = tx.update(gradients(0), state)
    jax.tree.map(
        lambda u, g: np.testing.assert_allclose(u, -0.5 * np.asarray(g)), updates, gradients(0)
    )
    for _ in range(10):
        state = host.scale_by(state, 0.5, host.LIMITS)
    np.testing.assert_allclose(host.scale_of(state), 0.001)
    for _ in range(10):
        state = host.scale_by(state, 3.0, host.LIMITS)
    np.testing.assert_allclose(host.scale_of(state), 10.0)


def test_an_optimiser_without_the_multiplier_raises():
    with pytest.raises(CommandRejectedError, match="tamiyo_scale"):
        host.scale_by(optax.sgd(0.1).init(PARAMS), 0.5, host.LIMITS)
