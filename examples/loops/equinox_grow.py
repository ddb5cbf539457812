"""Equinox: a small transformer learns to write Python's documentation, letter by letter."""

from pydoc_data.topics import topics

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

from tamiyo_jax import Plug, growth, host

LENGTH, WIDTH, LETTERS = 32, 32, 128
example = jnp.zeros((1, LENGTH, WIDTH))
bank, candidates = host.seed_bank("decoder", example)


class Transformer(eqx.Module):
    embed: eqx.nn.Embedding
    place: eqx.nn.Embedding
    norm: eqx.nn.LayerNorm
    attend: eqx.nn.MultiheadAttention
    mlp: eqx.nn.MLP
    readout: eqx.nn.Linear

    def __init__(self, key):
        keys = jax.random.split(key, 5)
        self.embed = eqx.nn.Embedding(LETTERS, WIDTH, key=keys[0])
        self.place = eqx.nn.Embedding(LENGTH, WIDTH, key=keys[1])
        self.norm = eqx.nn.LayerNorm(WIDTH)
        self.attend = eqx.nn.MultiheadAttention(2, WIDTH, key=keys[2])
        self.mlp = eqx.nn.MLP(WIDTH, WIDTH, WIDTH, 1, key=keys[3])
        self.readout = eqx.nn.Linear(WIDTH, LETTERS, key=keys[4])

    def __call__(self, letters, seeds, gates):
        x = jax.vmap(self.embed)(letters) + jax.vmap(self.place)(jnp.arange(LENGTH))
        y = jax.vmap(self.norm)(x)
        x = x + self.attend(y, y, y, mask=jnp.tri(LENGTH, dtype=bool))
        x = x + jax.vmap(self.mlp)(x)
        x = growth.slot_apply(bank, seeds["seed"], gates["seed"], x)
        return jax.vmap(self.readout)(x)


def loss_fn(params, seeds, gates, text):
    model = eqx.combine(params, static)
    logits = jax.vmap(model, (0, None, None))(text[:, :-1], seeds, gates)
    return optax.softmax_cross_entropy_with_integer_labels(logits, text[:, 1:]).mean()


make_step = jax.jit(lambda state, text: host.train_step(grown, state, text))


text = "".join(topics.values()).encode("ascii", "replace")
text = np.frombuffer(text[:200_000], np.uint8).astype(np.int32)
windows = np.lib.stride_tricks.sliding_window_view(text, LENGTH + 1)
train, test = windows[:180_000], windows[180_000::100]

params, static = eqx.partition(Transformer(jax.random.key(0)), eqx.is_inexact_array)
grown = host.Host(
    loss=loss_fn,
    optimizer=host.monitor(optax.chain(optax.adam(1e-2), host.tamiyo_scale())),
    seed_optimizer=optax.adam(1e-2),
    init_seeds=lambda key: {"seed": growth.slot_init(bank, key, example)},
    timing=growth.Timing(blend_steps=30, embargo_steps=30),
)
state = host.init_host(grown, params, jax.random.PRNGKey(0))
tamiyo = Plug.grow("runs", state, grown, candidates, test, mode="act", every=10, log=print)

rng = np.random.default_rng(0)
for step in range(400):
    batch = train[rng.integers(len(train), size=32)]
    state, metrics = make_step(state, batch)
    state = tamiyo(state, metrics)
    if step % 100 == 99:
        print(f"step {step + 1}: loss {metrics.loss:.3f}")
tamiyo.close()
