"""A host of two layers with a slot between them, small enough to test everything on."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax

from tamiyo_jax import growth, host

SEED_ID = "slot"
WIDTH = 4


def tanh_seed(scale: float) -> growth.Seed:
    """x -> scale * tanh(x W)."""
    return growth.Seed(
        init=lambda key, x: {"W": jax.random.normal(key, (x.shape[-1], x.shape[-1]), jnp.float32)},
        apply=lambda params, x: jnp.float32(scale) * jnp.tanh(x @ params["W"]),
    )


BANK: growth.Bank = {"steep": tanh_seed(3.0), "gentle": tanh_seed(1.0)}


def loss(params, seeds, gates, batch):
    """Squared error of a linear-slot-linear network, f32[]."""
    x, y = batch
    hidden = x @ params["first"]["w"] + params["first"]["b"][None, :]
    hidden = growth.slot_apply(
        BANK, seeds[SEED_ID], gates[SEED_ID], hidden, mode=growth.BlendMode.RESIDUAL
    )
    return jnp.mean((hidden @ params["second"]["w"] - y) ** 2)


def make_host(*, blend_steps: int = 4, embargo_steps: int = 3) -> host.Host:
    return host.Host(
        loss=loss,
        optimizer=host.monitor(optax.chain(optax.sgd(0.01, momentum=0.9), host.tamiyo_scale())),
        seed_optimizer=optax.chain(
            optax.clip_by_global_norm(1.0),
            optax.trace(0.9),
            optax.add_decayed_weights(0.1),
            optax.scale(-0.05),
        ),
        init_seeds=lambda key: {SEED_ID: growth.slot_init(BANK, key, jnp.zeros((1, WIDTH)))},
        timing=growth.Timing(blend_steps, embargo_steps),
    )


def make_state(made: host.Host, seed: int = 0) -> host.HostState:
    first, second, key = jax.random.split(jax.random.PRNGKey(seed), 3)
    params = {
        "first": {
            "w": jax.random.normal(first, (3, WIDTH), jnp.float32),
            "b": jnp.zeros(WIDTH, jnp.float32),
        },
        "second": {"w": jax.random.normal(second, (WIDTH, 2), jnp.float32)},
    }
    return host.init_host(made, params, key)


def batch(index: int) -> tuple[jax.Array, jax.Array]:
    key = jax.random.fold_in(jax.random.key(99), index)
    x = jax.random.normal(key, (8, 3), jnp.float32)
    return x, jnp.sin(x[:, :2])


def operate(state: host.HostState, operation, blueprint: int = 0) -> host.HostState:
    """Apply an operation to the slot, bypassing commands."""
    name = growth.blueprint_ids(BANK)[blueprint]
    return host.operate(MADE, state, SEED_ID, operation, blueprint_id=name)


MADE = make_host()
