"""Equinox: a small transformer learns to write Python's documentation, letter by letter."""

from pydoc_data.topics import topics

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

from tamiyo_jax import Plug, host

LENGTH, WIDTH, LETTERS = 32, 32, 128


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

    def __call__(self, letters):
        x = jax.vmap(self.embed)(letters) + jax.vmap(self.place)(jnp.arange(LENGTH))
        y = jax.vmap(self.norm)(x)
        x = x + self.attend(y, y, y, mask=jnp.tri(LENGTH, dtype=bool))
        x = x + jax.vmap(self.mlp)(x)
        return jax.vmap(self.readout)(x)


def loss_fn(model, text):
    logits = jax.vmap(model)(text[:, :-1])
    return optax.softmax_cross_entropy_with_integer_labels(logits, text[:, 1:]).mean()


@eqx.filter_jit
def make_step(model, opt_state, text):
    loss, grads = eqx.filter_value_and_grad(loss_fn)(model, text)
    params = eqx.filter(model, eqx.is_inexact_array)
    updates, opt_state = optim.update(grads, opt_state, params)
    return eqx.apply_updates(model, updates), opt_state, loss


text = "".join(topics.values()).encode("ascii", "replace")
text = np.frombuffer(text[:200_000], np.uint8).astype(np.int32)
windows = np.lib.stride_tricks.sliding_window_view(text, LENGTH + 1)
train, test = windows[:180_000], windows[180_000::100]

model = Transformer(jax.random.key(0))
optim = host.monitor(optax.chain(optax.adam(1e-2), host.tamiyo_scale()))
opt_state = optim.init(eqx.filter(model, eqx.is_inexact_array))
tamiyo = Plug.open("runs", model, loss_fn, test, mode="guard", every=20, log=print)

rng = np.random.default_rng(0)
for step in range(400):
    batch = train[rng.integers(len(train), size=32)]
    model, opt_state, loss = make_step(model, opt_state, batch)
    model, opt_state = tamiyo((model, opt_state), loss)
    if step % 100 == 99:
        print(f"step {step + 1}: loss {loss:.3f}")
tamiyo.close()
