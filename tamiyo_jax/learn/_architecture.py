"""The host networks of the environment: fixed shapes, so that hundreds train in one program.

The host, its slots and its candidates are those of `host` and `growth`. One thing differs from a
host that trains alone: a slot always holds the parameters of all its candidates, and `WHICH` says
which of them grows, so that the structure of the state never changes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache, reduce
from typing import Any, NamedTuple, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from tamiyo_jax.contracts import Blueprint, ParameterSpec
from tamiyo_jax.growth import METHODS, Bank, Gate, Seed, Timing, slot_apply, slot_init
from tamiyo_jax.host import Host, blueprint_of, monitor, seed_bank, tamiyo_scale

__all__ = ["GROWN", "WHICH", "Architecture", "Batch", "Network", "network_for"]

Params = Any

GROWN = "grown"
"""The name of what grows in a slot of the environment, whichever candidate it is."""
WHICH = "which"
"""The leaf f32[B] that is above 0 for the candidate that grows."""

CLIP = 1.0
WEIGHT_DECAY = 1e-2
SEED_LEARNING_RATE = 1e-2
KERNEL = 5
BLEND_EPOCHS = 2
EMBARGO_EPOCHS = 2


class Batch(NamedTuple):
    """Labelled examples: inputs f32[N, D], labels i32[N]."""

    inputs: jax.Array
    labels: jax.Array


class RateState(NamedTuple):
    """State of `_scale_by_rate`: f32[], the learning rate of the task."""

    learning_rate: jax.Array


def _scale_by_rate() -> optax.GradientTransformation:
    """Descend at a learning rate that is part of the state, so that it may differ by task."""

    def init(params: Params) -> RateState:
        del params
        return RateState(jnp.float32(0))

    def update(
        updates: Params, state: RateState, params: Params = None
    ) -> tuple[Params, RateState]:
        del params
        return jax.tree.map(lambda u: -state.learning_rate * u, updates), state

    return optax.GradientTransformation(init, cast(optax.TransformUpdateFn, update))


@dataclass(frozen=True, slots=True)
class Architecture:
    """The static shape of a host and of its training; equal architectures share programs.

    Attributes:
      name: names the host in packets.
      inputs: D, numbers of an example.
      widths: units of each hidden layer, or channels of each convolution.
      classes: C, logits.
      examples: N, to learn from; an epoch sees each of them once.
      batch_size: examples in an optimiser step; divides `examples`.
      epochs: length of a run, in decisions.
      convolution: layers are convolutions with a kernel of 5 and a stride of 2.
    """

    name: str
    inputs: int
    widths: tuple[int, ...]
    classes: int
    examples: int
    batch_size: int
    epochs: int
    convolution: bool = False

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps between two decisions."""
        return self.examples // self.batch_size


@dataclass(frozen=True, slots=True, eq=False)
class Network:
    """What an architecture is made of; see `network_for`.

    Attributes:
      architecture: its shape.
      host: what `train_step` trains; the learning rate is a number of the optimiser's state.
      init_params: ``key -> params``.
      logits: ``(params, seeds, gates, inputs) -> f32[N, C]``.
      blueprint: of the host.
      candidates: B blueprints that a slot may grow, in the order of `WHICH`.
      slot_depths: index of the layer that each slot follows, by slot id.
    """

    architecture: Architecture
    host: Host
    init_params: Any
    logits: Any
    blueprint: Blueprint
    candidates: tuple[Blueprint, ...]
    slot_depths: Mapping[str, int]


