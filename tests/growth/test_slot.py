"""A slot is an exact identity at alpha 0, and mixes in exactly one candidate above it."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from host.tiny_host import BANK, WIDTH, tanh_seed

from tamiyo_jax import growth
from tamiyo_jax.errors import ConfigurationError

X = jnp.array([[-0.0, 0.0, 1.5, -2.0]], jnp.float32)


def gate(alpha: float) -> growth.Gate:
    return growth.Gate(jnp.float32(alpha))


def alone(name: str, seed: int = 1):
    """The parameters of one candidate."""
    return {name: growth.slot_init(BANK, jax.random.key(seed), X)[name]}


def test_in_a_batch_of_slots_an_open_one_does_not_disturb_a_closed_one_full_of_nan():
    params = jax.tree.map(
        lambda good: jnp.stack([good, jnp.full_like(good, jnp.nan)]), alone("steep")
    )
    gates = growth.Gate(jnp.array([0.5, 0.0], jnp.float32))

    def total(params, x):
        one = lambda p, g: growth.slot_apply(BANK, p, g, x, mode=growth.BlendMode.RESIDUAL)  # noqa: E731
        return jnp.sum(jax.vmap(one)(params, gates)), None

    (value, _), (for_params, for_x) = jax.value_and_grad(total, argnums=(0, 1), has_aux=True)(
        params, X
    )
    assert np.isfinite(value)
    assert np.all(np.isfinite(for_x))
    for leaf in jax.tree.leaves(for_params):
        assert np.all(np.asarray(leaf)[1] == 0)


@pytest.mark.parametrize("name", BANK)
def test_the_modes_mix_the_candidate_that_grows_as_their_formulas_say(name):
    params = alone(name)
    y = BANK[name].apply(params[name], X)
    convex = growth.slot_apply(BANK, params, gate(0.3), X, mode=growth.BlendMode.CONVEX)
    residual = growth.slot_apply(BANK, params, gate(0.3), X, mode=growth.BlendMode.RESIDUAL)
    np.testing.assert_allclose(convex, 0.7 * np.asarray(X) + 0.3 * np.asarray(y), rtol=1e-6)
    np.testing.assert_allclose(residual, np.asarray(X) + 0.3 * np.asarray(y), rtol=1e-6)


def test_above_alpha_0_the_gradient_is_that_of_the_formula():
    params = alone("steep")

    def slot(params, x):
        y = growth.slot_apply(BANK, params, gate(0.3), x, mode=growth.BlendMode.RESIDUAL)
        return jnp.sum(y**2)

    def plain(params, x):
        return jnp.sum((x + 0.3 * BANK["steep"].apply(params["steep"], x)) ** 2)

    for ours, theirs in zip(
        jax.tree.leaves(jax.grad(slot, argnums=(0, 1))(params, X)),
        jax.tree.leaves(jax.grad(plain, argnums=(0, 1))(params, X)),
        strict=True,
    ):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


def test_candidates_are_compared_at_the_host_s_own_output():
    params = growth.slot_init(BANK, jax.random.key(1), X)
    target = jnp.array([[1.0, 2.0, 3.0, 4.0]], jnp.float32)

    def compared(params):
        y = growth.slot_apply(BANK, params, gate(0.0), X)
        return jnp.sum(y * target * y), y

    found, y = jax.grad(compared, has_aux=True)(params)
    np.testing.assert_array_equal(y, X)
    for name, own in params.items():
        _, pull = jax.vjp(lambda own, name=name: BANK[name].apply(own, X), own)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), found[name],
            pull(2 * target * X)[0],
        )  # fmt: skip


def test_a_candidate_that_changes_the_shape_is_refused_at_init():
    bank = {**BANK, "wrong": growth.Seed(lambda key, x: {}, lambda params, x: x[:, :2])}
    with pytest.raises(ConfigurationError, match=r"'wrong'.*keep shape"):
        growth.slot_init(bank, jax.random.key(0), X)


def test_a_bank_without_candidates_is_refused():
    with pytest.raises(ConfigurationError, match="empty"):
        growth.slot_init({}, jax.random.key(0), X)


def test_the_linen_slot_keeps_seeds_apart_from_the_hosts_parameters():
    class Model(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.Dense(WIDTH, name="before")(x)
            return growth.SeedSlot({"a": tanh_seed(1.0)}, name="slot")(x)

    keys = {"params": jax.random.key(0), "seeds": jax.random.key(1)}
    variables = Model().init(keys, X)
    assert set(variables["params"]) == {"before"}
    seeds = {"slot": variables["seeds"]["slot"]["bank"]}
    closed = growth.slot_variables(variables["params"], seeds, {"slot": gate(0.0)})
    opened = growth.slot_variables(variables["params"], seeds, {"slot": gate(1.0)})
    before = nn.Dense(WIDTH).apply({"params": variables["params"]["before"]}, X)
    np.testing.assert_array_equal(Model().apply(closed, X), before)
    assert not np.allclose(Model().apply(opened, X), before)


def test_without_parameters_a_slot_is_its_input_and_computes_nothing():
    slot = lambda x: growth.slot_apply(BANK, {}, gate(0.0), x)  # noqa: E731
    assert slot(X) is X
    assert not jax.make_jaxpr(slot)(X).eqns
