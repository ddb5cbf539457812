"""What users hand to `Plug` in many forms: models, losses and what steps measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.core import Tracer
from jaxtyping import Array, Float32

from tamiyo_jax.errors import ConfigurationError
from tamiyo_jax.host import HostState, Statistics, StepMetrics, all_statistics, scale_of

__all__ = ["StateReader", "count_steps", "read_steps", "split_model", "total_loss"]

Params = Any


class StateReader:
    """Finds the statistics and the multiplier in the train states of a loop.

    They are looked for in the first state, and in later ones of the same structure taken from
    the same places.
    """

    def __init__(self) -> None:
        self._structure: Any = None
        self._places: list[int] = []
        self._like: Any = None

    def __call__(
        self, state: object, *, measured: bool
    ) -> tuple[Statistics | None, Float32[Array, ""]]:
        """The newest statistics, as `host.all_statistics`; f32[], the multiplier.

        Args:
          state: after a step.
          measured: the statistics are known otherwise, and not looked for; always the same.

        Raises:
          ConfigurationError: as `host.all_statistics` does, or they have an axis too many.
          CommandRejectedError: the optimiser has no `tamiyo_scale`.
        """
        leaves, structure = jax.tree.flatten(state)
        if self._places and structure == self._structure:
            *numbers, multiplier = [leaves[place] for place in self._places]
            return jax.tree.unflatten(self._like, numbers), multiplier
        statistics = None if measured else all_statistics(state)
        if statistics is not None and jnp.ndim(statistics.conflict):
            raise _too_many_axes(statistics.conflict)
        multiplier = scale_of(state.opt_state if isinstance(state, HostState) else state)
        numbers, self._like = jax.tree.flatten(statistics)
        places = [_places_of(array, leaves) for array in (*numbers, multiplier)]
        certain = all(len(found) == 1 for found in places)
        self._structure, self._places = structure, [found[0] for found in places if certain]
        return statistics, multiplier


def _places_of(array: jax.Array, leaves: list[Any]) -> list[int]:
    return [place for place, leaf in enumerate(leaves) if leaf is array]


def split_model(model: Any) -> tuple[Params, Callable[[Params], Any]]:  # noqa: ANN401
    """Split a model into the arrays that are learned and a function that puts such arrays back.

    Args:
      model: an NNX module, whose `nnx.Param` variables are learned, or any other pytree, whose
        floating arrays are. All else stays in the function.
    """
    if isinstance(model, nnx.Module):
        definition, learned, rest = nnx.split(model, nnx.Param, ...)
        # A copy, for random states and batch statistics change when the model is called.
        return learned, lambda params: nnx.merge(definition, params, rest, copy=True)
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
        case jax.Array() if loss.dtype == jnp.float32 and not loss.ndim:
            return loss
        case float() | jax.Array() | np.ndarray() | np.floating() if _is_floating(loss):
            return jnp.mean(jnp.asarray(loss, jnp.float32))
        case _:
            raise ConfigurationError(
                f"the loss is {type(loss).__name__} ({loss!r:.80}); give a floating number or "
                "array, a tuple that begins with one, or a dict of them",
                field="measured",
                actual=type(loss).__name__,
            )


def read_steps(
    read: StateReader,
    state: object,
    measured: Any,  # noqa: ANN401
) -> tuple[StepMetrics, jax.Array]:
    """The metrics of a step, or of T steps with a leading axis T on every array; the multiplier.

    Args:
      read: finds the numbers in the states of this loop.
      state: the train state after the step; holds a monitored optimiser.
      measured: the step's `StepMetrics`, those of T steps as `jax.lax.scan` stacks them, or the
        loss of a step as `total_loss` takes it.

    Raises:
      ConfigurationError: the loss is no number, the optimiser is not monitored, its statistics
        have an axis too many, or this is traced by ``jax.jit``.
      CommandRejectedError: the optimiser has no `tamiyo_scale`.
    """
    numbers, multiplier = read(state, measured=isinstance(measured, StepMetrics))
    if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves((numbers, measured))):
        raise ConfigurationError(
            "a Plug was called while JAX traced a function; call it outside jax.jit, after the "
            "jitted step. Of an epoch under jax.lax.scan return the steps' StepMetrics, and "
            "call it once with them"
        )
    if isinstance(measured, StepMetrics):
        steps = jnp.ndim(measured.statistics.conflict)
        if steps > 1 or jnp.ndim(measured.loss) != steps:
            raise _too_many_axes(measured.statistics.conflict)
        return measured, multiplier
    return StepMetrics(total_loss(measured), {}, cast(Statistics, numbers)), multiplier


def count_steps(measured: StepMetrics) -> int:
    """How many steps the metrics are of."""
    return jnp.shape(measured.loss)[0] if jnp.ndim(measured.loss) else 1


def _too_many_axes(conflict: jax.Array) -> ConfigurationError:
    return ConfigurationError(
        f"the monitor's statistics have the shape {conflict.shape} for each layer, as under "
        "jax.vmap or jax.pmap; give a Plug the state and the loss of one member, or put monitor "
        "around an optimiser of all members together",
        actual=conflict.shape,
    )


def _is_learned(leaf: object) -> bool:
    return isinstance(leaf, jax.Array | np.ndarray) and jnp.issubdtype(leaf.dtype, jnp.inexact)


def _is_floating(loss: Any) -> bool:  # noqa: ANN401
    return isinstance(loss, float) or (
        jnp.issubdtype(loss.dtype, jnp.floating) and np.size(loss) > 0
    )