def _patches(x: jax.Array) -> jax.Array:
    """Windows f32[N, P/2, K·C] of f32[N, P, C]: a convolution is a dense layer on them.

    Kernels that differ between the hosts of a batch make XLA's own convolution slow on a CPU.
    """
    points = x.shape[1]
    padded = jnp.pad(x, ((0, 0), (KERNEL // 2, KERNEL // 2), (0, 0)))
    where = jnp.arange(0, points, 2)[:, None] + jnp.arange(KERNEL)[None, :]
    windows = padded[:, where]
    return windows.reshape(len(x), windows.shape[1], -1)


def _layer(architecture: Architecture, params: Params, index: int, x: jax.Array) -> jax.Array:
    layer = params[f"hidden-{index}"]
    x = _patches(x) if architecture.convolution else x
    return jnp.tanh(
        jnp.matmul(x, layer["kernel"])
        + jnp.broadcast_to(layer["bias"], (1,) * (x.ndim - 1) + layer["bias"].shape)
    )


def _grown_seed(bank: Bank, ids: tuple[str, ...]) -> Seed:
    """All candidates as one seed, of which `WHICH` chooses."""

    def init(key: jax.Array, x: jax.Array) -> Params:
        return {WHICH: jnp.zeros(len(ids), jnp.float32), **slot_init(bank, key, x)}

    def apply(params: Params, x: jax.Array) -> jax.Array:
        chosen = (jax.lax.stop_gradient(params[WHICH]) > 0).astype(x.dtype)
        outputs = [
            share * bank[one].apply(params[one], x) for share, one in zip(chosen, ids, strict=True)
        ]
        return reduce(jnp.add, outputs)

    return Seed(init, apply)


@lru_cache(maxsize=16)
def network_for(architecture: Architecture) -> Network:
    """Make the host of an architecture, with a slot after each of its first two layers."""
    shape = architecture
    found = seed_bank("mlp", jax.ShapeDtypeStruct((1, max(shape.widths[:2])), jnp.float32))
    candidates = found.blueprints
    ids = tuple(one.blueprint_id for one in candidates)
    bank = {GROWN: _grown_seed(found.bank, ids)}
    names = tuple(f"slot-{index}" for index in range(2))

    def logits(params: Params, seeds: Params, gates: Params, inputs: jax.Array) -> jax.Array:
        x = inputs[:, :, None] if shape.convolution else inputs
        for index in range(len(shape.widths)):
            x = _layer(shape, params, index, x)
            if index < len(names):
                x = slot_apply(bank, seeds[names[index]], gates[names[index]], x)
        readout = params["readout"]
        return x.reshape(len(x), -1) @ readout["kernel"] + readout["bias"][None, :]

    def loss(params: Params, seeds: Params, gates: Params, batch: Batch) -> jax.Array:
        found = logits(params, seeds, gates, batch.inputs)
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(found, batch.labels))

    def init_params(key: jax.Array) -> Params:
        return _init(shape, key)

    def init_seeds(key: jax.Array) -> dict[str, Params]:
        keys = jax.random.split(key, len(names))
        return {
            name: slot_init(bank, one, jnp.zeros((1, width), jnp.float32))
            for name, one, width in zip(names, keys, shape.widths[:2], strict=True)
        }

    adam = (optax.scale_by_adam(), optax.add_decayed_weights(WEIGHT_DECAY), _scale_by_rate())
    clip = optax.clip_by_global_norm(CLIP)
    seed_adam = optax.chain(clip, optax.adamw(SEED_LEARNING_RATE, weight_decay=WEIGHT_DECAY))
    steps = shape.steps_per_epoch
    example = jnp.zeros((1, shape.inputs), jnp.float32)
    closed = {name: Gate(jnp.float32(0)) for name in names}
    nothing: dict[str, Params] = {name: {} for name in names}
    key = jax.random.PRNGKey(0)  # a blueprint asks for shapes alone
    return Network(
        architecture=shape,
        host=Host(
            loss=loss,
            optimizer=monitor(optax.chain(clip, *adam, tamiyo_scale())),
            seed_optimizer=optax.flatten(seed_adam),
            init_seeds=init_seeds,
            timing=Timing(BLEND_EPOCHS * steps, EMBARGO_EPOCHS * steps),
        ),
        init_params=init_params,
        logits=logits,
        blueprint=replace(
            blueprint_of(
                init_params(key),
                lambda params, x: logits(params, nothing, closed, x),
                example,
                blueprint_id=f"{shape.name}-host",
                risk=0.1,
            ),
            parameters=(ParameterSpec("alpha", 0.0, 1.0),),
            allowed_blending_methods=METHODS,
        ),
        candidates=candidates,
        slot_depths={name: index for index, name in enumerate(names)},
    )


def _init(shape: Architecture, key: jax.Array) -> Params:
    """Glorot-uniform weights and zero biases (Glorot & Bengio 2010, eq. 16)."""
    weights = nn.initializers.glorot_uniform()
    params: dict[str, Params] = {}
    points, channels = (shape.inputs, 1) if shape.convolution else (1, shape.inputs)
    for index, width in enumerate(shape.widths):
        before = channels * (KERNEL if shape.convolution else 1)
        kernel = weights(jax.random.fold_in(key, index), (before, width), jnp.float32)
        params[f"hidden-{index}"] = {"kernel": kernel, "bias": jnp.zeros(width, jnp.float32)}
        points, channels = math.ceil(points / 2) if shape.convolution else 1, width
    last = cast(tuple[int, int], (points * channels, shape.classes))
    kernel = weights(jax.random.fold_in(key, len(shape.widths)), last, jnp.float32)
    params["readout"] = {"kernel": kernel, "bias": jnp.zeros(shape.classes, jnp.float32)}
    return params
