"""Flax Linen: a small MLP learns to read digits."""

import jax
import numpy as np
import optax
from flax import linen as nn
from flax.training.train_state import TrainState
from sklearn.datasets import load_digits

from tamiyo_jax import Plug, host


class MLP(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Dense(8)(x))
        x = nn.relu(nn.Dense(8)(x))
        return nn.Dense(10)(x)


def loss_fn(params, batch):
    logits = model.apply({"params": params}, batch["image"])
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]).mean()


@jax.jit
def train_step(state, batch):
    loss, grads = jax.value_and_grad(loss_fn)(state.params, batch)
    return state.apply_gradients(grads=grads), loss


@jax.jit
def eval_step(state):
    return loss_fn(state.params, test)


images, labels = load_digits(return_X_y=True)
images = (images / 16).astype(np.float32)
train = {"image": images[:1440], "label": labels[:1440]}
test = {"image": images[1440:], "label": labels[1440:]}

model = MLP()
params = model.init(jax.random.key(0), test["image"])["params"]
tx = host.monitor(optax.chain(optax.adam(3e-3), host.tamiyo_scale()))
state = TrainState.create(apply_fn=model.apply, params=params, tx=tx)
tamiyo = Plug.open(
    "runs", params, loss_fn, test, mode="guard", every=30, log=print, validate=eval_step
)

rng = np.random.default_rng(0)
for epoch in range(30):
    for rows in rng.permutation(1440).reshape(-1, 96):
        batch = {"image": train["image"][rows], "label": train["label"][rows]}
        state, loss = train_step(state, batch)
        state = tamiyo(state, loss)
    if epoch % 10 == 9:
        print(f"epoch {epoch + 1}: test loss {eval_step(state):.3f}")
tamiyo.close()
