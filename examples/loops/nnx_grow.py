"""Flax NNX: a small convolutional net learns to read digits."""

import jax
import numpy as np
import optax
from flax import nnx
from sklearn.datasets import load_digits

from tamiyo_jax import Plug, growth, host

example = np.zeros((1, 4, 4, 8), np.float32)
bank, candidates = host.seed_bank("convolution", example)


class CNN(nnx.Module):
    def __init__(self, rngs):
        self.conv = nnx.Conv(1, 8, (3, 3), rngs=rngs)
        self.linear = nnx.Linear(128, 8, rngs=rngs)
        self.readout = nnx.Linear(8, 10, rngs=rngs)

    def __call__(self, x, seeds, gates):
        x = nnx.avg_pool(nnx.relu(self.conv(x)), (2, 2), strides=(2, 2))
        x = growth.slot_apply(bank, seeds["seed"], gates["seed"], x)
        x = nnx.relu(self.linear(x.reshape(x.shape[0], -1)))
        return self.readout(x)


def loss_fn(params, seeds, gates, batch):
    logits = nnx.merge(definition, params)(batch["image"], seeds, gates)
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]).mean()


train_step = jax.jit(lambda state, batch: host.train_step(grown, state, batch))
eval_step = jax.jit(lambda state, batch: host.loss_of(grown, state, batch))

images, labels = load_digits(return_X_y=True)
images = (images / 16).astype(np.float32).reshape(-1, 8, 8, 1)
train = {"image": images[:1440], "label": labels[:1440]}
test = {"image": images[1440:], "label": labels[1440:]}

definition, params = nnx.split(CNN(nnx.Rngs(0)))
grown = host.Host(
    loss=loss_fn,
    optimizer=host.monitor(optax.chain(optax.adam(1e-2), host.tamiyo_scale())),
    seed_optimizer=optax.adam(1e-2),
    init_seeds=lambda key: {"seed": growth.slot_init(bank, key, example)},
    timing=growth.Timing(blend_steps=30, embargo_steps=30),
)
state = host.init_host(grown, params, jax.random.PRNGKey(0))
tamiyo = Plug.grow("runs", state, grown, candidates, test, mode="act", every=5, log=print)

for epoch in range(20):
    for rows in jax.random.permutation(jax.random.key(epoch), 1440).reshape(-1, 96):
        batch = {"image": train["image"][rows], "label": train["label"][rows]}
        state, metrics = train_step(state, batch)
        state = tamiyo(state, metrics)
    if epoch % 10 == 9:
        print(f"epoch {epoch + 1}: test loss {eval_step(state, test):.3f}")
tamiyo.close()
