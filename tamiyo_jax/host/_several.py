"""The statistics of a loop with several monitored optimisers, such as that of a GAN."""

from __future__ import annotations

from functools import reduce

import jax
import jax.numpy as jnp
import optax

from tamiyo_jax.errors import ConfigurationError
from tamiyo_jax.host._monitor import MonitorState, Refusals, Statistics, statistics
from tamiyo_jax.host._signals import worst

__all__ = ["all_statistics"]


def all_statistics(opt_state: object) -> Statistics:
    """The statistics of all monitors in a pytree, as if one had measured all their layers.

    Layers follow the order of the optimisers in the pytree. What is one number for all layers,
    such as the conflict, is the mean over the optimisers, weighted by their layers; signals and
    refusals are the worst of any.

    Args:
      opt_state: optimiser states, or any pytree around them.

    Raises:
      ConfigurationError: there is no monitor, or there are monitors in the branches of
        ``optax.multi_transform``, whose layers are in no order that follows from the parameters.
    """
    branched = _find(opt_state, optax.transforms.PartitionState)
    if any(_find(node, MonitorState) for node in branched):
        raise ConfigurationError(
            "a monitor is inside a branch of optax.multi_transform and measures only the layers "
            "of its branch; put it around: monitor(optax.chain(optax.multi_transform(...), "
            "tamiyo_scale()))"
        )
    found = _find(opt_state, MonitorState)
    if len(found) < 2:
        return statistics(opt_state)
    each = [statistics(node) for node in found]
    sizes = jnp.array([numbers.layers.shape[-1] for numbers in each], jnp.float32)
    conflicts = jnp.stack([numbers.conflict for numbers in each])
    refusals = jnp.stack([numbers.refusals.numbers for numbers in each])
    newest = jnp.max(refusals[:, :2], axis=0)
    return Statistics(
        layers=jnp.concatenate([numbers.layers for numbers in each], axis=-1),
        conflict=jnp.sum(sizes / jnp.sum(sizes) * conflicts),
        signals=reduce(worst, [numbers.signals for numbers in each]),
        refusals=Refusals(jnp.append(newest, jnp.sum(refusals[:, 2:], axis=0))),
    )


def _find(tree: object, kind: type) -> list[object]:
    """The outermost nodes of a kind in a pytree."""
    nodes = jax.tree.leaves(tree, is_leaf=lambda node: isinstance(node, kind))
    return [node for node in nodes if isinstance(node, kind)]
