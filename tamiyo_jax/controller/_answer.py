"""Asking a policy: the one part of a step that runs on a device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import jax

from tamiyo_jax.graph import RawGraph
from tamiyo_jax.policy import Legality, Observation, Policy, PolicyOutputs, Selection, select

__all__ = ["Answer", "Question", "ask", "question"]

Params = TypeVar("Params")
PolicyState = TypeVar("PolicyState")

Question = tuple[Any, RawGraph, Legality]
"""Policy state, raw graph and legality: the arrays that a policy is asked with."""


@dataclass(frozen=True, slots=True)
class Answer(Generic[PolicyState]):
    """What a policy answered, on the host.

    Attributes:
      policy_state: its next state.
      outputs: the outputs of its heads.
      selection: the best legal action, seed and blueprint among them.
      latency_ms: milliseconds from the question to the answer, as the caller measures them.
    """

    policy_state: PolicyState
    outputs: PolicyOutputs
    selection: Selection
    latency_ms: float = 0.0


def ask(
    policy: Policy[Params, PolicyState],
    params: Params,
    policy_state: PolicyState,
    observation: Observation,
) -> Answer[PolicyState]:
    """Let a policy decide once, and bring the answer to the host; see `exchange_for` for more."""
    after, outputs = jax.device_get(policy.decide(params, policy_state, observation))
    return Answer(after, outputs, select(outputs, observation.legality))


def question(policy_state: object, observation: Observation) -> Question:
    """What of an observation is arrays, with the policy's state."""
    return policy_state, observation.raw, observation.legality
