"""The graph policy: normalise, build and run the network as one jitted function."""

from __future__ import annotations

from functools import partial

import jax

from tamiyo_jax.config import GraphConfig
from tamiyo_jax.graph import GraphLayout, Normalizer, RawGraph, build, init_normalizer
from tamiyo_jax.policy.fold import FoldedParams, fold
from tamiyo_jax.policy.folded import apply_folded
from tamiyo_jax.policy.network import Params, apply
from tamiyo_jax.policy.outputs import Observation, PolicyOutputs

__all__ = ["GraphPolicy", "policy_step"]


def policy_step(
    params: Params | FoldedParams,
    normalizer: Normalizer,
    raw: RawGraph,
    *,
    layout: GraphLayout,
    rate: float,
) -> tuple[Normalizer, PolicyOutputs]:
    """One decision, from raw arrays to outputs; pure, vmappable over `normalizer` and `raw`.

    Jit with `layout` and `rate` static, so that each layout compiles once.

    Args:
      params: parameters of the network, as they are or folded for the layout.
      normalizer: statistics before the step.
      raw: arrays in the shape of the layout.
      layout: the graph's layout.
      rate: weight of the newest step in the statistics.
    """
    normalizer, graph = build(layout, normalizer, raw, rate=rate)
    if isinstance(params, FoldedParams):
        return normalizer, apply_folded(params, layout, graph)
    return normalizer, apply(params, layout, graph)


_jitted_step = jax.jit(policy_step, static_argnames=("layout", "rate"))


class GraphPolicy:
    """The network as a policy; its state is the normaliser.

    Parameters are folded when they are first seen with a layout, and remembered as long as the
    same object comes; give new parameters as a new tree, as JAX makes them. A failure inside
    propagates as it is: there is no other device and no other answer.

    Args:
      config: gives the rate of the normaliser.
    """

    def __init__(self, config: GraphConfig) -> None:
        self._step = partial(_jitted_step, rate=config.normalizer_rate)
        self._params: Params | None = None
        self._folded: dict[GraphLayout, FoldedParams] = {}

    def initial_state(self) -> Normalizer:
        """The priors of the schema."""
        return init_normalizer()

    def decide(
        self, params: Params, policy_state: Normalizer, observation: Observation
    ) -> tuple[Normalizer, PolicyOutputs]:
        """Answer one observation; folds and compiles when its layout is new."""
        layout = observation.layout
        folded = self._fold(params, layout)
        return self._step(folded, policy_state, observation.raw, layout=layout)

    def _fold(self, params: Params, layout: GraphLayout) -> FoldedParams:
        if params is not self._params:
            self._params, self._folded = params, {}
        if layout not in self._folded:
            self._folded[layout] = fold(params, layout)
        return self._folded[layout]
