"""The one rule by which the arrays of a parameter tree belong to layers.

A layer is an inner node of the tree that holds arrays, named by its path. Boxes around an
array, such as the variables of NNX, are no part of the tree.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
from flax import nnx

__all__ = ["leaf_layers"]


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


def _is_box(node: object) -> bool:
    return isinstance(node, nnx.Variable | nn.meta.AxisMetadata)
