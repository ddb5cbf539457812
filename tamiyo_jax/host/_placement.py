"""Where the arrays of a train state are.

An array made by itself is free: a jitted program takes it to where its other arguments are. One
that was placed (`jax.device_put` with a device or a sharding, or an output of a program of such
arrays) is *committed*. A program is compiled anew for every other mixture of the two, so what
replaces an array of a train state must be placed as that array was.
"""

from __future__ import annotations

from typing import TypeVar

import jax

from tamiyo_jax.host._shared import map_shared

__all__ = ["place_like"]

Tree = TypeVar("Tree")


def place_like(tree: Tree, like: object) -> Tree:
    """Place each leaf of a tree where its counterpart in `like` is committed.

    Args:
      tree: a pytree of JAX or NumPy arrays; other leaves stay as they are.
      like: a pytree of the same structure.
    """
    return tree if tree is like else map_shared(_place, tree, like)


def _place(leaf: object, like: object) -> object:
    if leaf is like or not isinstance(like, jax.Array) or not like.committed:
        return leaf
    return jax.device_put(leaf, like.sharding)
