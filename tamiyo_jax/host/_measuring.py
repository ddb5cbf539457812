"""Numbers of one training step, by layer and over the whole network.

A layer is an inner node of the parameter tree that holds arrays, named by its path, whichever
library made it. For a layer of n numbers with the gradient g, the weights w and the update u,
each taken as one vector, in each step:

    gradient_norm      ‖g‖
    weight_norm        ‖w‖, before the update
    update_ratio       ‖u‖ / ‖w‖; 0 for w = 0

What compares steps needs the gradients of earlier steps. A moving average of all of them
would be another copy of the parameters in memory, so it is kept for a sample s of g: of each
array at most `SAMPLE` numbers, evenly spaced along its axes, each times √(numbers that it
stands for), so that ⟨s, s⟩ estimates ‖g‖². Where all arrays are that small, s is g. The samples of
all layers are the rows of one matrix, zero where a sample is shorter than the longest. With
the moving average m of s, the rate a (`RATE`) and d = s − m:

    gradient_variance  v ← (1 − a)(v + a ‖d‖²/n), the exponentially weighted variance over
                       steps (Finch 2009, eq. 143), averaged over the layer's numbers
    conflict           the share of layers with cos(s, m) < −0.1, m from before this step
    m ← m + a d

A gradient that is not finite leaves v and m of its layer as they are, or they would stay so
for good. A cosine estimated from k numbers has a standard error of about 1/√k: 0.016 for 4,096.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32

from tamiyo_jax.host._naming import leaf_layers

__all__ = [
    "CONFLICT_COSINE",
    "RATE",
    "SAMPLE",
    "Measured",
    "divide",
    "layers_of",
    "measure",
    "sample",
]

RATE = 0.1
CONFLICT_COSINE = -0.1
SAMPLE = 4096

Params = Any


class Measured(NamedTuple):
    """Numbers of one step over L layers.

    Attributes:
      gradient_norm: f32[L].
      weight_norm: f32[L].
      update_norm: f32[L].
      gradient_variance: f32[L].
      conflict: f32[], a share in [0, 1].
    """

    gradient_norm: jax.Array
    weight_norm: jax.Array
    update_norm: jax.Array
    gradient_variance: jax.Array
    conflict: jax.Array


def layers_of(tree: Params) -> dict[str, list[Any]]:
    """The arrays of each layer, or their shapes, by its name; for parameters or gradients."""
    layers: dict[str, list[Any]] = {}
    for name, array in zip(leaf_layers(tree), jax.tree.leaves(tree), strict=True):
        layers.setdefault(name, []).append(array)
    return layers


def measure(
    gradient: Params,
    updates: Params,
    params: Params,
    *,
    gradient_mean: Float32[Array, "layers sample"],
    gradient_variance: Float32[Array, " layers"],
) -> tuple[Float32[Array, "layers sample"], Measured]:
    """The moving averages after this step, and the step's numbers.

    Args:
      gradient: of the step.
      updates: what the optimiser makes of it.
      params: before the step.
      gradient_mean: f32[L, k], the moving average of the sampled gradient, see `sample`.
      gradient_variance: f32[L], after the step before.
    """
    weights = layers_of(params).values()
    gradients = layers_of(gradient).values()
    samples = sample(gradients)
    deviations = samples - gradient_mean
    sizes = jnp.array([sum(array.size for array in layer) for layer in weights], jnp.float32)
    spread = _dots(deviations, deviations) / jnp.maximum(sizes, 1)
    finite = jnp.isfinite(spread)
    mean = jnp.where(finite[:, None], gradient_mean + RATE * deviations, gradient_mean)
    lengths = [jnp.sqrt(_dots(x, x)) for x in (samples, gradient_mean)]
    cosine = divide(_dots(samples, gradient_mean), lengths[0] * lengths[1])
    following = (1 - RATE) * (gradient_variance + RATE * spread)
    return mean, Measured(
        gradient_norm=_norms(gradients),
        weight_norm=_norms(weights),
        update_norm=_norms(layers_of(updates).values()),
        gradient_variance=jnp.where(finite, following, gradient_variance),
        conflict=jnp.mean((cosine < CONFLICT_COSINE).astype(jnp.float32)),
    )


def sample(layers: Iterable[Sequence[jax.Array]]) -> Float32[Array, "layers sample"]:
    """f32[L, k]: the sample of each layer's numbers, each weighted for those that it stands for."""
    rows = [_sample_layer(layer) for layer in layers]
    longest = max(row.size for row in rows)
    return jnp.stack([jnp.pad(row, (0, longest - row.size)) for row in rows])


def _sample_layer(layer: Sequence[jax.Array]) -> Float32[Array, " k"]:
    parts = [jnp.zeros(0, jnp.float32)]
    for array in layer:
        taken = array[_grid(array.shape)].ravel()
        weight = math.sqrt(array.size / max(taken.size, 1))
        numbers = (taken.real, taken.imag) if jnp.iscomplexobj(taken) else (taken,)
        parts += [weight * part.astype(jnp.float32) for part in numbers]
    return jnp.concatenate(parts)


def _grid(shape: tuple[int, ...]) -> tuple[slice, ...]:
    """At most `SAMPLE` positions: the longest axis is halved until they are so few.

    Slices along the axes, since flattening an array that is sharded would gather it.
    """
    strides = [1] * len(shape)
    lengths = list(shape)
    while math.prod(lengths) > SAMPLE:
        axis = lengths.index(max(lengths))
        strides[axis] *= 2
        lengths[axis] = -(-shape[axis] // strides[axis])
    return tuple(slice(None, None, stride) for stride in strides)


def _norms(layers: Iterable[Sequence[jax.Array]]) -> Float32[Array, " layers"]:
    """f32[L]: the norm of each layer.

    The same sums of squares as in `optax.tree.norm`, which XLA then computes once where the
    optimiser clips by the global norm.
    """
    return jnp.sqrt(jnp.stack([sum(map(_sum_squares, layer), jnp.float32(0)) for layer in layers]))


def _sum_squares(array: jax.Array) -> Float32[Array, ""]:
    """f32[], the sum of squares; narrow floats are widened first."""
    wide = array if array.dtype.itemsize >= 4 else array.astype(jnp.float32)
    return jnp.sum((wide.conj() * wide).real).astype(jnp.float32)


def _dots(
    left: Float32[Array, "layers sample"], right: Float32[Array, "layers sample"]
) -> Float32[Array, " layers"]:
    """f32[L]: the inner product of each row with the other's."""
    return jnp.sum(left * right, axis=1)


def divide(a: Float32[Array, "*shape"], b: Float32[Array, "*shape"]) -> Float32[Array, "*shape"]:
    """A / b, and 0 where b is 0."""
    return jnp.where(b > 0, a / jnp.where(b > 0, b, 1), 0)
