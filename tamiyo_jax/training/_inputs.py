"""What users hand to `Plug` in many forms: models, losses and what steps measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tamiyo_jax.errors import ConfigurationError
from tamiyo_jax.host import StepMetrics, statistics

__all__ = ["add_step", "split_model", "total_loss"]

Params = Any


def split_model(model: Any) -> tuple[Params, Callable[[Params], Any]]:  # noqa: ANN401
    """Split a model into its floating arrays and a function that puts such arrays back.

    Args:
      model: any pytree; leaves that are not floating arrays stay in the function.
    """
    leaves, structure = jax.tree.flatten(model)
    params = jax.tree.map(lambda leaf: leaf if _is_learned(leaf) else None, model)

    def join(params: Params) -> Any:  # noqa: ANN401
        learned = iter(jax.tree.leaves(params))
        return structure.unflatten([next(learned) if _is_learned(x) else x for x in leaves])

    return params, join


def total_loss(loss: Any) -> jax.Array:  # noqa: ANN401 - a number, an array, or several
    """f32[]: the loss of a step as one number.

    Args:
      loss: a Python float, an array of any floating dtype whose mean is taken, a tuple whose
        first element is the loss (as with ``has_aux``), or a dict whose values are added up.

    Raises:
      ConfigurationError: there is no floating number in it.
    """
    match loss:
        case Mapping() if loss:
            parts = [total_loss(part) for part in loss.values()]
            return jnp.sum(jnp.stack(parts))
        case tuple() | list() if loss:
            return total_loss(loss[0])
        case float() | jax.Array() | np.ndarray() | np.floating() if _is_floating(loss):
            return jnp.mean(jnp.asarray(loss, jnp.float32))
        case _:
            raise ConfigurationError(
                f"the loss is {type(loss).__name__} ({loss!r:.80}); give a floating number or "
                "array, a tuple that begins with one, or a dict of them",
                field="measured",
                kind=type(loss).__name__,
            )


def add_step(total: StepMetrics | None, state: object, measured: Any) -> StepMetrics:  # noqa: ANN401
    """The sum of step metrics with one more step, in buffers of its own.

    The step's own buffers may be donated to the next one.

    Args:
      total: the sum so far; None before the first step.
      state: the train state after the step; holds a monitored optimiser.
      measured: the step's `StepMetrics`, or its loss as `total_loss` takes it.

    Raises:
      ConfigurationError: the loss is no number, or the optimiser is not monitored.
    """
    if not isinstance(measured, StepMetrics):
        measured = StepMetrics(total_loss(measured), {}, statistics(state))
    return _add(total, measured)


@jax.jit
def _add(total: StepMetrics | None, measured: StepMetrics) -> StepMetrics:
    wide = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), measured)
    return jax.tree.map(jnp.add, total or jax.tree.map(jnp.zeros_like, wide), wide)


def _is_learned(leaf: object) -> bool:
    return isinstance(leaf, jax.Array | np.ndarray) and jnp.issubdtype(leaf.dtype, jnp.inexact)


def _is_floating(loss: Any) -> bool:  # noqa: ANN401
    return isinstance(loss, float) or (
        jnp.issubdtype(loss.dtype, jnp.floating) and np.size(loss) > 0
    )
