"""Measuring a training run inside its own jitted step.

`monitor` wraps any Optax optimiser and leaves its updates as they are. A layer is an inner
node of the parameter tree that holds arrays, named by its path, whichever library made it.

For a layer of n numbers with the gradient g, the weights w and the update u, each taken as
one vector, in each step:

    gradient_norm      ‖g‖
    weight_norm        ‖w‖, before the update
    update_ratio       ‖u‖ / ‖w‖; 0 for w = 0

What compares steps needs the gradients of earlier steps. A moving average of all of them
would be another copy of the parameters in memory, so it is kept for a sample s of g: of each
array at most `SAMPLE` numbers, evenly spaced along its axes, each times √(numbers that it
stands for), so that ⟨s, s⟩ estimates ‖g‖². Where all arrays are that small, s is g. With
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
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax

from tamiyo_jax.errors import ConfigurationError
from tamiyo_jax.host.naming import leaf_layers

__all__ = [
    "CONFLICT_COSINE",
    "RATE",
    "SAMPLE",
    "MonitorState",
    "Statistics",
    "layer_names",
    "monitor",
    "statistics",
]

RATE = 0.1
CONFLICT_COSINE = -0.1
SAMPLE = 4096

Params = Any


class Statistics(NamedTuple):
    """Measurements of one step over L layers, in the order of `layer_names`.

    Attributes:
      gradient_norm: f32[L].
      weight_norm: f32[L].
      update_ratio: f32[L].
      gradient_variance: f32[L].
      conflict: f32[], a share in [0, 1].
    """

    gradient_norm: jax.Array
    weight_norm: jax.Array
    update_ratio: jax.Array
    gradient_variance: jax.Array
    conflict: jax.Array


class MonitorState(NamedTuple):
    """State of `monitor`.

    Attributes:
      inner: the wrapped optimiser's.
      gradient_mean: f32[k] by layer, the moving average of its sampled gradient.
      statistics: the newest numbers.
    """

    inner: optax.OptState
    gradient_mean: tuple[jax.Array, ...]
    statistics: Statistics


def layer_names(params: Params) -> tuple[str, ...]:
    """Names of the layers of a parameter tree: the paths of arrays without their last part."""
    return tuple(_layers(params))


def monitor(tx: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """Wrap an optimiser so that it also measures; the updates stay the same.

    Read the numbers with `statistics`. ``update`` needs the parameters.

    Raises:
      ConfigurationError: from ``init``, there is no array to measure; from ``update``, no
        parameters were given.
    """
    inner = optax.with_extra_args_support(tx)

    def init(params: Params) -> MonitorState:
        layers = _layers(params)
        if not layers:
            raise ConfigurationError("the parameters hold no array; give monitor some to measure")
        zeros = jnp.zeros(len(layers), jnp.float32)
        return MonitorState(
            inner.init(params),
            tuple(jnp.zeros_like(_sample(layer)) for layer in layers.values()),
            Statistics(zeros, zeros, zeros, zeros, jnp.float32(0)),
        )

    def update(
        gradient: Params, state: MonitorState, params: Params | None = None, **extra: object
    ) -> tuple[Params, MonitorState]:
        if params is None:
            raise ConfigurationError(
                "monitor measures weights; call update(gradient, state, params)"
            )
        updates, inner_state = inner.update(gradient, state.inner, params, **extra)
        mean, measured = _measure(gradient, updates, params, state)
        return updates, MonitorState(inner_state, mean, measured)

    return optax.GradientTransformationExtraArgs(
        init, cast(optax.TransformUpdateExtraArgsFn, update)
    )


def statistics(opt_state: object) -> Statistics:
    """The newest numbers in an optimiser state, or any pytree around one, that holds a `monitor`.

    Call it inside the jitted step and return them as an output of the step: the optimiser
    state's own buffers may have been donated by the time that anyone reads them.

    Raises:
      ConfigurationError: there is no monitor in it, or more than one.
    """
    nodes = jax.tree.leaves(opt_state, is_leaf=lambda node: isinstance(node, MonitorState))
    found = [node for node in nodes if isinstance(node, MonitorState)]
    if len(found) != 1:
        remedy = (
            "wrap it once"
            if found
            else "wrap it, monitor(tx), and give a state that holds the one that its init made: "
            "parameters alone hold none"
        )
        raise ConfigurationError(
            f"the optimiser is not monitored once but {len(found)} times; {remedy}",
            monitors=len(found),
        )
    return Statistics(*jax.tree.leaves(found[0].statistics))  # NNX boxes an optimiser's arrays


def _layers(tree: Params) -> dict[str, list[jax.Array]]:
    """The arrays of each layer, by its name; alike for parameters, gradients and updates."""
    layers: dict[str, list[jax.Array]] = {}
    for name, array in zip(leaf_layers(tree), jax.tree.leaves(tree), strict=True):
        layers.setdefault(name, []).append(array)
    return layers


def _measure(
    gradient: Params, updates: Params, params: Params, state: MonitorState
) -> tuple[tuple[jax.Array, ...], Statistics]:
    """The moving average after this step, and the step's numbers."""
    weights = _layers(params).values()
    gradients = _layers(gradient).values()
    samples = [_sample(layer) for layer in gradients]
    deviations = [s - m for s, m in zip(samples, state.gradient_mean, strict=True)]
    sizes = jnp.array([sum(array.size for array in layer) for layer in weights], jnp.float32)
    spread = _dots(deviations, deviations) / jnp.maximum(sizes, 1)
    finite = jnp.isfinite(spread)
    before = state.statistics.gradient_variance
    mean = tuple(
        jnp.where(ok, m + RATE * d, m)
        for ok, m, d in zip(finite, state.gradient_mean, deviations, strict=True)
    )
    lengths = [jnp.sqrt(_dots(x, x)) for x in (samples, state.gradient_mean)]
    cosine = _divide(_dots(samples, state.gradient_mean), lengths[0] * lengths[1])
    weight_norm = _norms(weights)
    return mean, Statistics(
        gradient_norm=_norms(gradients),
        weight_norm=weight_norm,
        update_ratio=_divide(_norms(_layers(updates).values()), weight_norm),
        gradient_variance=jnp.where(finite, (1 - RATE) * (before + RATE * spread), before),
        conflict=jnp.mean((cosine < CONFLICT_COSINE).astype(jnp.float32)),
    )


def _sample(layer: Sequence[jax.Array]) -> jax.Array:
    """f32[k]: the sample of a layer's numbers, each weighted for those that it stands for."""
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


def _norms(layers: Iterable[Sequence[jax.Array]]) -> jax.Array:
    """f32[L]: the norm of each layer.

    The same sums of squares as in `optax.tree.norm`, which XLA then computes once where the
    optimiser clips by the global norm.
    """
    return jnp.sqrt(jnp.stack([sum(map(_squared, layer), jnp.float32(0)) for layer in layers]))


def _squared(array: jax.Array) -> jax.Array:
    """f32[], the sum of squares; narrow floats are widened first."""
    wide = array if array.dtype.itemsize >= 4 else array.astype(jnp.float32)
    return jnp.sum((wide.conj() * wide).real).astype(jnp.float32)


def _dots(left: Sequence[jax.Array], right: Sequence[jax.Array]) -> jax.Array:
    """f32[L]: the inner products of L pairs of vectors."""
    return jnp.stack([jnp.vdot(a, b) for a, b in zip(left, right, strict=True)])


def _divide(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.where(b > 0, a / jnp.where(b > 0, b, 1), 0)
