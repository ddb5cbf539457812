"""A slot in other frameworks' models: NNX through the bridge, and no framework at all."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from tamiyo_jax import growth, host
from tamiyo_jax.contracts import SeedOperation

WIDTH = 8
BANK = host.seed_bank("mlp", jnp.zeros((1, WIDTH), jnp.float32)).bank
TIMING = growth.Timing(blend_steps=4, embargo_steps=2)
OP = SeedOperation
# NNX's initialisers and Optax's optimisers mix dtypes.
pytestmark = pytest.mark.usefixtures("standard_promotion")


def batch(index: int):
    x = jax.random.normal(jax.random.key(index), (16, 3), jnp.float32)
    return x, jnp.sin(3 * x[:, :2])


def measure_contribution(made: host.Host, state: host.HostState) -> float:
    """Grow the slot's wide perceptron step by step; returns its contribution at the end."""
    step = jax.jit(lambda state, data: host.train_step(made, state, data))
    script = {4: OP.GERMINATE, 5: OP.START_TRAINING, 20: OP.START_GRAFTING, 25: OP.STABILIZE}
    for index in range(60):
        if index in script:
            wide = f"wide-mlp-{WIDTH}"
            state = host.operate(made, state, "slot", script[index], blueprint_id=wide)
        state, _ = step(state, batch(index % 4))
    assert step._cache_size() == 2
    return float(host.contribution(made.loss, state.params, state.slots, batch(0))["slot"])


def optimisers():
    tx = optax.adam(1e-2)
    return {"optimizer": host.monitor(optax.chain(tx, host.tamiyo_scale())), "seed_optimizer": tx}


class Net(nnx.Module):
    """Two linear layers with a slot between them."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.first = nnx.Linear(3, WIDTH, rngs=rngs)
        self.slot = nnx.bridge.ToNNX(growth.SeedSlot(BANK), rngs=rngs)
        self.slot.lazy_init(jnp.zeros((1, WIDTH), jnp.float32))
        self.second = nnx.Linear(WIDTH, 2, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.second(self.slot(jnp.tanh(self.first(x))))


@pytest.mark.slow
def test_the_linen_slot_grows_inside_an_nnx_model():
    graph, params, rest = nnx.split(Net(nnx.Rngs(0)), nnx.Param, ...)

    def loss(params, seeds, gates, data):
        model = nnx.merge(graph, params, rest, copy=True)
        kind = nnx.variable_type_from_name("seeds", allow_register=True)
        model.slot.bank = jax.tree.map(kind, seeds["slot"])
        nnx.update(model.slot, {"gate": gates["slot"]})
        return jnp.mean((model(data[0]) - data[1]) ** 2)

    def init_seeds(key):
        return {"slot": growth.slot_init(BANK, key, jnp.zeros((1, WIDTH), jnp.float32))}

    made = host.Host(loss=loss, init_seeds=init_seeds, timing=TIMING, **optimisers())
    state = host.init_host(made, params, jax.random.PRNGKey(0))
    assert measure_contribution(made, state) > 0


def test_a_dormant_slot_in_an_nnx_model_is_an_exact_identity():
    model = Net(nnx.Rngs(0))
    x, _ = batch(0)
    without = model.second(jnp.tanh(model.first(x)))
    np.testing.assert_array_equal(model(x), without)


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Module:
    """A model as Equinox has them: a class that is a pytree of its parameters."""

    first: jax.Array
    second: jax.Array

    def __call__(self, seed, gate, x):
        hidden = jnp.tanh(x @ self.first)
        return growth.slot_apply(BANK, seed, gate, hidden) @ self.second


def test_the_slot_functions_grow_inside_a_class_that_is_a_pytree():
    first, second = jax.random.split(jax.random.key(1))
    model = Module(
        jax.random.normal(first, (3, WIDTH), jnp.float32),
        jax.random.normal(second, (WIDTH, 2), jnp.float32) / 3,
    )

    def loss(model, seeds, gates, data):
        return jnp.mean((model(seeds["slot"], gates["slot"], data[0]) - data[1]) ** 2)

    def init_seeds(key):
        return {"slot": growth.slot_init(BANK, key, jnp.zeros((1, WIDTH), jnp.float32))}

    made = host.Host(loss=loss, init_seeds=init_seeds, timing=TIMING, **optimisers())
    assert measure_contribution(made, host.init_host(made, model, jax.random.PRNGKey(0))) > 0
