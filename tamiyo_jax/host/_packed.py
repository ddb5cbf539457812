"""Several numbers in one array, read by name.

Each array that a jitted step takes and returns costs time at every step, and each number that is an
output of its own is a kernel more to compile.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

__all__ = ["count", "flag", "number", "pack", "row", "settle"]


def number(place: int) -> property:
    """The number in this place of the last axis of ``numbers``."""

    def read(packed: Any) -> Any:  # noqa: ANN401 - of JAX or of NumPy
        return packed.numbers[..., place]

    return property(read)


def count(place: int) -> property:
    """The same as an i32."""

    def read(packed: Any) -> Any:  # noqa: ANN401
        return packed.numbers[..., place].astype(jnp.int32)

    return property(read)


def flag(place: int) -> property:
    """The same as a bool: whether it is above 0."""

    def read(packed: Any) -> Any:  # noqa: ANN401
        return packed.numbers[..., place] > 0

    return property(read)


def row(place: int) -> property:
    """The row in this place of the last axis but one of ``layers``."""

    def read(packed: Any) -> Any:  # noqa: ANN401
        return packed.layers[..., place, :]

    return property(read)


def pack(*numbers: jax.typing.ArrayLike) -> jax.Array:
    """f32[n] of n scalars of any dtype; by selection, which XLA compiles to a single kernel."""
    place, packed = np.arange(len(numbers)), jnp.zeros(len(numbers), jnp.float32)
    for index, each in enumerate(numbers):
        packed = jnp.where(place == index, jnp.asarray(each).astype(jnp.float32), packed)
    return packed


def settle(numbers: jax.Array) -> jax.Array:
    """The same f32[..., n], computed once.

    XLA on a CPU repeats what leads to a number in every kernel that reads it, up to the next
    reduction, so here is one, of each number with −∞.
    """
    alone = np.array([True, False]).reshape(2, *[1] * numbers.ndim)
    return jnp.max(jnp.where(alone, numbers[None], -jnp.inf), axis=0)
