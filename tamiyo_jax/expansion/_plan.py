"""Where every array of a larger network comes from, and how it is made.

A growth is a table with a row for each array of the larger network: which array of the smaller
one it comes from, which positions along its axes, and by what factor. `deepen` and `widen` make
such tables, and `grow_params` and `grow_opt_state` carry them out. The tables are static, so both
trace under `jit`: a growth can be compiled before it is needed, like any other program.

Trees are compared by the paths of their arrays (``block_0/dense/kernel``), so it does not matter
which library made them. The larger one is a real tree of the larger model, from its own
initialisation, and brings the containers and the initial values of what is new.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tamiyo_jax.errors import ConfigurationError

__all__ = ["Growth", "Source", "arrays", "grow_params", "is_new", "map_moments", "path_of"]

Params = Any
"""A pytree of arrays."""


class Split(NamedTuple):
    """Noise that copies of one unit cancel among themselves.

    Attributes:
      axis: of the array, along which the copies lie.
      unit: i[n], the unit that each position is a copy of.
      scale: of the noise, as a share of the root mean square of the array.
    """

    axis: int
    unit: np.ndarray
    scale: float


@dataclass(frozen=True, slots=True)
class Source:
    """How one array of the larger network is made.

    Factors and masks broadcast against the array.

    Attributes:
      path: of the smaller network's array; None where the larger one's own is taken.
      positions: by axis, the positions of the smaller array that are taken, i[n].
      own: bool, which entries have the larger network's own initial values.
      weight: factor of the values.
      gradient: the gradient of an entry over that of the entry it comes from.
      new: bool, which entries are no part of the smaller network.
      split: noise to add.
    """

    path: str | None
    positions: Mapping[int, np.ndarray]
    own: np.ndarray
    weight: np.ndarray
    gradient: np.ndarray
    new: np.ndarray
    split: Split | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Growth:
    """From the parameters of a smaller network to those of a larger one.

    Attributes:
      sources: by path, for every array of the larger network.
      before: shapes of the smaller network's parameters, a tree like them.
      after: shapes of the larger network's parameters.
    """

    sources: Mapping[str, Source]
    before: Params
    after: Params


def path_of(path: Sequence[Any]) -> str:
    """The text of a JAX key path, as in ``block_0/dense/kernel``; NNX's boxes are no part of it."""
    boxed = bool(path) and path[-1] == jax.tree_util.GetAttrKey("value")
    return jax.tree_util.keystr(tuple(path[:-1] if boxed else path), simple=True, separator="/")


def arrays(tree: Params) -> dict[str, Any]:
    """The leaves of a tree by their path."""
    return {path_of(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def shapes(tree: Params) -> Params:
    """The tree with shape and dtype in place of every array."""
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree)


def make(sources: Mapping[str, Source], before: Params, after: Params) -> Growth:
    """A growth, once every array is seen to come out in the shape that it must have.

    Raises:
      ConfigurationError: an array has no source, or its source another shape.
    """
    old = arrays(before)
    for path, leaf in arrays(after).items():
        source = sources.get(path)
        if source is None:
            raise ConfigurationError(
                f"{path} of the larger network is not in the smaller one; a growth adds blocks or "
                "width and leaves everything else as it is",
                path=path,
            )
        if source.path is None:
            continue
        shape = list(old[source.path].shape)
        for axis, positions in source.positions.items():
            shape[axis] = len(positions)
        if tuple(shape) != leaf.shape:
            raise ConfigurationError(
                f"{path} has shape {leaf.shape} in the larger network and would be grown to "
                f"{tuple(shape)}; name every axis that becomes wider",
                path=path,
                expected=leaf.shape,
                actual=tuple(shape),
            )
    return Growth(dict(sources), shapes(before), shapes(after))


def plain(path: str) -> Source:
    """An array that stays as it is."""
    return Source(path, {}, np.array(False), np.array(1.0), np.array(1.0), np.array(False))


def take(source: Source, old: Mapping[str, jax.Array], own: jax.Array) -> jax.Array:
    """Entries of the smaller network's arrays in their new places, and `own` in the others."""
    if source.path is None:
        return own
    array = jnp.asarray(old[source.path])
    for axis, positions in source.positions.items():
        array = jnp.take(array, positions, axis=axis)
    return jnp.where(_beside(source.own, array), own, array) if source.own.any() else array


def grow_params(growth: Growth, params: Params, fresh: Params, key: jax.Array) -> Params:
    """The larger network's parameters.

    Args:
      growth: from `deepen` or `widen`.
      params: the smaller network's.
      fresh: the larger network's own initial parameters; what is new takes its values from them.
      key: for the noise of `widen`; consumed.

    Returns:
      A tree like `fresh`.
    """
    old = arrays(params)
    grown = []
    for index, (path, own) in enumerate(arrays(fresh).items()):
        source = growth.sources[path]
        array = take(source, old, own)
        if (source.weight != 1).any():
            array = array * _beside(source.weight, array).astype(array.dtype)
        if source.split is not None:
            array = array + _noise(source.split, array, jax.random.fold_in(key, index))
        grown.append(array)
    return jax.tree.unflatten(jax.tree.structure(fresh), grown)


def map_moments(growth: Growth, tree: Params, order: int) -> Params:
    """A tree of moments of the smaller network's gradient, as the larger one's would be.

    Args:
      growth: from `deepen` or `widen`.
      tree: like the smaller network's parameters.
      order: 1 for averages of the gradient, 2 for averages of its square.

    Returns:
      A tree like the larger network's parameters, 0 where an entry has no past.
    """
    old = arrays(tree)
    grown = []
    for path, after in arrays(growth.after).items():
        source = growth.sources[path]
        kept = next(iter(old.values())).dtype if source.path is None else old[source.path].dtype
        array = take(source, old, jnp.zeros(after.shape, kept))
        if (source.gradient != 1).any():
            array = array * _beside(source.gradient**order, array).astype(array.dtype)
        grown.append(array)
    return jax.tree.unflatten(jax.tree.structure(growth.after), grown)


def is_new(growth: Growth) -> Params:
    """Which entries are no part of the smaller network: bool, each to broadcast with its array."""
    new = [jnp.asarray(growth.sources[path].new) for path in arrays(growth.after)]
    return jax.tree.unflatten(jax.tree.structure(growth.after), new)


def _noise(split: Split, array: jax.Array, key: jax.Array) -> jax.Array:
    """Noise whose sum over the copies of a unit is 0, like `array`."""
    drawn = jax.random.normal(key, array.shape, jnp.float32)
    copies = split.unit[:, None] == split.unit[None, :]
    average = jnp.asarray(copies / copies.sum(axis=1, keepdims=True), jnp.float32)
    means = jnp.moveaxis(jnp.tensordot(average, drawn, axes=(1, split.axis)), 0, split.axis)
    root_mean_square = jnp.sqrt(jnp.mean(jnp.square(array.astype(jnp.float32))))
    return (jnp.float32(split.scale) * root_mean_square * (drawn - means)).astype(array.dtype)


def _beside(values: np.ndarray, array: jax.Array) -> jax.Array:
    """`values` with as many axes as `array`, since rank promotion may be an error."""
    return jnp.asarray(values.reshape((1,) * (array.ndim - values.ndim) + values.shape))
