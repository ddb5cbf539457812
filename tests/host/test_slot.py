"""A slot is an exact identity at alpha 0, and mixes in exactly one candidate above it."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from host.tiny_host import BANK, WIDTH, tanh_seed

from tamiyo_jax import host
from tamiyo_jax.errors import ConfigurationError

X = jnp.array([[-0.0, 0.0, 1.5, -2.0]], jnp.float32)


def gate(alpha: float, blueprint: int = 0) -> host.Gate:
    return host.Gate(jnp.float32(alpha), jnp.int32(blueprint))


def poisoned(value: float):
    params = host.slot_init(BANK, jax.random.key(0), X)
    return jax.tree.map(lambda leaf: jnp.full_like(leaf, value), params)


def test_in_a_batch_of_slots_an_open_one_does_not_disturb_a_closed_one_full_of_nan():
    params = jax.tree.map(
        lambda good, bad: jnp.stack([good, bad]),
        host.slot_init(BANK, jax.random.key(0), X),
        poisoned(np.nan),
    )
    gates = host.Gate(jnp.array([0.5, 0.0], jnp.float32), jnp.array([1, 0], jnp.int32))

    def total(params, x):
        one = lambda p, g: host.slot_apply(BANK, p, g, x, mode=host.BlendMode.RESIDUAL)  # noqa: E731
        return jnp.sum(jax.vmap(one)(params, gates)), None

    (value, _), (for_params, for_x) = jax.value_and_grad(total, argnums=(0, 1), has_aux=True)(
        params, X
    )
    assert np.isfinite(value)
    assert np.all(np.isfinite(for_x))
    for leaf in jax.tree.leaves(for_params):
        assert np.all(np.asarray(leaf)[1] == 0)


@pytest.mark.parametrize("blueprint", [0, 1])
def test_the_modes_mix_the_chosen_candidate_as_their_formulas_say(blueprint):
    params = host.slot_init(BANK, jax.random.key(1), X)
    name = host.blueprint_ids(BANK)[blueprint]
    y = BANK[name].apply(params[name], X)
    convex = host.slot_apply(BANK, params, gate(0.3, blueprint), X, mode=host.BlendMode.CONVEX)
    residual = host.slot_apply(BANK, params, gate(0.3, blueprint), X, mode=host.BlendMode.RESIDUAL)
    np.testing.assert_allclose(convex, 0.7 * np.asarray(X) + 0.3 * np.asarray(y), rtol=1e-6)
    np.testing.assert_allclose(residual, np.asarray(X) + 0.3 * np.asarray(y), rtol=1e-6)


def test_above_alpha_0_the_gradient_is_that_of_the_formula():
    params = host.slot_init(BANK, jax.random.key(1), X)

    def slot(params, x):
        y = host.slot_apply(BANK, params, gate(0.3, 1), x, mode=host.BlendMode.RESIDUAL)
        return jnp.sum(y**2)

    def plain(params, x):
        return jnp.sum((x + 0.3 * BANK["steep"].apply(params["steep"], x)) ** 2)

    for ours, theirs in zip(
        jax.tree.leaves(jax.grad(slot, argnums=(0, 1))(params, X)),
        jax.tree.leaves(jax.grad(plain, argnums=(0, 1))(params, X)),
        strict=True,
    ):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


def test_a_candidate_that_changes_the_shape_is_refused_at_init():
    bank = {**BANK, "wrong": host.Seed(lambda key, x: {}, lambda params, x: x[:, :2])}
    with pytest.raises(ConfigurationError, match=r"'wrong'.*keep shape"):
        host.slot_init(bank, jax.random.key(0), X)


def test_a_bank_without_candidates_is_refused():
    with pytest.raises(ConfigurationError, match="empty"):
        host.slot_init({}, jax.random.key(0), X)


def test_the_linen_slot_keeps_seeds_apart_from_the_hosts_parameters():
    class Model(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.Dense(WIDTH, name="before")(x)
            return host.SeedSlot({"a": tanh_seed(1.0)}, name="slot")(x)

    keys = {"params": jax.random.key(0), "seeds": jax.random.key(1)}
    variables = Model().init(keys, X)
    assert set(variables["params"]) == {"before"}
    seeds = {"slot": variables["seeds"]["slot"]["bank"]}
    closed = host.slot_variables(variables["params"], seeds, {"slot": gate(0.0)})
    opened = host.slot_variables(variables["params"], seeds, {"slot": gate(1.0)})
    before = nn.Dense(WIDTH).apply({"params": variables["params"]["before"]}, X)
    np.testing.assert_array_equal(Model().apply(closed, X), before)
    assert not np.allclose(Model().apply(opened, X), before)
