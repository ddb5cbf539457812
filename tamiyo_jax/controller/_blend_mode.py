"""How a seed's output joins its host's, for hosts that read it from the command's annotations.

A packet's metrics and a blueprint's parameters are numbers, so the mode follows from their names: a
share of its own per channel (``alpha_vec/0``, ``alpha_vec/1``, …) is CHANNEL, and a gate on the
host's confidence (``gate_k``, ``gate_tau``, ``alpha_lo``, ``alpha_hi``) is CONFIDENCE. The seed's
own values go before the blueprint's. With neither the mode is the configuration's.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from math import isfinite

from tamiyo_jax.config import PolicyConfig
from tamiyo_jax.contracts import Blueprint, ParameterSpec, SeedState

__all__ = ["blend_annotations"]

_CHANNEL = "alpha_vec/"
_GATE = ("gate_k", "gate_tau", "alpha_lo", "alpha_hi")


def blend_annotations(
    config: PolicyConfig, seed: SeedState, blueprint: Blueprint
) -> dict[str, str]:
    """Annotations of a SEED command: ``blend_mode``, where it is from, and its parameters.

    Args:
      config: `config.blend_annotations` turns them on; with "off" there are none.
      seed: the seed that the command acts on.
      blueprint: the blueprint that the command is evaluated by.
    """
    if config.blend_annotations == "off":
        return {}
    defaults = {spec.name: _find_default(spec) for spec in blueprint.parameters}
    for source, numbers in (("seed", seed.metrics), ("blueprint", defaults)):
        parameters = _parameters({k: v for k, v in numbers.items() if isfinite(v)})
        if parameters:
            return {**parameters, "blend_mode_source": source}
    return {"blend_mode": config.blend_annotations, "blend_mode_source": "configuration"}


def _parameters(numbers: Mapping[str, float]) -> dict[str, str]:
    """The mode that these numbers speak of and its parameters; empty if they do not."""
    channels: list[float] = []
    while (name := f"{_CHANNEL}{len(channels)}") in numbers:
        channels.append(float(numbers[name]))
    if channels:
        return {
            "blend_mode": "CHANNEL",
            "alpha_vec": json.dumps(channels),
            "alpha_vec_len": str(len(channels)),
        }
    if all(name in numbers for name in _GATE):
        return {"blend_mode": "CONFIDENCE", **{name: f"{numbers[name]:.9g}" for name in _GATE}}
    return {}


def _find_default(parameter: ParameterSpec) -> float:
    midpoint = parameter.min + (parameter.max - parameter.min) / 2
    return midpoint if parameter.default is None else parameter.default
