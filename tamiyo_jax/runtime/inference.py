"""Running the policy under its deadline.

`Runner` is the seam: here inference runs in the calling process, which can measure a
deadline and discard a late answer but cannot end the work; a worker process can.
"""

from __future__ import annotations

import time
from typing import Generic, Protocol, TypeVar

import jax

from tamiyo_jax.controller import Answer
from tamiyo_jax.errors import DeadlineExceededError, PolicyFailureError, TamiyoError
from tamiyo_jax.graph import GraphLayout
from tamiyo_jax.policy import Observation, Policy, PolicyOutputs

__all__ = ["InlineRunner", "Runner"]

Params = TypeVar("Params")
PolicyState = TypeVar("PolicyState")


class Runner(Protocol[PolicyState]):
    """Where a policy runs."""

    def prepare(self, policy_state: PolicyState, observation: Observation) -> bool:
        """Compile for the observation's layout if that is new; True if it was."""
        ...

    def run(
        self, policy_state: PolicyState, observation: Observation, budget_ms: float
    ) -> Answer[PolicyState]:
        """Ask the policy.

        Raises:
          DeadlineExceededError: the answer came later than `budget_ms`.
          PolicyFailureError: the policy raised.
        """
        ...

    def close(self) -> None:
        """Release what the runner holds."""
        ...


class InlineRunner(Generic[Params, PolicyState]):
    """Runs the policy in the calling process.

    For notebooks and accelerators: a late answer is discarded and the error is the same as
    a worker's, but a policy that never returns is waited for, since a thread of Python and
    a running XLA computation cannot be stopped.
    """

    def __init__(self, policy: Policy[Params, PolicyState], params: Params) -> None:
        self._policy = policy
        self._params = params
        self._prepared: set[GraphLayout] = set()

    def prepare(self, policy_state: PolicyState, observation: Observation) -> bool:
        """See `Runner`."""
        if observation.layout in self._prepared:
            return False
        self._decide(policy_state, observation)
        self._prepared.add(observation.layout)
        return True

    def run(
        self, policy_state: PolicyState, observation: Observation, budget_ms: float
    ) -> Answer[PolicyState]:
        """See `Runner`."""
        started = time.perf_counter()
        after, outputs = self._decide(policy_state, observation)
        latency_ms = (time.perf_counter() - started) * 1e3
        if latency_ms > budget_ms:
            raise DeadlineExceededError(
                f"inference took {latency_ms:.1f} ms, its budget is {budget_ms:g} ms; the answer "
                "was discarded. Raise deadlines.inference_ms or choose a smaller policy",
                stage="inference",
                budget_ms=budget_ms,
                latency_ms=latency_ms,
            )
        return Answer(after, outputs, latency_ms)

    def close(self) -> None:
        """See `Runner`."""

    def _decide(
        self, policy_state: PolicyState, observation: Observation
    ) -> tuple[PolicyState, PolicyOutputs]:
        try:
            answer = self._policy.decide(self._params, policy_state, observation)
            return jax.device_get(answer)
        except TamiyoError:
            raise
        except Exception as error:
            raise PolicyFailureError(
                f"the policy raised {type(error).__name__}: {error}",
                packet_id=observation.packet.packet_id,
            ) from error
