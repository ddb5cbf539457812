"""The inputs and outputs of a policy, and the protocols that policies satisfy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeVar, runtime_checkable

import jax
import numpy as np
from jaxtyping import Bool, Float32

from tamiyo_jax.contracts import SystemStatePacket
from tamiyo_jax.graph import GraphLayout, RawGraph

__all__ = [
    "NUM_ACTIONS",
    "Array",
    "ArrayPolicy",
    "Legality",
    "Observation",
    "Policy",
    "PolicyOutputs",
    "Rationale",
]

NUM_ACTIONS = 32

Array = jax.Array | np.ndarray
"""In JAX or in NumPy: a policy may return either, and a batch of masks may be traced."""


class Rationale(NamedTuple):
    """Why a policy chose as it did.

    Attributes:
      reason: a short, stable id of the rule that chose, such as ``heuristic:plateau``; it is a
        label of metrics, so a policy has few of them.
      explanation: the reason in words, with its numbers.
    """

    reason: str
    explanation: str


class PolicyOutputs(NamedTuple):
    """Outputs of the heads for one decision; `vmap` puts a batch axis before each.

    Attributes:
      policy_logits: f32[32], one per action.
      policy_params: f32[4] in [-1, 1].
      param_delta: f32[] in [-1, 1], the first of `policy_params`.
      blending_logits: f32[M], one per blending method.
      risk_logits: f32[5], classes of rising severity.
      value: f32[].
      schedule_params: f32[2] in [-1, 1].
      breaker_logits: f32[2].
      seed_scores: f32[S], -inf on padding.
      blueprint_scores: f32[B], -inf on padding.
      graph_embedding: f32[D2].
      rationale: why a policy of rules chose its action; None from a network, whose logits are
        explained by `propose`.
    """

    policy_logits: Float32[Array, "32"]
    policy_params: Float32[Array, "4"]
    param_delta: Float32[Array, ""]
    blending_logits: Float32[Array, " methods"]
    risk_logits: Float32[Array, "5"]
    value: Float32[Array, ""]
    schedule_params: Float32[Array, "2"]
    breaker_logits: Float32[Array, "2"]
    seed_scores: Float32[Array, " seeds"]
    blueprint_scores: Float32[Array, " blueprints"]
    graph_embedding: Float32[Array, " embedding"]
    rationale: Rationale | None = None

    def named_arrays(self) -> dict[str, Array]:
        """The arrays by name, without the rationale."""
        return {name: field for name, field in self._asdict().items() if name != "rationale"}


class Legality(NamedTuple):
    """What the policy may choose.

    Attributes:
      actions: bool[32].
      seeds: bool[32, S], the seeds that each action may take.
      blueprints: bool[B], the candidates that may be grown.
    """

    actions: Bool[Array, "32"]
    seeds: Bool[Array, "32 seeds"]
    blueprints: Bool[Array, " blueprints"]


@dataclass(frozen=True, slots=True)
class Observation:
    """The input of one decision."""

    packet: SystemStatePacket
    layout: GraphLayout
    raw: RawGraph
    legality: Legality


Params = TypeVar("Params", contravariant=True)
PolicyState = TypeVar("PolicyState")


class Policy(Protocol[Params, PolicyState]):
    """A pure policy: state in, state out.

    The graph policy's state is the normaliser, the heuristic's its counters.
    """

    def initial_state(self) -> PolicyState:
        """State before the first decision."""
        ...

    def decide(
        self, params: Params, policy_state: PolicyState, observation: Observation
    ) -> tuple[PolicyState, PolicyOutputs]:
        """Answer one observation."""
        ...


@runtime_checkable
class ArrayPolicy(Policy[Params, PolicyState], Protocol):
    """A policy that is a function of arrays: it is compiled as one with what surrounds it.

    It is hashable; policies that are equal share what was compiled.
    """

    def fold(self, params: Params, layout: GraphLayout) -> Any:  # noqa: ANN401 - its own pytree
        """Parameters in the form that `decide_arrays` reads for graphs of a layout."""
        ...

    def decide_arrays(
        self,
        folded: Any,  # noqa: ANN401
        policy_state: PolicyState,
        raw: RawGraph,
        *,
        layout: GraphLayout,
    ) -> tuple[PolicyState, PolicyOutputs]:
        """Answer one graph; pure and traceable, with `layout` static."""
        ...

    def decide_many(
        self,
        folded: Any,  # noqa: ANN401
        policy_state: PolicyState,
        raws: RawGraph,
        *,
        layout: GraphLayout,
    ) -> tuple[PolicyState, PolicyOutputs]:
        """Answer B graphs as if one after another; all arrays have a leading axis of B."""
        ...
