"""Asking a policy: the one part of a step that runs on a device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

import jax

from tamiyo_jax.policy import Observation, Policy, PolicyOutputs, Selection, select

__all__ = ["Answer", "ask"]

Params = TypeVar("Params")
PolicyState = TypeVar("PolicyState")

_select = jax.jit(select)


@dataclass(frozen=True, slots=True)
class Answer(Generic[PolicyState]):
    """What a policy answered, on the host.

    Attributes:
      policy_state: its next state.
      outputs: the outputs of its heads.
      selection: the best legal action, seed and blueprint among them.
      latency_ms: how long it took, as seen by who asked.
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
    """Let a policy decide and select where it runs, and bring the answer to the host."""
    after, outputs = policy.decide(params, policy_state, observation)
    return Answer(*jax.device_get((after, outputs, _select(outputs, observation.legality))))
