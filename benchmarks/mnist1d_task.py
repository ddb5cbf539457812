"""MNIST-1D as a task for the reference loop: a narrow convolutional net, and seeds of the library.

The examples are those of the package `mnist1d` (Greydanus and Kobak 2020, arXiv:2011.14439): ten
curves of 40 points, padded, stretched, shifted, sheared and blurred. It draws them anew from its
own seed, with NumPy's global generator; nothing is downloaded.
"""

from __future__ import annotations

from functools import cache
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from mnist1d.data import get_dataset_args, make_dataset

from tamiyo_jax.growth import Bank, Gate, SeedSlot, Timing, slot_variables
from tamiyo_jax.host import Host, blueprint_of, monitor, seed_bank, tamiyo_scale
from tamiyo_jax.training import Data, Task

__all__ = ["mnist1d_task"]

BATCH = 64
LEARNING_RATE = 1e-2
WEIGHT_DECAY = 5e-2
CLIP = 1.0
CHANNELS = 8
KERNEL = 5
LAYERS = 3
CLASSES = 10
POINTS = 40
VALIDATION = 800  # of the package's 4,000 that are not for the test
BLEND_EPOCHS = 2
EMBARGO_EPOCHS = 2

SEEDS = seed_bank("convolution", jax.ShapeDtypeStruct((1, POINTS // 2, CHANNELS), jnp.float32))


class Narrow(nn.Module):
    """Convolutions of few channels, each of which halves the points; a slot follows each."""

    bank: Bank

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map f32[B, 40] to logits f32[B, 10]."""
        x = x[:, :, None]
        for index in range(LAYERS):
            x = nn.gelu(nn.Conv(CHANNELS, (KERNEL,), 2, name=f"convolution-{index}")(x))
            x = SeedSlot(self.bank, name=f"seed-{index}")(x)
        return nn.Dense(CLASSES, name="readout")(x.reshape(len(x), -1))


@cache
def mnist1d_task() -> Task:
    """The task: 3,200 examples to learn from, 800 to decide on, and the package's 1,000 to test."""
    train, validation, test = _draw()
    model = Narrow(SEEDS.bank)
    example = jnp.zeros((1, POINTS), jnp.float32)

    def loss(params: Any, seeds: Any, gates: Any, batch: Data) -> jax.Array:  # noqa: ANN401
        found = logits(params, seeds, gates, batch.inputs)
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(found, batch.labels))

    def logits(params: Any, seeds: Any, gates: Any, x: jax.Array) -> jax.Array:  # noqa: ANN401
        return cast(jax.Array, model.apply(slot_variables(params, seeds, gates), x))

    def init_params(key: jax.Array) -> Any:  # noqa: ANN401
        return model.init({"params": key, "seeds": key}, example)["params"]

    def init_seeds(key: jax.Array) -> dict[str, Any]:
        seeds = model.init({"params": key, "seeds": key}, example)["seeds"]
        return {name: seeds[name]["bank"] for name in sorted(seeds)}

    key = jax.random.PRNGKey(0)  # a blueprint asks for shapes alone
    seeds = init_seeds(key)
    closed = {name: Gate(jnp.float32(0)) for name in seeds}
    adam = optax.chain(
        optax.clip_by_global_norm(CLIP), optax.adamw(LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    )
    steps_per_epoch = len(train.labels) // BATCH
    return Task(
        host=Host(
            loss=loss,
            optimizer=monitor(optax.chain(adam, tamiyo_scale())),
            seed_optimizer=optax.flatten(adam),
            init_seeds=init_seeds,
            timing=Timing(BLEND_EPOCHS * steps_per_epoch, EMBARGO_EPOCHS * steps_per_epoch),
        ),
        init_params=init_params,
        logits=logits,
        train=train,
        validation=validation,
        test=test,
        batch_size=BATCH,
        blueprint=blueprint_of(
            init_params(key),
            lambda params, x: logits(params, seeds, closed, x),
            example,
            blueprint_id="mnist1d-host",
            risk=0.1,
        ),
        candidates=SEEDS.blueprints,
        slot_depths={f"seed-{index}": index for index in range(LAYERS)},
        optimizer_id="adamw",
        seed_learning_rate=LEARNING_RATE,
    )


def _draw() -> tuple[Data, Data, Data]:
    drawn = make_dataset(get_dataset_args())
    inputs, labels = jnp.asarray(drawn["x"], jnp.float32), jnp.asarray(drawn["y"], jnp.int32)
    return (
        Data(inputs[:-VALIDATION], labels[:-VALIDATION]),
        Data(inputs[-VALIDATION:], labels[-VALIDATION:]),
        Data(jnp.asarray(drawn["x_test"], jnp.float32), jnp.asarray(drawn["y_test"], jnp.int32)),
    )
