"""A pytree as a few flat arrays, for trees that cross to a device or a process at every step.

Handing over seventeen small arrays one by one costs more than the network's own arithmetic.
Both ends know the plan of the tree, so that one flat array for each size of an element says
it all: elements of four bytes travel as integers, whatever they are.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

__all__ = ["Packed", "Packing"]


class Packed(NamedTuple):
    """A tree that was packed.

    Attributes:
      arrays: one flat array for each size of an element.
      others: the leaves that are not arrays, in order.
    """

    arrays: tuple[Any, ...]
    others: tuple[Any, ...]


class _Place(NamedTuple):
    """Where a leaf lies, and what it is; `array` is -1 for a leaf that is not an array."""

    array: int
    start: int
    stop: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    carrier: np.dtype[Any]


# By kind and size of an element: what it travels as. Any other dtype travels as itself.
_CARRIERS = {
    **{(kind, 4): np.dtype(np.int32) for kind in "fiu"},
    **{(kind, 1): np.dtype(np.uint8) for kind in "biu"},
}
_OTHER = _Place(-1, 0, 0, (), np.dtype(object), np.dtype(object))


class Packing:
    """The plan of one pytree: structure, shapes and dtypes.

    Args:
      example: a tree like all that are to be packed; abstract arrays will do.
    """

    def __init__(self, example: object) -> None:
        leaves, self._structure = jax.tree.flatten(example)
        carriers: dict[np.dtype[Any], int] = {}
        filled: list[int] = []
        places: list[_Place] = []
        for leaf in leaves:
            array = isinstance(leaf, np.ndarray | jax.Array | jax.ShapeDtypeStruct)
            dtype = np.dtype(leaf.dtype) if array else _OTHER.dtype
            if dtype.hasobject:
                places.append(_OTHER)
                continue
            carrier = _CARRIERS.get((dtype.kind, dtype.itemsize), dtype)
            index = carriers.setdefault(carrier, len(carriers))
            if index == len(filled):
                filled.append(0)
            start, size = filled[index], int(np.prod(leaf.shape, dtype=np.int64))
            filled[index] = start + size
            places.append(_Place(index, start, start + size, leaf.shape, dtype, carrier))
        self._places = tuple(places)
        self._carriers = tuple(carriers)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Packing):
            return NotImplemented
        return (self._structure, self._places) == (other._structure, other._places)

    def __hash__(self) -> int:
        return hash((self._structure, self._places))

    def pack(self, tree: object) -> Any:  # noqa: ANN401 - Packed, or what came in
        """Pack a tree on the host; one that is not like the example comes back as it is."""
        leaves, structure = jax.tree.flatten(tree)
        if structure != self._structure:
            return tree
        parts: list[list[np.ndarray]] = [[] for _ in self._carriers]
        others: list[Any] = []
        for leaf, (index, _, _, shape, dtype, carrier) in zip(leaves, self._places, strict=True):
            if index < 0:
                others.append(leaf)
            elif type(leaf) is np.ndarray and leaf.shape == shape and leaf.dtype == dtype:
                parts[index].append(leaf.reshape(-1).view(carrier))
            else:
                return tree
        return Packed(tuple(map(np.concatenate, parts)), tuple(others))

    def flatten(self, tree: object) -> tuple[jax.Array, ...]:
        """The flat arrays of a tree of arrays like the example; pure, for traced ones."""
        parts: list[list[jax.Array]] = [[] for _ in self._carriers]
        for leaf, place in zip(jax.tree.leaves(tree), self._places, strict=True):
            parts[place.array].append(_cast(jnp.ravel(leaf), place.carrier))
        return tuple(map(jnp.concatenate, parts))

    def unpack(self, packed: object) -> Any:  # noqa: ANN401 - a tree like the example
        """The tree that was packed, as views where that is possible; any other as it is."""
        if not isinstance(packed, Packed):
            return packed
        arrays, others = packed
        rest = iter(others)
        leaves = [
            next(rest) if index < 0 else _cast(arrays[index][start:stop], dtype).reshape(shape)
            for index, start, stop, shape, dtype, _ in self._places
        ]
        return jax.tree.unflatten(self._structure, leaves)

    def to_plain(self, packed: object) -> tuple[Any, Any]:
        """What came from `pack`, of Python's own types, which pickle several times as fast."""
        if isinstance(packed, Packed):
            return tuple(array.tobytes() for array in packed.arrays), packed.others
        return None, packed

    def from_plain(self, plain: tuple[Any, Any]) -> Any:  # noqa: ANN401 - as `pack`
        """What `to_plain` was given; its arrays cannot be written to."""
        buffers, rest = plain
        return (
            rest
            if buffers is None
            else Packed(tuple(map(np.frombuffer, buffers, self._carriers)), rest)
        )


def _cast(array: Any, dtype: np.dtype[Any]) -> Any:  # noqa: ANN401 - of NumPy or of JAX
    """The same bits as another dtype of the same size."""
    if isinstance(array, np.ndarray) or array.dtype == dtype:
        return array.view(dtype)
    if dtype == np.bool_:
        return array != 0
    if array.dtype == jnp.bool_:
        return array.astype(dtype)
    return jax.lax.bitcast_convert_type(array, dtype)
