"""The settings of a run: the user's, with room for the network that is trained."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from tamiyo_jax.config import TamiyoConfig, resolve
from tamiyo_jax.contracts import Blueprint
from tamiyo_jax.errors import ConfigurationError

__all__ = ["check_options", "load_settings"]

MODES = ("act", "shadow", "guard")
METRICS_PER_LAYER = 2
OTHER_METRICS = 128


def load_settings(
    blueprint: Blueprint, candidates: Sequence[Blueprint], *, seedless: bool
) -> TamiyoConfig:
    """Resolve the settings, with caps raised to the size of these blueprints.

    Detection is relative to the run, unless a setting says otherwise.

    Args:
      blueprint: of the network.
      candidates: of the seeds.
      seedless: the network has no seeds.

    Raises:
      ConfigurationError: a setting is unknown or impossible.
    """
    config, origins = resolve(packet={"seedless": seedless})
    chosen = origins["risk.detection"].kind != "default"
    detection: Literal["absolute", "relative"] = config.risk.detection if chosen else "relative"
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
        risk={"detection": detection},
        graph={
            "max_layers": max(config.graph.max_layers, sizes["max_layers"]),
            "max_activations": max(config.graph.max_activations, sizes["max_activations"]),
            "max_edges": max(config.graph.max_edges, sizes["max_edges"]),
        },
    )


def check_options(
    mode: str, every: int, server: str | None = None, run_id: str | None = None
) -> None:
    """Refuse wrong options of a `Plug`, before anything is made.

    Raises:
      ConfigurationError: `every` is less than 1, `mode` is not a mode, or one of `server` and
        `run_id` is given without the other.
    """
    if every < 1:
        raise ConfigurationError(f"every is {every}; ask after each so many steps, at least 1")
    if mode not in MODES:
        raise ConfigurationError(
            f"mode is {mode!r}; it is one of {', '.join(MODES)}", field="mode", value=mode
        )
    if (server is None) != (run_id is None):
        raise ConfigurationError(
            "a run on a server needs both server and run_id; its key is that of run_id",
            field="run_id",
            value=run_id,
        )
