"""The monitor in a step as each framework's own tutorial writes it."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from tamiyo_jax import host

X = jnp.linspace(-1.0, 1.0, 8, dtype=jnp.float32).reshape(4, 2)
LAYERS = ("first", "last")


def check(layers, statistics: host.Statistics, weights, gradient) -> None:
    """The numbers of a step on which sgd(0.1) ran, layer by layer in the order of `layers`."""
    assert layers == LAYERS
    for index, layer in enumerate(layers):
        w, g = (np.sqrt(sum(np.sum(np.square(x)) for x in t[layer])) for t in (weights, gradient))
        np.testing.assert_allclose(statistics.weight_norm[index], w, rtol=1e-5)
        np.testing.assert_allclose(statistics.gradient_norm[index], g, rtol=1e-5)
        np.testing.assert_allclose(statistics.update_ratio[index], 0.1 * g / w, rtol=1e-5)


def test_linen_with_partitioning_metadata():
    class Model(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array) -> jax.Array:
            init = nn.with_partitioning(nn.initializers.lecun_normal(), (None, "model"))
            x = nn.Dense(3, kernel_init=init, name="first")(x)
            return nn.Dense(1, name="last")(x)

    model = Model()
    params = model.init(jax.random.key(0), X)["params"]
    tx = host.monitor(optax.sgd(0.1))

    @jax.jit
    def step(params, opt_state):
        gradient = jax.grad(lambda p: jnp.mean(model.apply({"params": p}, X) ** 2))(params)
        updates, opt_state = tx.update(gradient, opt_state, params)
        return optax.apply_updates(params, updates), host.statistics(opt_state), gradient

    _, statistics, gradient = step(params, tx.init(params))
    trees = [{name: jax.tree.leaves(tree[name]) for name in LAYERS} for tree in (params, gradient)]
    check(host.layer_names(params), statistics, *trees)


def test_nnx_with_its_own_optimizer():
    class Model(nnx.Module):
        def __init__(self, rngs: nnx.Rngs) -> None:
            self.first = nnx.Linear(2, 3, rngs=rngs)
            self.norm = nnx.Dropout(0.0, rngs=rngs)
            self.last = nnx.Linear(3, 1, rngs=rngs)

        def __call__(self, x: jax.Array) -> jax.Array:
            return self.last(self.first(x))

    model = Model(nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, host.monitor(optax.sgd(0.1)), wrt=nnx.Param)
    params = nnx.state(model, nnx.Param)
    weights = {name: jax.device_get(jax.tree.leaves(params[name])) for name in LAYERS}

    @nnx.jit
    def step(model: Model, optimizer: nnx.Optimizer):
        gradient = nnx.grad(lambda model: jnp.mean(model(X) ** 2))(model)
        optimizer.update(model, gradient)
        return host.statistics(optimizer.opt_state), gradient

    statistics, gradient = step(model, optimizer)
    gradients = {name: jax.tree.leaves(gradient[name]) for name in LAYERS}
    check(host.layer_names(params), statistics, weights, gradients)
    step(model, optimizer)  # the state that it left is one that it takes
    assert not np.allclose(model.first.kernel[...], weights["first"][1])


def test_equinox():
    eqx = pytest.importorskip("equinox")

    class Model(eqx.Module):
        first: eqx.nn.Linear
        last: eqx.nn.Linear
        activation: object = jnp.tanh

        def __call__(self, x: jax.Array) -> jax.Array:
            return self.last(self.activation(self.first(x)))

    one, two = jax.random.split(jax.random.key(0))
    model = Model(eqx.nn.Linear(2, 3, key=one), eqx.nn.Linear(3, 1, key=two))
    tx = host.monitor(optax.sgd(0.1))
    params = eqx.filter(model, eqx.is_inexact_array)

    @eqx.filter_jit
    def step(model, opt_state):
        gradient = eqx.filter_grad(lambda model: jnp.mean(jax.vmap(model)(X) ** 2))(model)
        weights = eqx.filter(model, eqx.is_inexact_array)
        updates, opt_state = tx.update(gradient, opt_state, weights)
        return eqx.apply_updates(model, updates), host.statistics(opt_state), gradient

    _, statistics, gradient = step(model, tx.init(params))
    trees = [
        {name: jax.tree.leaves(getattr(tree, name)) for name in LAYERS}
        for tree in (params, gradient)
    ]
    check(host.layer_names(params), statistics, *trees)
