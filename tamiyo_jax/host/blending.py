"""Blending a seed into its host: how alpha rises, and what alpha does.

At alpha = 0 a slot is an exact identity, forward and backward. Arithmetic cannot promise
that: ``x + 0 * y`` turns −0.0 into 0.0 and an infinite y into NaN, and differentiating a
plain `where` multiplies the zero cotangent of the unused side by that infinity. So the
choice is made on values *and* on cotangents, by `gated`.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

__all__ = ["METHODS", "BlendMode", "BlendSchedule", "alpha_at", "gated", "mix"]

METHODS = ("linear", "cosine", "warmup_hold")
"""Names of the blending methods, in the order in which commands index them."""


class BlendMode(StrEnum):
    """How a seed's output joins the host's."""

    CONVEX = "CONVEX"
    RESIDUAL = "RESIDUAL"


class BlendSchedule(NamedTuple):
    """How alpha rises from 0 to 1.

    Attributes:
      method: i32[], index into `METHODS`.
      start: f32[], fraction of the blend at which alpha leaves 0.
      end: f32[], fraction from which alpha is 1; not before `start`.
    """

    method: jax.Array
    start: jax.Array
    end: jax.Array


def alpha_at(schedule: BlendSchedule, progress: jax.Array) -> jax.Array:
    """Alpha (f32[]) after the fraction `progress` (f32[]) of the blend.

    With u running from 0 at the start to 1 at the end: linear is u, cosine is
    (1 − cos πu)/2, warmup_hold rises linearly over the first half and holds 1 from there.
    """
    span = schedule.end - schedule.start
    u = jnp.clip((progress - schedule.start) / jnp.where(span > 0, span, 1), 0, 1)
    shapes = jnp.stack([u, (1 - jnp.cos(jnp.pi * u)) / 2, jnp.minimum(2 * u, 1)])
    return jnp.where(progress >= schedule.end, 1, shapes[schedule.method])


def mix(mode: BlendMode, x: jax.Array, y: jax.Array, alpha: jax.Array) -> jax.Array:
    """The slot's output: CONVEX (1−α)x + αy, RESIDUAL x + αy, for α > 0."""
    if mode is BlendMode.CONVEX:
        return (1 - alpha) * x + alpha * y
    return x + alpha * y


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def gated(
    branch: Callable[[Any, Any, jax.Array, jax.Array], jax.Array],
    params: Any,  # noqa: ANN401 - any pytree of arrays
    selector: Any,  # noqa: ANN401 - any pytree of integer arrays
    alpha: jax.Array,
    x: jax.Array,
) -> jax.Array:
    """``branch(params, selector, alpha, x)`` where alpha > 0, and exactly x where it is not.

    At alpha = 0 the cotangent of x is the output's own, bit for bit, and that of `params` is
    zero, whatever the branch holds. Alpha itself is a schedule and receives no gradient.
    """
    return jnp.where(alpha > 0, branch(params, selector, alpha, x), x)


def _gated_forward(
    branch: Callable[..., jax.Array],
    params: Any,  # noqa: ANN401
    selector: Any,  # noqa: ANN401
    alpha: jax.Array,
    x: jax.Array,
) -> tuple[jax.Array, tuple[Callable[[jax.Array], Any], jax.Array]]:
    y, pull = jax.vjp(lambda p, v: branch(p, selector, alpha, v), params, x)
    return jnp.where(alpha > 0, y, x), (pull, alpha)


def _gated_backward(
    branch: Callable[..., jax.Array],
    residuals: tuple[Callable[[jax.Array], Any], jax.Array],
    cotangent: jax.Array,
) -> tuple[Any, None, None, jax.Array]:
    del branch
    pull, alpha = residuals
    open_ = alpha > 0
    for_params, for_x = pull(cotangent)
    for_params = jax.tree.map(lambda g: jnp.where(open_, g, jnp.zeros_like(g)), for_params)
    return for_params, None, None, jnp.where(open_, for_x, cotangent)


gated.defvjp(_gated_forward, _gated_backward)
