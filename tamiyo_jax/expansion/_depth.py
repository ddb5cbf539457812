"""Depth: more residual blocks.

    G_stack (Du et al. 2024, arXiv:2405.15319)             order 0 1 2 0 1 2
    interleaved copies (Chang et al. 2018; bert2BERT)      order 0 0 1 1 2 2
    new blocks, initialised as ever                        order 0 1 2 None None None

A block adds to its input what its last layer puts out, so it is silent while that layer is zero
and the network computes what it did (Goyal et al. 2017, §5.1; LEMON, Wang et al. 2023, §3.1).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import numpy as np

from tamiyo_jax.errors import ConfigurationError
from tamiyo_jax.expansion._plan import Growth, Source, arrays, make, plain

__all__ = ["deepen"]

Params = Any


def deepen(
    smaller: Params,
    larger: Params,
    *,
    blocks: str,
    order: Sequence[int | None],
    outputs: Sequence[str],
    share: float,
) -> Growth:
    """A growth in depth.

    The first block that has a number in `order` is that block; every other one is added.

    Args:
      smaller: the network's parameters, or their shapes.
      larger: the same of the deeper network, which has one block for each entry of `order`.
      blocks: path of the blocks. With ``{}`` for the number where each has a tree of its own, as
        in ``block_{}`` or ``encoder/layers/{}``; without, as in ``blocks``, where each array
        holds all of them along its first axis, as scanned layers do.
      order: for each block of the larger network the one of the smaller that it starts as; None
        for the larger network's own initial values.
      outputs: patterns, as for `fnmatch`, of the arrays in a block that make up its residual
        branches' last layers: ``project/kernel`` and ``project/bias``, or the scale and bias of
        the normalisation behind it. Empty for a tree without parameters, such as the running
        statistics of a normalisation.
      share: factor of the added blocks' outputs: 0 leaves the function as it is; 1 is plain
        stacking, which does not.

    Raises:
      ConfigurationError: `blocks` or `outputs` name nothing, or the numbers in `order` are not
        those of the smaller network's blocks in their order.
    """
    found = _Blocks(blocks)
    before, after = arrays(smaller), arrays(larger)
    count, size = found.count(before), found.count(after)
    added = _find_added_blocks(order, count, size)
    unmatched = set(outputs)
    sources: dict[str, Source] = {}
    for path, leaf in after.items():
        within = found.within(path)
        if within is None:
            if path in before:
                sources[path] = plain(path)
            continue
        hits = {one for one in outputs if fnmatchcase(within, one)}
        unmatched -= hits
        factor = share if hits else 1.0
        sources[path] = found.source(path, within, leaf, order, added, factor)
    if unmatched:
        raise ConfigurationError(
            f"outputs {sorted(unmatched)} name nothing in a block; it holds "
            f"{sorted({w for w in map(found.within, after) if w is not None})}",
            field="outputs",
            value=sorted(unmatched),
        )
    return make(sources, smaller, larger)


class _Blocks:
    """The blocks of a network: trees of their own, or slices of common arrays."""

    def __init__(self, blocks: str) -> None:
        self._blocks = blocks
        self._stacked = "{}" not in blocks
        number = re.escape(blocks).replace(re.escape("{}"), r"(?P<number>\d+)")
        self._pattern = re.compile(rf"{number}/(?P<within>.*)")

    def within(self, path: str) -> str | None:
        """The path inside a block; None for what belongs to none."""
        match = self._pattern.fullmatch(path)
        return match["within"] if match else None

    def count(self, leaves: Mapping[str, Any]) -> int:
        """How many blocks there are."""
        inside = {path: leaf for path, leaf in leaves.items() if self.within(path) is not None}
        if not inside:
            raise ConfigurationError(
                f"blocks is {self._blocks!r} and no path begins so; the paths are {sorted(leaves)}",
                field="blocks",
                value=self._blocks,
            )
        if self._stacked:
            return min(leaf.shape[0] if leaf.shape else 0 for leaf in inside.values())
        return 1 + max(int(self._number(path)) for path in inside)

    def source(
        self,
        path: str,
        within: str,
        leaf: Any,  # noqa: ANN401 - an array or its shape
        order: Sequence[int | None],
        added: np.ndarray,
        factor: float,
    ) -> Source:
        """How an array of the larger network's blocks is made."""
        weights = np.where(added, factor, 1.0)
        own = np.array([one is None for one in order])
        if self._stacked:
            along = (-1,) + (1,) * (len(leaf.shape) - 1)
            return Source(
                path,
                {0: np.array([one or 0 for one in order])},
                own.reshape(along),
                weights.reshape(along),
                np.array(1.0),
                added.reshape(along),
            )
        index = int(self._number(path))
        start = order[index]
        named = None if start is None else f"{self._blocks.format(start)}/{within}"
        return Source(named, {}, own[index], weights[index], np.array(1.0), added[index])

    def _number(self, path: str) -> str:
        match = self._pattern.fullmatch(path)
        return match["number"] if match else ""


def _find_added_blocks(order: Sequence[int | None], count: int, size: int) -> np.ndarray:
    """bool[size]: which blocks of the larger network are no part of the smaller one."""
    first = np.array([one is not None and one not in order[:i] for i, one in enumerate(order)])
    if len(order) != size or [order[int(i)] for i in np.flatnonzero(first)] != list(range(count)):
        raise ConfigurationError(
            f"order is {list(order)}; the smaller network has {count} blocks and the larger "
            f"{size}, so name {size}, and each of 0 to {count - 1} for the first time in that "
            "order",
            field="order",
            value=list(order),
        )
    return ~first
