"""The demonstration task: real scans of handwritten digits, and a network too small for them.

1,797 scans of 8×8 pixels (scikit-learn's copy of the UCI set "Optical Recognition of
Handwritten Digits"), and a perceptron with narrow hidden layers, a seed slot after each.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from tamiyo_jax.contracts import (
    ActivationSpec,
    Blueprint,
    BlueprintTier,
    LayerSpec,
    ParameterSpec,
)
from tamiyo_jax.errors import ConfigurationError
from tamiyo_jax.host import (
    METHODS,
    Bank,
    Host,
    SeedSlot,
    Timing,
    linen_seed,
    monitor,
    slot_variables,
    tamiyo_scale,
)
from tamiyo_jax.loop import Data, Task

__all__ = ["digits_task"]

BATCH = 32
LEARNING_RATE = 3e-3
WEIGHT_DECAY = 1e-2
CLIP = 1.0
HIDDEN = (6, 6, 6)
CLASSES = 10
PIXELS = 64
VALIDATION_SHARE = 0.2
TEST_SHARE = 0.2
BLEND_EPOCHS = 2
EMBARGO_EPOCHS = 2


class Wide(nn.Module):
    """A residual branch through `width` hidden units: dense, GELU, dense."""

    width: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map f32[B, D] to an array like it."""
        hidden = nn.gelu(nn.Dense(self.width)(x))
        return nn.Dense(x.shape[-1])(hidden)


class LowRank(nn.Module):
    """A residual branch without a nonlinearity, through `rank` units."""

    rank: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map f32[B, D] to an array like it."""
        return nn.Dense(x.shape[-1])(nn.Dense(self.rank)(x))


BANK: Bank = {
    "mlp-narrow": linen_seed(Wide(16)),
    "mlp-wide": linen_seed(Wide(48)),
    "low-rank": linen_seed(LowRank(3)),
}


class SmallMlp(nn.Module):
    """The host: narrow hidden layers with a slot after each, and a readout."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map f32[B, 64] to logits f32[B, 10]."""
        for index, width in enumerate(HIDDEN):
            x = nn.tanh(nn.Dense(width, name=f"hidden-{index}")(x))
            x = SeedSlot(BANK, name=f"seed-{index}")(x)
        return nn.Dense(CLASSES, name="readout")(x)


def digits_task(seed: int) -> Task:
    """The task, split by `seed` into 60 % training, 20 % validation and 20 % test scans.

    Raises:
      ConfigurationError: scikit-learn, which ships the scans, is not installed.
    """
    train, validation, test = _split(seed)
    steps_per_epoch = len(train.labels) // BATCH
    model = SmallMlp()
    example = jnp.zeros((1, PIXELS), jnp.float32)

    def loss(params: Any, seeds: Any, gates: Any, batch: Data) -> jax.Array:  # noqa: ANN401
        return _cross_entropy(logits(params, seeds, gates, batch.inputs), batch.labels)

    def logits(params: Any, seeds: Any, gates: Any, x: jax.Array) -> jax.Array:  # noqa: ANN401
        return model.apply(slot_variables(params, seeds, gates), x)

    def init_params(key: jax.Array) -> Any:  # noqa: ANN401
        return model.init({"params": key, "seeds": key}, example)["params"]

    def init_seeds(key: jax.Array) -> dict[str, Any]:
        seeds = model.init({"params": key, "seeds": key}, example)["seeds"]
        return {name: seeds[name]["bank"] for name in sorted(seeds)}

    adam = optax.chain(
        optax.clip_by_global_norm(CLIP), optax.adamw(LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    )
    host = Host(
        loss=loss,
        optimizer=monitor(optax.chain(adam, tamiyo_scale())),
        seed_optimizer=adam,
        init_seeds=init_seeds,
        timing=Timing(BLEND_EPOCHS * steps_per_epoch, EMBARGO_EPOCHS * steps_per_epoch),
    )
    return Task(
        host=host,
        init_params=init_params,
        logits=logits,
        train=train,
        validation=validation,
        test=test,
        batch_size=BATCH,
        blueprint=HOST_BLUEPRINT,
        candidates=SEED_BLUEPRINTS,
        slot_depths={f"seed-{index}": index for index in range(len(HIDDEN))},
        optimizer_id="adamw",
        seed_learning_rate=LEARNING_RATE,
    )


def _cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels))


def _split(seed: int) -> tuple[Data, Data, Data]:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ConfigurationError(
            "the digits come with scikit-learn, which is not installed; install tamiyo_jax[demo]",
            extra="demo",
        ) from error
    inputs, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(seed).permutation(len(labels))
    inputs = (inputs[order] / 16).astype(np.float32)
    labels = labels[order].astype(np.int32)
    held_out = round(len(labels) * VALIDATION_SHARE), round(len(labels) * TEST_SHARE)
    first, second = len(labels) - sum(held_out), len(labels) - held_out[1]
    parts = slice(0, first), slice(first, second), slice(second, None)
    train, validation, test = (Data(jnp.asarray(inputs[p]), jnp.asarray(labels[p])) for p in parts)
    return train, validation, test


def _hidden_layer(index: int) -> LayerSpec:
    return _dense(f"hidden-{index}", index, "tanh", (PIXELS, *HIDDEN)[index], HIDDEN[index])


def _dense(layer_id: str, depth: int, activation: str, before: int, after: int) -> LayerSpec:
    return LayerSpec(
        layer_id=layer_id,
        type="dense",
        depth=depth,
        activation=activation,
        parameter_count=(before + 1) * after,
        dropout_rate=0.0,
        input_channels=before,
        output_channels=after,
    )


HOST_BLUEPRINT = Blueprint(
    blueprint_id="digits-host",
    name="narrow hidden layers",
    tier=BlueprintTier.SAFE,
    risk=0.1,
    layers=(
        *(_hidden_layer(index) for index in range(len(HIDDEN))),
        _dense("readout", len(HIDDEN), "identity", HIDDEN[-1], CLASSES),
    ),
    activations=tuple(ActivationSpec(f"tanh-{index}", "tanh") for index in range(len(HIDDEN))),
    parameters=(ParameterSpec("alpha", 0.0, 1.0),),
    chain=True,
    allowed_blending_methods=METHODS,
    optimizer_family="adam",
)


def _seed_blueprint(
    blueprint_id: str, name: str, width: int, activation: str, risk: float
) -> Blueprint:
    return Blueprint(
        blueprint_id=blueprint_id,
        name=name,
        tier=BlueprintTier.SAFE,
        risk=risk,
        layers=(
            _dense("expand", 0, activation, HIDDEN[0], width),
            _dense("project", 1, "identity", width, HIDDEN[0]),
        ),
        activations=(ActivationSpec("inner", activation),),
        parameters=(ParameterSpec("alpha", 0.0, 1.0),),
        chain=True,
        allowed_blending_methods=METHODS,
        optimizer_family="adam",
    )


SEED_BLUEPRINTS = (
    _seed_blueprint("mlp-wide", "48 hidden units", 48, "gelu", 0.2),
    _seed_blueprint("mlp-narrow", "16 hidden units", 16, "gelu", 0.1),
    _seed_blueprint("low-rank", "a linear map of rank 3", 3, "identity", 0.1),
)
