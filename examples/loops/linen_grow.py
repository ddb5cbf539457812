"""Flax Linen: a small MLP learns to read digits."""

import jax
import numpy as np
import optax
from flax import linen as nn
from sklearn.datasets import load_digits

from tamiyo_jax import Plug, growth, host

bank, candidates = host.seed_bank("mlp", jax.ShapeDtypeStruct((1, 8), np.float32))


class MLP(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Dense(8)(x))
        x = growth.SeedSlot(bank, name="seed")(x)
        x = nn.relu(nn.Dense(8)(x))
        return nn.Dense(10)(x)


def loss_fn(params, seeds, gates, batch):
    logits = model.apply(growth.slot_variables(params, seeds, gates), batch["image"])
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]).mean()


@jax.jit
def train_step(state, batch):
    return host.train_step(grown, state, batch)


@jax.jit
def eval_step(state):
    return host.loss_of(grown, state, test)


images, labels = load_digits(return_X_y=True)
images = (images / 16).astype(np.float32)
train = {"image": images[:1440], "label": labels[:1440]}
test = {"image": images[1440:], "label": labels[1440:]}

model = MLP()
variables = model.init({"params": jax.random.key(0), "seeds": jax.random.key(1)}, test["image"])
tx = host.monitor(optax.chain(optax.adam(3e-3), host.tamiyo_scale()))
grown = host.Host(
    loss=loss_fn,
    optimizer=tx,
    seed_optimizer=optax.adam(3e-3),
    init_seeds=lambda key: {"seed": growth.slot_init(bank, key, np.zeros((1, 8), np.float32))},
    timing=growth.Timing(blend_steps=30, embargo_steps=30),
)
state = host.init_host(grown, variables["params"], jax.random.PRNGKey(2))
tamiyo = Plug.grow("runs", state, grown, candidates, test, mode="act", every=10, log=print)

rng = np.random.default_rng(0)
for epoch in range(30):
    for rows in rng.permutation(1440).reshape(-1, 96):
        batch = {"image": train["image"][rows], "label": train["label"][rows]}
        state, metrics = train_step(state, batch)
        state = tamiyo(state, metrics)
    if epoch % 10 == 9:
        print(f"epoch {epoch + 1}: test loss {eval_step(state):.3f}")
tamiyo.close()
