"""Which layer each array of a parameter tree belongs to.

A layer is an inner node of the tree that holds arrays, named by its path. Boxes around an
array, such as the variables of NNX, do not count as nodes.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
from flax import nnx

__all__ = ["leaf_layers", "select_trained"]


def leaf_layers(params: Any) -> tuple[str, ...]:  # noqa: ANN401
    """The layer of each array of a tree, in the order of ``jax.tree.leaves``.

    ``{"block": {"dense": {"kernel": w, "bias": b}}}`` has the layer ``block/dense``; an array
    at the root is a layer of its own name.
    """
    layers: list[str] = []
    for path, node in jax.tree_util.tree_leaves_with_path(params, is_leaf=_is_box):
        name = jax.tree_util.keystr(path[:-1] or path, simple=True, separator="/")
        layers += [name] * len(jax.tree.leaves(node))
    return tuple(layers)


def select_trained(gradient: Any, params: Any) -> Any:  # noqa: ANN401
    """The leaves of a model that have a gradient; None in place of all others.

    Equinox may give an optimiser the whole model, with its functions and integer arrays.
    """

    def take(gradient: object, param: object) -> object:
        return None if gradient is None else param

    return jax.tree.map(take, gradient, params, is_leaf=lambda node: node is None)


def _is_box(node: object) -> bool:
    return isinstance(node, nnx.Variable | nn.meta.AxisMetadata)
