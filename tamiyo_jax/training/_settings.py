"""The settings of a run: the user's, with room for the network that is trained."""

from __future__ import annotations

from collections.abc import Sequence

from tamiyo_jax.config import TamiyoConfig
from tamiyo_jax.contracts import Blueprint

__all__ = ["load_settings"]

METRICS_PER_LAYER = 2
OTHER_METRICS = 128


def load_settings(
    blueprint: Blueprint, candidates: Sequence[Blueprint], *, seedless: bool
) -> TamiyoConfig:
    """Resolve the settings, with caps raised to the size of these blueprints.

    Args:
      blueprint: of the network.
      candidates: of the seeds.
      seedless: the network has no seeds.

    Raises:
      ConfigurationError: a setting is unknown or impossible.
    """
    config = TamiyoConfig.load(packet={"seedless": seedless})
    sizes = {"max_layers": 0, "max_activations": 0, "max_edges": 0}
    for each in (blueprint, *candidates):
        counts = (len(each.layers), len(each.activations), len(each.layer_edges or ()))
        sizes = {
            name: max(size, count)
            for (name, size), count in zip(sizes.items(), counts, strict=True)
        }
    metrics = METRICS_PER_LAYER * len(blueprint.layers) + OTHER_METRICS
    return TamiyoConfig.load(
        packet={"seedless": seedless, "max_metrics": max(config.packet.max_metrics, metrics)},
        graph={name: max(getattr(config.graph, name), size) for name, size in sizes.items()},
    )
