"""The graph policy: normalise, build and run the network as one jitted function."""

from __future__ import annotations

from functools import partial

import jax

from tamiyo_jax.config import GraphConfig
from tamiyo_jax.graph import GraphLayout, GraphsTuple, Normalizer, RawGraph, build, init_normalizer
from tamiyo_jax.policy._fold import FoldedParams, fold
from tamiyo_jax.policy._folded import apply_folded
from tamiyo_jax.policy._network import Params, apply
from tamiyo_jax.policy._outputs import Observation, PolicyOutputs

__all__ = ["GraphPolicy", "decide_many", "policy_step"]


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


def decide_many(
    params: Params | FoldedParams,
    normalizer: Normalizer,
    raws: RawGraph,
    *,
    layout: GraphLayout,
    rate: float,
) -> tuple[Normalizer, PolicyOutputs]:
    """Many decisions as if `policy_step` made them one after another, in one pass over the weights.

    Only the statistics depend on the order, so they alone are walked through; the network sees
    all graphs at once.

    Args:
      params: parameters of the network, as they are or folded for the layout.
      normalizer: statistics before the first decision.
      raws: arrays of B graphs, each with a leading axis.
      layout: of all graphs.
      rate: weight of the newest step in the statistics.

    Returns:
      Statistics after each decision, and its outputs; both with a leading axis of B.
    """

    def normalize_next(
        state: Normalizer, raw: RawGraph
    ) -> tuple[Normalizer, tuple[Normalizer, GraphsTuple]]:
        state, graph = build(layout, state, raw, rate=rate)
        return state, (state, graph)

    _, (states, graphs) = jax.lax.scan(normalize_next, normalizer, raws)
    network = apply_folded if isinstance(params, FoldedParams) else apply
    return states, jax.vmap(partial(network, params, layout))(graphs)


_jitted_step = jax.jit(policy_step, static_argnames=("layout", "rate"))


class GraphPolicy:
    """The network as a policy; its state is the normaliser.

    Parameters are folded when they are first seen with a layout, and remembered as long as the
    same object comes; give new parameters as a new tree, as JAX makes them. A failure inside
    propagates as it is: there is no other device and no other answer.

    Policies that normalise alike are equal, and share what is compiled.

    Args:
      config: gives the rate of the normaliser.
    """

    def __init__(self, config: GraphConfig) -> None:
        self._rate = config.normalizer_rate
        self._params: Params | None = None
        self._folded: dict[GraphLayout, FoldedParams] = {}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, GraphPolicy) and other._rate == self._rate

    def __hash__(self) -> int:
        return hash((GraphPolicy, self._rate))

    def initial_state(self) -> Normalizer:
        """The priors of the schema."""
        return init_normalizer()

    def decide(
        self, params: Params, policy_state: Normalizer, observation: Observation
    ) -> tuple[Normalizer, PolicyOutputs]:
        """Answer one observation; folds and compiles when its layout is new."""
        layout = observation.layout
        if params is not self._params:
            self._params, self._folded = params, {}
        if layout not in self._folded:
            self._folded[layout] = fold(params, layout)
        folded = self._folded[layout]
        return _jitted_step(folded, policy_state, observation.raw, layout=layout, rate=self._rate)

    def fold(self, params: Params, layout: GraphLayout) -> FoldedParams:
        """See `tamiyo_jax.policy.fold`."""
        return fold(params, layout)

    def decide_arrays(
        self, folded: FoldedParams, policy_state: Normalizer, raw: RawGraph, *, layout: GraphLayout
    ) -> tuple[Normalizer, PolicyOutputs]:
        """See `policy_step`."""
        return policy_step(folded, policy_state, raw, layout=layout, rate=self._rate)

    def decide_many(
        self,
        folded: FoldedParams,
        policy_state: Normalizer,
        raws: RawGraph,
        *,
        layout: GraphLayout,
    ) -> tuple[Normalizer, PolicyOutputs]:
        """See `decide_many`."""
        return decide_many(folded, policy_state, raws, layout=layout, rate=self._rate)
