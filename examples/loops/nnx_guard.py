"""Flax NNX: a small convolutional net learns to read digits."""

import jax
import numpy as np
import optax
from flax import nnx
from sklearn.datasets import load_digits

from tamiyo_jax import Plug, host


class CNN(nnx.Module):
    def __init__(self, rngs):
        self.conv = nnx.Conv(1, 8, (3, 3), rngs=rngs)
        self.linear = nnx.Linear(128, 8, rngs=rngs)
        self.readout = nnx.Linear(8, 10, rngs=rngs)

    def __call__(self, x):
        x = nnx.avg_pool(nnx.relu(self.conv(x)), (2, 2), strides=(2, 2))
        x = nnx.relu(self.linear(x.reshape(x.shape[0], -1)))
        return self.readout(x)


def loss_fn(model, batch):
    logits = model(batch["image"])
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]).mean()


@nnx.jit
def train_step(model, optimizer, batch):
    loss, grads = nnx.value_and_grad(loss_fn)(model, batch)
    optimizer.update(model, grads)
    return loss


eval_step = nnx.jit(loss_fn)

images, labels = load_digits(return_X_y=True)
images = (images / 16).astype(np.float32).reshape(-1, 8, 8, 1)
train = {"image": images[:1440], "label": labels[:1440]}
test = {"image": images[1440:], "label": labels[1440:]}

model = CNN(nnx.Rngs(0))
tx = host.monitor(optax.chain(optax.adam(1e-2), host.tamiyo_scale()))
optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
tamiyo = Plug.open("runs", model, loss_fn, test, mode="guard", every=15, log=print)

for epoch in range(20):
    for rows in jax.random.permutation(jax.random.key(epoch), 1440).reshape(-1, 96):
        batch = {"image": train["image"][rows], "label": train["label"][rows]}
        loss = train_step(model, optimizer, batch)
        model, optimizer = tamiyo((model, optimizer), loss)
    if epoch % 10 == 9:
        print(f"epoch {epoch + 1}: test loss {eval_step(model, test):.3f}")
tamiyo.close()
