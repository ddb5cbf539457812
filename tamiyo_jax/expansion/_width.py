"""Width: more units in a layer, by splitting those that there are.

A unit is copied, and what reads it divides its weights among the copies (Net2WiderNet, Chen et
al. 2016, §2.2), so that the network computes what it did. Equal shares would leave the copies
equal for ever; the shares differ by noise that adds up to nothing over the copies of a unit.

A layer or RMS normalisation averages over the units, and its averages stay what they are when
every unit has equally many copies. One that treats each unit by itself, as batch normalisation
does, is copied with it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

import jax
import numpy as np

from tamiyo_jax.errors import ConfigurationError
from tamiyo_jax.expansion._plan import Growth, Source, Split, arrays, make, plain

__all__ = ["Dimension", "widen"]

Params = Any


class Dimension(NamedTuple):
    """A row of units, by the arrays that have an axis along it.

    Patterns are as for `fnmatch` on an array's path; an axis may count from the end.

    Attributes:
      made_by: pattern → axis, for the arrays that put the units out or act on each by itself:
        kernels and biases of the layer, scales of a normalisation.
      used_by: pattern → axis, for the arrays that read them. The axis may be longer by a whole
        factor, as after flattening an image whose channels come last.
      normalised: whether a normalisation averages over the units; then their number must grow
        by a whole factor.
    """

    made_by: Mapping[str, int]
    used_by: Mapping[str, int]
    normalised: bool


def widen(
    smaller: Params, larger: Params, *, dimensions: Sequence[Dimension], noise: float
) -> Growth:
    """A growth in width.

    Args:
      smaller: the network's parameters, or their shapes.
      larger: the same of the wider network, of equal paths.
      dimensions: all that become wider.
      noise: spread of the copies' shares, as a share of the root mean square of the weights that
        are divided; 0 leaves copies equal for ever.

    Raises:
      ConfigurationError: a pattern names nothing, an axis becomes wider in no dimension, or a
        normalised one by no whole factor.
    """
    before, after = arrays(smaller), arrays(larger)
    sources = {path: plain(path) for path in after if path in before}
    for index, dimension in enumerate(dimensions):
        units = _units(index, dimension, before, after)
        for path, axis in _match_leaves(index, dimension.made_by, sources):
            sources[path] = _copy_units(sources[path], before[path], axis, units)
        for path, axis in _match_leaves(index, dimension.used_by, sources):
            sources[path] = _divide_units(sources[path], before[path], axis, units, noise)
    return make(sources, smaller, larger)


def _units(
    index: int, dimension: Dimension, before: Mapping[str, Any], after: Mapping[str, Any]
) -> np.ndarray:
    """i[new]: the unit of the smaller network that each of the larger is a copy of."""
    sizes = {
        (before[path].shape[axis], after[path].shape[axis])
        for path, axis in _match_leaves(index, dimension.made_by, before)
        if path in after
    }
    if len(sizes) != 1:
        raise ConfigurationError(
            f"the arrays of dimension {index} disagree on its size: {sorted(sizes)} before and "
            "after; name those of one dimension",
            field="made_by",
            value=sorted(sizes),
        )
    old, new = sizes.pop()
    if new < old or (dimension.normalised and new % old):
        raise ConfigurationError(
            f"dimension {index} has {old} units and would have {new}; "
            + ("a normalised one grows by a whole factor" if new >= old else "it can only grow"),
            field="normalised",
            value=new,
        )
    return np.arange(new) % old


def _match_leaves(
    index: int, patterns: Mapping[str, int], leaves: Mapping[str, Any]
) -> list[tuple[str, int]]:
    found: list[tuple[str, int]] = []
    for pattern, axis in patterns.items():
        paths = [path for path in leaves if fnmatchcase(path, pattern)]
        if not paths:
            raise ConfigurationError(
                f"pattern {pattern!r} of dimension {index} names nothing; the paths are "
                f"{sorted(leaves)}",
                field="dimensions",
                value=pattern,
            )
        found += [(path, axis) for path in paths]
    return found


def _copy_units(source: Source, leaf: jax.Array, axis: int, units: np.ndarray) -> Source:
    """Each copy has its unit's values, and of its gradient an equal share."""
    along = _along(leaf, axis)
    copies = _copies(units)
    return Source(
        source.path,
        {**source.positions, axis % len(leaf.shape): units},
        source.own,
        source.weight,
        source.gradient / copies.reshape(along),
        source.new | (np.arange(len(units)) > units.max()).reshape(along),
        source.split,
    )


def _divide_units(
    source: Source, leaf: jax.Array, axis: int, units: np.ndarray, noise: float
) -> Source:
    """The copies share their unit's weights; each has its unit's gradient."""
    along, axis = _along(leaf, axis), axis % len(leaf.shape)
    old = int(units.max()) + 1
    repeats = leaf.shape[axis] // old
    # Units run fastest in a flattened axis.
    positions = (np.arange(repeats)[:, None] * old + units[None, :]).ravel()
    added = np.tile(np.arange(len(units)) >= old, repeats)
    return Source(
        source.path,
        {**source.positions, axis: positions},
        source.own,
        source.weight / _copies(positions).reshape(along),
        source.gradient,
        source.new | added.reshape(along),
        Split(axis, positions, noise) if noise else None,
    )


def _copies(units: np.ndarray) -> np.ndarray:
    """f[new]: how many copies each position's unit has."""
    return np.bincount(units)[units].astype(float)


def _along(leaf: jax.Array, axis: int) -> tuple[int, ...]:
    """The shape in which a vector along `axis` broadcasts against `leaf`."""
    shape = [1] * len(leaf.shape)
    shape[axis] = -1
    return tuple(shape)
