"""The multiplier of the learning rate that Tamiyo changes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar, cast

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Float32

from tamiyo_jax.errors import CommandRejectedError
from tamiyo_jax.host._shared import map_shared, split_shared

__all__ = ["LIMITS", "ScaleState", "scale_by", "scale_of", "tamiyo_scale"]

State = TypeVar("State")

LIMITS = (0.001, 10.0)
"""Bounds of the multiplier after all commands together."""


class ScaleState(NamedTuple):
    """State of `tamiyo_scale`: f32[], the multiplier, 1 at the start."""

    factor: Float32[Array, ""]


def tamiyo_scale() -> optax.GradientTransformation:
    """Multiply updates by a factor that only commands change.

    Put it last in the chain, so that it scales what the schedule and all else have made.
    """

    def init(params: Any) -> ScaleState:  # noqa: ANN401 - any pytree
        del params
        return ScaleState(jnp.float32(1))

    def update(
        updates: Any,  # noqa: ANN401
        state: ScaleState,
        params: Any = None,  # noqa: ANN401
    ) -> tuple[Any, ScaleState]:
        del params
        return jax.tree.map(lambda u: u * state.factor.astype(u.dtype), updates), state

    return optax.GradientTransformation(init, cast(optax.TransformUpdateFn, update))


def scale_by(
    opt_state: State, factor: float | Float32[Array, ""], limits: tuple[float, float]
) -> State:
    """Multiply the multipliers by `factor`, and keep them within `limits`.

    Args:
      opt_state: an optimiser state that holds a `tamiyo_scale`, or any pytree around one.
      factor: f32[] or a number, greater than 0.
      limits: the least and the greatest multiplier.

    Raises:
      CommandRejectedError: the optimiser has no `tamiyo_scale`.
    """
    scale_of(opt_state)
    least, greatest = map(jnp.float32, limits)

    def scale(old: jax.Array) -> jax.Array:
        return jnp.clip(old * jnp.float32(factor), least, greatest)

    def change(node: object) -> object:
        return jax.tree.map(scale, node) if _is_scale(node) else node

    if isinstance(split_shared(opt_state)[0], nnx.State):
        return _scale_boxed(map_shared(lambda leaf: leaf, opt_state), scale)
    return jax.tree.map(change, opt_state, is_leaf=_is_scale)


def _scale_boxed(copied: State, scale: Callable[[jax.Array], jax.Array]) -> State:
    """Scale the multiplier of an NNX optimiser, which boxes its arrays, in a copy of its own."""
    for node in jax.tree.leaves(copied, is_leaf=_is_scale):
        if isinstance(node, ScaleState):
            box = cast(nnx.Variable[jax.Array], node.factor)
            box.set_value(scale(box.get_value()))
    return copied


def scale_of(opt_state: object) -> Float32[Array, ""]:
    """f32[], the multiplier in an optimiser state, or in any pytree around one.

    Raises:
      CommandRejectedError: the optimiser has no `tamiyo_scale`.
    """
    nodes = jax.tree.leaves(opt_state, is_leaf=_is_scale)
    found = [array for node in nodes if _is_scale(node) for array in jax.tree.leaves(node)]
    if not found:
        raise CommandRejectedError(
            "the optimiser has no multiplier for Tamiyo; put tamiyo_scale() last in its chain"
        )
    return found[0]


def _is_scale(node: object) -> bool:
    return isinstance(node, ScaleState)
