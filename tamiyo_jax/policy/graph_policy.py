"""The graph policy: normalise, build and run the network as one jitted function."""

from __future__ import annotations

from functools import partial

import jax

from tamiyo_jax.config import GraphConfig
from tamiyo_jax.graph import GraphLayout, Normalizer, RawGraph, build, init_normalizer
from tamiyo_jax.policy.network import Params, apply
from tamiyo_jax.policy.outputs import Observation, PolicyOutputs

__all__ = ["GraphPolicy", "policy_step"]


def policy_step(
    params: Params, normalizer: Normalizer, raw: RawGraph, *, layout: GraphLayout, rate: float
) -> tuple[Normalizer, PolicyOutputs]:
    """One decision, from raw arrays to outputs; pure, vmappable over `normalizer` and `raw`.

    Jit with `layout` and `rate` static, so that each layout compiles once.

    Args:
      params: parameters of the network.
      normalizer: statistics before the step.
      raw: arrays in the shape of the layout.
      layout: the graph's layout.
      rate: weight of the newest step in the statistics.
    """
    normalizer, graph = build(layout, normalizer, raw, rate=rate)
    return normalizer, apply(params, layout, graph)


_jitted_step = jax.jit(policy_step, static_argnames=("layout", "rate"))


class GraphPolicy:
    """The network as a policy; its state is the normaliser.

    A failure inside propagates as it is: there is no other device and no other answer.

    Args:
      config: gives the rate of the normaliser.
    """

    def __init__(self, config: GraphConfig) -> None:
        self._step = partial(_jitted_step, rate=config.normalizer_rate)

    def initial_state(self) -> Normalizer:
        """The priors of the schema."""
        return init_normalizer()

    def decide(
        self, params: Params, policy_state: Normalizer, observation: Observation
    ) -> tuple[Normalizer, PolicyOutputs]:
        """Answer one observation; compiles when its layout is new."""
        return self._step(params, policy_state, observation.raw, layout=observation.layout)
