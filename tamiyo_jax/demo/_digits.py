"""The demonstration task: real scans of handwritten digits, and a network too small for them.

1,797 scans of 8×8 pixels (scikit-learn's copy of the UCI set "Optical Recognition of
Handwritten Digits"), and a perceptron whose hidden layers are four units wide.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from tamiyo_jax.contracts import ActivationSpec, Blueprint, BlueprintTier, LayerSpec, ParameterSpec
from tamiyo_jax.errors import ConfigurationError
from tamiyo_jax.growth import METHODS, Bank, SeedSlot, Timing, linen_seed, slot_variables
from tamiyo_jax.host import Host, monitor, tamiyo_scale
from tamiyo_jax.training import Data, Task

__all__ = ["digits_task"]

BATCH = 32
LEARNING_RATE = 3e-3
WEIGHT_DECAY = 5e-2
SMOOTHING = 0.1
CLIP = 1.0
HIDDEN = (4, 4)
CLASSES = 10
PIXELS = 64
VALIDATION_SHARE = 0.2
TEST_SHARE = 0.2
BLEND_EPOCHS = 2
EMBARGO_EPOCHS = 2


class Perceptron(nn.Module):
    """A residual branch through `width` hidden units: dense, GELU, dense."""

    width: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map f32[B, D] to f32[B, D]."""
        hidden = nn.gelu(nn.Dense(self.width)(x))
        return nn.Dense(x.shape[-1])(hidden)


class Gated(nn.Module):
    """A residual branch through `width` gated linear units (Dauphin et al. 2017, eq. 1)."""

    width: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map f32[B, D] to f32[B, D]."""
        hidden = nn.Dense(self.width)(x) * nn.sigmoid(nn.Dense(self.width)(x))
        return nn.Dense(x.shape[-1])(hidden)


WIDE, NARROW, GATED = 24, 12, 12

BANK: Bank = {
    "mlp-wide": linen_seed(Perceptron(WIDE)),
    "mlp-narrow": linen_seed(Perceptron(NARROW)),
    "gated": linen_seed(Gated(GATED)),
}


class Narrow(nn.Module):
    """The host: a perceptron with two hidden layers of four units.

    A slot is placed on the pixels, and another after each hidden layer.
    """

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map f32[B, 64] to logits f32[B, 10]."""
        x = SeedSlot(BANK, name="seed-0")(x)
        for index, width in enumerate(HIDDEN):
            x = nn.tanh(nn.Dense(width, name=f"hidden-{index}")(x))
            x = SeedSlot(BANK, name=f"seed-{index + 1}")(x)
        return nn.Dense(CLASSES, name="readout")(x)


SLOT_DEPTHS = {"seed-0": 0, "seed-1": 0, "seed-2": 1}


def digits_task(seed: int) -> Task:
    """Build the task, split by `seed` into 60 % training, 20 % validation and 20 % test scans.

    Raises:
      ConfigurationError: scikit-learn, which ships the scans, is not installed.
    """
    train, validation, test = _split(seed)
    steps_per_epoch = len(train.labels) // BATCH
    model = Narrow()
    example = jnp.zeros((1, PIXELS), jnp.float32)

    def loss(params: Any, seeds: Any, gates: Any, batch: Data) -> jax.Array:  # noqa: ANN401
        return _cross_entropy(logits(params, seeds, gates, batch.inputs), batch.labels)

    def logits(params: Any, seeds: Any, gates: Any, x: jax.Array) -> jax.Array:  # noqa: ANN401
        return cast(jax.Array, model.apply(slot_variables(params, seeds, gates), x))

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
        seed_optimizer=optax.flatten(adam),
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
        slot_depths=SLOT_DEPTHS,
        optimizer_id="adamw",
        seed_learning_rate=LEARNING_RATE,
    )


def _cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Mean cross-entropy with smoothed labels.

    On a thousand scans the unsmoothed training loss keeps falling by confidence alone, and
    the validation loss rises although the accuracy does too.
    """
    targets = optax.smooth_labels(jax.nn.one_hot(labels, CLASSES), SMOOTHING)
    return jnp.mean(optax.softmax_cross_entropy(logits, targets))


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
    blueprint_id: str, name: str, width: int, activation: str, risk: float, branches: int = 1
) -> Blueprint:
    """Describe a candidate with the sizes that it has on the pixels, its largest slot."""
    before = branches * (PIXELS + 1) * width
    return Blueprint(
        blueprint_id=blueprint_id,
        name=name,
        tier=BlueprintTier.SAFE,
        risk=risk,
        layers=(
            replace(_dense("expand", 0, activation, PIXELS, width), parameter_count=before),
            _dense("project", 1, "identity", width, PIXELS),
        ),
        activations=(ActivationSpec("inner", activation),),
        parameters=(ParameterSpec("alpha", 0.0, 1.0),),
        chain=True,
        allowed_blending_methods=METHODS,
        optimizer_family="adam",
    )


SEED_BLUEPRINTS = (
    _seed_blueprint("mlp-wide", f"perceptron with {WIDE} hidden units", WIDE, "gelu", 0.2),
    _seed_blueprint("mlp-narrow", f"perceptron with {NARROW} hidden units", NARROW, "gelu", 0.1),
    _seed_blueprint("gated", f"{GATED} gated linear units", GATED, "glu", 0.1, branches=2),
)
