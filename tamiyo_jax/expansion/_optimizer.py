"""The optimiser of a network that grows: its state grows too, and what is new warms up again."""

from __future__ import annotations

from typing import Any, NamedTuple, TypeVar, cast

import jax
import jax.numpy as jnp
import optax

from tamiyo_jax.errors import ConfigurationError
from tamiyo_jax.expansion._plan import Growth, is_new, map_moments, path_of
from tamiyo_jax.host import MonitorState

__all__ = ["WarmUpState", "grow_opt_state", "warm_up_new"]

Params = Any
State = TypeVar("State")

_SQUARES = ("nu", "v", "nu_max", "sum_of_squares")
"""Names that Optax's states give to averages of the squared gradient."""


class WarmUpState(NamedTuple):
    """State of `warm_up_new`.

    Attributes:
      new: bool, which entries are warming up; each broadcasts with its parameter.
      steps: i32[], since the network grew last.
    """

    new: Params
    steps: jax.Array


def warm_up_new(steps: int) -> optax.GradientTransformation:
    """Raise the updates of new parameters from 1/steps to their full size, linearly.

    An optimiser that divides by an average of squares takes steps of full size from the start,
    and of more than that while the average is short of new parameters. Those that the network
    had before are left alone. Put it behind the optimiser; `grow_opt_state` sets its state.

    Args:
      steps: of the warm-up, at least 1.
    """
    if steps < 1:
        raise ConfigurationError(
            f"steps is {steps}; warm up over at least 1", field="steps", value=steps
        )

    def init(params: Params) -> WarmUpState:
        return WarmUpState(jax.tree.map(lambda _: jnp.bool_(False), params), jnp.int32(0))

    def update(
        updates: Params, state: WarmUpState, params: Params | None = None
    ) -> tuple[Params, WarmUpState]:
        del params
        following = jnp.asarray(optax.safe_increment(state.steps))
        factor = jnp.minimum(following.astype(jnp.float32) / steps, 1)

        def scale(update: jax.Array, new: jax.Array) -> jax.Array:
            shape = (1,) * (update.ndim - new.ndim) + new.shape
            return update * jnp.where(new, factor, 1).astype(update.dtype).reshape(shape)

        return jax.tree.map(scale, updates, state.new), WarmUpState(state.new, following)

    return optax.GradientTransformation(init, cast(optax.TransformUpdateFn, update))


def grow_opt_state(
    growth: Growth, tx: optax.GradientTransformation, opt_state: State, params: Params
) -> State:
    """The optimiser's state for the larger network.

    Averages of the gradient are mapped as the gradient would be, those of its square by the
    square of that; what has no past starts at 0. Step counts, schedules and Tamiyo's multiplier
    go on. The statistics of `host.monitor`, which know the number of layers, start anew.

    Args:
      growth: from `deepen` or `widen`.
      tx: the optimiser of the larger network, made as that of the smaller one.
      opt_state: of the smaller network.
      params: the larger network's.

    Raises:
      ConfigurationError: the state holds something that depends on the parameters and is no tree
        like them, so it is unknown how it grows.
    """
    return cast(State, _grow(growth, tx.init(params), opt_state))


def _grow(growth: Growth, fresh: object, old: object) -> object:
    """`fresh`, with everything in it that `old` knows better."""
    before, after = (jax.tree.structure(tree) for tree in (growth.before, growth.after))

    def found(state: object, structure: Any) -> dict[str, Any]:  # noqa: ANN401
        def whole(node: object) -> bool:
            own = isinstance(node, MonitorState | WarmUpState)
            return own or jax.tree.structure(node) == structure

        leaves = jax.tree_util.tree_leaves_with_path(state, is_leaf=whole)
        return {path_of(path): node for path, node in leaves}

    nodes, known = found(fresh, after), found(old, before)
    if nodes.keys() != known.keys():
        raise _unknown(sorted(nodes.keys() ^ known.keys()))
    grown = [_node(growth, path, node, known[path], before) for path, node in nodes.items()]
    leaves = [leaf for node in grown for leaf in jax.tree.leaves(node)]
    return jax.tree.unflatten(jax.tree.structure(fresh), leaves)


def _node(growth: Growth, path: str, fresh: Any, old: Any, before: Any) -> object:  # noqa: ANN401
    if isinstance(fresh, MonitorState):
        return fresh._replace(inner=_grow(growth, fresh.inner, old.inner))
    if isinstance(fresh, WarmUpState):
        return WarmUpState(is_new(growth), jnp.zeros_like(old.steps))
    if jax.tree.structure(old) == before and _shapes(old) == _shapes(growth.before):
        return map_moments(growth, old, 2 if path.rpartition("/")[2] in _SQUARES else 1)
    if _shapes(fresh) != _shapes(old):
        raise _unknown([path])
    return old


def _shapes(tree: object) -> list[tuple[int, ...]]:
    return [jnp.shape(leaf) for leaf in jax.tree.leaves(tree)]


def _unknown(paths: list[str]) -> ConfigurationError:
    return ConfigurationError(
        f"the optimiser's state depends on the parameters in {paths} and has there no tree like "
        "them; use optimisers that keep one tree for each average, without masks",
        actual=paths,
    )
