"""A pytree of arrays as one buffer, for those that cross between processes at every step.

Pickling seventeen small arrays costs more than the network's own arithmetic; copying them one
after another into a buffer whose plan both sides know costs next to nothing.
"""

from __future__ import annotations

from itertools import accumulate
from typing import Any, cast

import jax
import numpy as np

__all__ = ["Packing"]

_ALIGNMENT = 16
_tree = cast(Any, jax.tree)  # JAX leaves the types of its trees open


class Packing:
    """The plan of one pytree: structure, shapes and dtypes.

    Args:
      example: a tree like all that are to be packed.
    """

    def __init__(self, example: object) -> None:
        leaves, self._structure = _tree.flatten(example)
        self._fits = all(type(leaf) is np.ndarray and not leaf.dtype.hasobject for leaf in leaves)
        if not self._fits:
            return
        arrays = cast(list[np.ndarray], leaves)
        self._kinds = [(array.shape, array.dtype) for array in arrays]
        padded = [array.nbytes + -array.nbytes % _ALIGNMENT for array in arrays]
        self._padding = [
            bytes(size - array.nbytes) for size, array in zip(padded, arrays, strict=True)
        ]
        self._offsets = list(accumulate(padded, initial=0))[:-1]

    def pack(self, tree: object) -> bytes | None:
        """The tree's arrays in one buffer; None where the tree is not like the example."""
        if not self._fits:
            return None
        leaves, structure = _tree.flatten(tree)
        if structure != self._structure:
            return None
        pieces: list[bytes] = []
        for leaf, kind, padding in zip(leaves, self._kinds, self._padding, strict=True):
            if type(leaf) is not np.ndarray or (leaf.shape, leaf.dtype) != kind:
                return None
            pieces += (leaf.tobytes(), padding)
        return b"".join(pieces)

    def unpack(self, data: bytes) -> Any:  # noqa: ANN401 - a tree like the example
        """The tree in a buffer; its arrays are views that cannot be written."""
        leaves = [
            np.ndarray(shape, dtype, data, offset)
            for (shape, dtype), offset in zip(self._kinds, self._offsets, strict=True)
        ]
        return _tree.unflatten(self._structure, leaves)
