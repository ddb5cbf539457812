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

from tamiyo_jax.host._shared import split_shared

__all__ = ["place_like"]

Tree = TypeVar("Tree")


def place_like(tree: Tree, like: object) -> Tree:
    """Place each leaf of a tree where its counterpart in `like` is committed.

    Args:
      tree: a pytree of JAX or NumPy arrays; other leaves stay as they are.
      like: a pytree whose counterparts have the same path. An array that it has not, such as those
        of a seed that has just germinated, goes where its scalars are: on a mesh, to every device.
    """
    if tree is like:
        return tree
    plain, join = split_shared(tree)
    leaves = jax.tree_util.tree_leaves_with_path(split_shared(like)[0])
    there = dict(leaves)
    scalar = next((leaf for _, leaf in leaves if _is_placed(leaf) and leaf.ndim == 0), None)
    return join(
        jax.tree_util.tree_map_with_path(
            lambda path, leaf: _place(leaf, there.get(path, scalar)), plain
        )
    )


def _place(leaf: object, like: object) -> object:
    if leaf is like or not isinstance(leaf, jax.Array | np.ndarray) or not _is_placed(like):
        return leaf
    return jax.device_put(leaf, like.sharding)


def _is_placed(leaf: object) -> TypeIs[jax.Array]:
    return isinstance(leaf, jax.Array) and leaf.committed
