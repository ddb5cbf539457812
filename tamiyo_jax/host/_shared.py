"""Mapping over train states in which NNX modules share variables.

To `jax.tree.map` an NNX module is a tree, so a variable that two modules share comes out twice, and
tied weights are tied no more. Splitting a state into its graph and its arrays keeps them shared.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import jax
from flax import nnx

__all__ = ["map_shared", "split_shared"]

Tree = TypeVar("Tree")


def split_shared(tree: Tree) -> tuple[Any, Callable[[Any], Tree]]:
    """A pytree with every shared array once, and the function that makes the tree of such a one.

    A tree without NNX modules is returned as it is, with the identity.
    """
    if not _holds_module(tree):
        return tree, lambda plain: cast(Tree, plain)
    definition, plain = nnx.split(tree)
    return plain, lambda plain: cast(Tree, nnx.merge(definition, plain))


def map_shared(function: Callable[..., Any], tree: Tree, *rest: object) -> Tree:
    """`jax.tree.map` that leaves shared arrays shared."""
    plain, join = split_shared(tree)
    return join(jax.tree.map(function, plain, *(split_shared(other)[0] for other in rest)))


def _holds_module(tree: object) -> bool:
    found = False

    def look(node: object) -> bool:
        nonlocal found
        found = found or _is_module(node)
        return found  # the rest need not be looked into

    jax.tree.leaves(tree, is_leaf=look)
    return found


def _is_module(node: object) -> bool:
    return isinstance(node, nnx.Module | nnx.Optimizer)
