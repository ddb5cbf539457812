"""Where the arrays of a train state are.

An array made by itself is free: a jitted program takes it to where its other arguments are. One
that was placed (`jax.device_put` with a device or a sharding, or an output of a program of such
arrays) is *committed*. A program is compiled anew for every other mixture of the two, so what
replaces an array of a train state must be placed as that array was.
"""

from __future__ import annotations

from typing import TypeVar

import jax

__all__ = ["placed_like"]

Tree = TypeVar("Tree")


def placed_like(tree: Tree, like: object) -> Tree:
    """The tree, each leaf where its counterpart in `like` is committed, and otherwise as it is.

    Args:
      tree: arrays, of JAX or NumPy; other leaves are left alone.
      like: a pytree of the same structure.
    """
    return tree if tree is like else jax.tree.map(_placed, tree, like)


def _placed(leaf: object, like: object) -> object:
    if leaf is like or not isinstance(like, jax.Array) or not like.committed:
        return leaf
    return jax.device_put(leaf, like.sharding)
