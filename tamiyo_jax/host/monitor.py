"""Measuring a training run inside its own jitted step.

`monitor` wraps any Optax optimiser and leaves its updates as they are. Layers are the inner
nodes of the parameter tree that hold arrays, named by their path, whichever library made it.

For the gradient g of a layer (all its arrays as one vector of n numbers), its moving average
m and the rate a (`RATE`), with d = g − m, in each step:

    gradient_norm      ‖g‖
    weight_norm        ‖w‖, before the update
    update_ratio       ‖u‖ / ‖w‖, u the update that the wrapped optimiser makes; 0 for w = 0
    gradient_variance  v ← (1 − a)(v + a ‖d‖²/n), the exponentially weighted variance over
                       steps (Finch 2009, eq. 143), averaged over the layer's n numbers
    conflict           the share of layers with cos(g, m) < −0.1, m from before this step
    m ← m + a d
"""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax

from tamiyo_jax.errors import ConfigurationError

__all__ = [
    "CONFLICT_COSINE",
    "RATE",
    "MonitorState",
    "Statistics",
    "layer_names",
    "monitor",
    "statistics",
]

RATE = 0.1
CONFLICT_COSINE = -0.1

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

    @property
    def total_gradient_norm(self) -> jax.Array:
        """f32[], the norm of the whole gradient."""
        return jnp.linalg.norm(self.gradient_norm)


class MonitorState(NamedTuple):
    """State of `monitor`: the wrapped optimiser's, the gradient's moving average, the numbers."""

    inner: optax.OptState
    gradient_mean: Params
    statistics: Statistics


def layer_names(params: Params) -> tuple[str, ...]:
    """Names of the layers of a parameter tree: the paths of arrays without their last part."""
    return tuple(_layers(params))


def monitor(tx: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """Wrap an optimiser so that it also measures; the updates stay the same.

    Read the numbers with `statistics`. ``update`` needs the parameters.
    """
    inner = optax.with_extra_args_support(tx)

    def init(params: Params) -> MonitorState:
        zeros = jnp.zeros(len(_layers(params)), jnp.float32)
        return MonitorState(
            inner.init(params),
            jax.tree.map(jnp.zeros_like, params),
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
        deviation = jax.tree.map(jnp.subtract, gradient, state.gradient_mean)
        measured = _measure(gradient, deviation, updates, params, state)
        mean = jax.tree.map(lambda m, d: m + RATE * d, state.gradient_mean, deviation)
        return updates, MonitorState(inner_state, mean, measured)

    return optax.GradientTransformationExtraArgs(
        init, cast(optax.TransformUpdateExtraArgsFn, update)
    )


def statistics(opt_state: optax.OptState) -> Statistics:
    """The newest numbers in an optimiser state that holds a `monitor`, at any depth.

    Call it inside the jitted step and return them as an output of the step: the optimiser
    state's own buffers may have been donated by the time that anyone reads them.

    Raises:
      ConfigurationError: there is no monitor in it.
    """
    found = [
        node
        for node in jax.tree.leaves(opt_state, is_leaf=lambda node: isinstance(node, MonitorState))
        if isinstance(node, MonitorState)
    ]
    if not found:
        raise ConfigurationError("the optimiser is not monitored; wrap it: monitor(tx)")
    return found[0].statistics


def _layers(params: Params) -> dict[str, list[int]]:
    """Indices of the leaves of each layer, by name."""
    layers: dict[str, list[int]] = {}
    for index, (path, _) in enumerate(jax.tree_util.tree_leaves_with_path(params)):
        kept = path[:-1] or path
        layers.setdefault(jax.tree_util.keystr(kept, simple=True, separator="/"), []).append(index)
    return layers


def _measure(
    gradient: Params, deviation: Params, updates: Params, params: Params, state: MonitorState
) -> Statistics:
    layers = tuple(_layers(params).values())
    size = jnp.array(
        [sum(jax.tree.leaves(params)[i].size for i in layer) for layer in layers], jnp.float32
    )
    gradient_norm = jnp.sqrt(_dots(layers, gradient, gradient))
    weight_norm = jnp.sqrt(_dots(layers, params, params))
    update_norm = jnp.sqrt(_dots(layers, updates, updates))
    mean_norm = jnp.sqrt(_dots(layers, state.gradient_mean, state.gradient_mean))
    scale = gradient_norm * mean_norm
    cosine = _divide(_dots(layers, gradient, state.gradient_mean), scale)
    spread = _dots(layers, deviation, deviation) / size
    return Statistics(
        gradient_norm=gradient_norm,
        weight_norm=weight_norm,
        update_ratio=_divide(update_norm, weight_norm),
        gradient_variance=(1 - RATE) * (state.statistics.gradient_variance + RATE * spread),
        conflict=jnp.mean((cosine < CONFLICT_COSINE).astype(jnp.float32)),
    )


def _dots(layers: tuple[list[int], ...], left: Params, right: Params) -> jax.Array:
    """f32[L]: the inner product of two trees, by layer."""
    products = [
        jnp.vdot(a, b).real.astype(jnp.float32)
        for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True)
    ]
    return jnp.stack([sum((products[i] for i in layer), jnp.float32(0)) for layer in layers])


def _divide(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.where(b > 0, a / jnp.where(b > 0, b, 1), 0)
