"""Outputs of steps are read one step late, and reading never waits for the newest step."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax

from tamiyo_jax import host


def test_each_call_returns_the_outputs_of_the_call_before():
    read = host.LateReader[dict[str, jax.Array]]()
    assert read({"loss": jnp.float32(0)}) is None
    for index in range(1, 4):
        late = read({"loss": jnp.float32(index)})
        assert late is not None
        assert isinstance(late["loss"], np.ndarray)
        assert late["loss"] == index - 1


def test_the_step_that_was_just_dispatched_is_not_waited_for():
    @jax.jit
    def long_step(x: jax.Array) -> jax.Array:
        return jax.lax.fori_loop(0, 500, lambda _, y: jnp.tanh(y @ y), x)[0, 0]

    read = host.LateReader[jax.Array]()
    x = jnp.eye(300, dtype=jnp.float32)
    first = jax.block_until_ready(long_step(x))
    assert read(first) is None
    newest = long_step(x)
    late = read(newest)
    assert not newest.is_ready()
    assert late == np.asarray(first)
    assert read(first) == np.asarray(newest)


def test_statistics_outlive_the_donated_state_that_they_came_from():
    params = {"layer": {"w": jnp.ones((2, 3), jnp.float32)}}
    tx = host.monitor(optax.sgd(0.1))

    def step(params, opt_state):
        updates, opt_state = tx.update(params, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, host.statistics(opt_state)

    donating = jax.jit(step, donate_argnums=(0, 1))
    opt_state = tx.init(params)
    read = host.LateReader[host.Statistics]()
    norms = []
    for _ in range(4):
        params, opt_state, measured = donating(params, opt_state)
        late = read(measured)
        norms += [] if late is None else [float(late.weight_norm[0])]
    np.testing.assert_allclose(norms, np.sqrt(6) * 0.9 ** np.arange(3), rtol=1e-5)
