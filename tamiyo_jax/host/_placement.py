"""Where the arrays of a train state are.

An array made by itself is free: a jitted program takes it to where its other arguments are. One
that was placed (`jax.device_put` with a device or a sharding, or an output of a program of such
arrays) is *committed*. A program is compiled anew for every other mixture of the two, so what
replaces an array of a train state must be placed as that array was.
"""

from __future__ import annotations

from typing import TypeVar

import jax
import numpy as np
from typing_extensions import TypeIs

__all__ = ["place_like"]

Tree = TypeVar("Tree")


def place_like(tree: Tree, like: object) -> Tree:
    """The tree, each leaf where its counterpart in `like` is committed, and otherwise as it is.

    An array that `like` has not, such as those of a seed that has just germinated, goes where the
    scalars of `like` are committed: on a mesh, to every device.

    Args:
      tree: arrays, of JAX or NumPy; other leaves are left alone.
      like: a pytree whose counterparts have the same path.
    """
    if tree is like:
        return tree
    leaves = jax.tree_util.tree_leaves_with_path(like)
    there = dict(leaves)
    scalar = next((one for _, one in leaves if _is_placed(one) and one.ndim == 0), None)
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: _placed(leaf, there.get(path, scalar)), tree
    )


def _placed(leaf: object, like: object) -> object:
    if leaf is like or not isinstance(leaf, jax.Array | np.ndarray) or not _is_placed(like):
        return leaf
    return jax.device_put(leaf, like.sharding)


def _is_placed(leaf: object) -> TypeIs[jax.Array]:
    return isinstance(leaf, jax.Array) and leaf.committed
