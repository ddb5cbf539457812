"""Running the policy under its deadline: what a runner is, and the one in the calling process.

See `ProcessRunner` for the one in a worker process, which can be ended.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import Any, Generic, Protocol, TypeVar, cast

import jax

from tamiyo_jax.contracts import Metric
from tamiyo_jax.controller import (
    Answer,
    CompiledExchange,
    Exchange,
    batch_size,
    exchange_for,
    question,
    stack,
    stack_each,
    unstack,
)
from tamiyo_jax.errors import DeadlineExceededError, PolicyFailureError, TamiyoError
from tamiyo_jax.graph import GraphLayout
from tamiyo_jax.inference._policies import PolicyChoice
from tamiyo_jax.policy import Observation, Policy

__all__ = ["InlineRunner", "Runner"]

PolicyState = TypeVar("PolicyState")


class Runner(Protocol[PolicyState]):
    """Where a policy runs."""

    def prepare(self, policy_state: PolicyState, observation: Observation) -> bool:
        """Compile for the observation's layout if that is new; True if it was."""
        ...

    def run(
        self,
        policy_state: PolicyState,
        observation: Observation,
        budget_ms: float,
        meanwhile: Callable[[], object] | None = None,
    ) -> Answer[PolicyState]:
        """Ask the policy.

        Args:
          policy_state: its state.
          observation: what it decides upon, of a layout that `prepare` was called for.
          budget_ms: milliseconds until this returns or raises.
          meanwhile: called while the policy runs; before it, and outside the budget, where the
            policy runs in this process.

        Raises:
          DeadlineExceededError: there was no answer within `budget_ms`.
          PolicyFailureError: the policy raised, or the process that it ran in crashed.
          WorkerUnavailableError: no worker is warm.
        """
        ...

    def prepare_many(self, policy_state: PolicyState, observations: Sequence[Observation]) -> bool:
        """Compile for as many observations of one prepared layout; True if that was new.

        Like `run_many` only for a policy that is a function of arrays.
        """
        ...

    def run_many(
        self,
        policy_state: PolicyState,
        observations: Sequence[Observation],
        budget_ms: float,
        meanwhile: Callable[[], object] | None = None,
    ) -> tuple[Answer[PolicyState], ...]:
        """Ask the policy as if one after another, each time with its state after the last.

        Args:
          policy_state: its state before the first.
          observations: of one layout, for which `prepare_many` was called.
          budget_ms: milliseconds for all of them together.
          meanwhile: called while the policy runs; see `run`.

        Raises:
          TamiyoError: as `run`; there is no answer to any of them then.
        """
        ...

    def wait_ready(self) -> None:
        """Wait until there is something to run on.

        Raises:
          WorkerUnavailableError: no worker could be started; the message says why.
        """
        ...

    def metrics(self) -> tuple[Metric, ...]:
        """Figures for telemetry."""
        ...

    def close(self) -> None:
        """Release what the runner holds."""
        ...


class InlineRunner(Generic[PolicyState]):
    """Runs the policy in the calling process.

    For notebooks and accelerators: a late answer is discarded and the error is the same as
    a worker's, but a policy that never returns is waited for, since a thread of Python and
    a running XLA computation cannot be stopped.
    """

    def __init__(self, choice: PolicyChoice) -> None:
        self._policy: Policy[Any, PolicyState] = choice.policy
        self._params = choice.params
        self._exchanges: dict[GraphLayout, Exchange] = {}
        self._batches: set[tuple[GraphLayout, int]] = set()
        self._at_once: set[tuple[GraphLayout, int]] = set()

    def prepare(self, policy_state: PolicyState, observation: Observation) -> bool:
        """See `Runner`."""
        layout, packet_id = observation.layout, observation.packet.packet_id
        if layout in self._exchanges:
            return False
        with _policy_failures(packet_id):
            exchange = exchange_for(self._policy, self._params, policy_state, observation)
        self._exchanges[layout] = exchange
        return True

    def run(
        self,
        policy_state: PolicyState,
        observation: Observation,
        budget_ms: float,
        meanwhile: Callable[[], object] | None = None,
    ) -> Answer[PolicyState]:
        """See `Runner`; here it is done before."""
        if meanwhile is not None:
            meanwhile()
        started = time.perf_counter()
        exchange, packet = self._exchanges[observation.layout], observation.packet
        with _policy_failures(packet.packet_id):
            asked = exchange.plan.questions.pack(question(policy_state, observation))
            answer = exchange.plan.answers.unpack(exchange.answer(asked, packet))
        return Answer(*answer, latency_ms=_check_budget(started, budget_ms))

    def prepare_many(self, policy_state: PolicyState, observations: Sequence[Observation]) -> bool:
        """See `Runner`."""
        layout = observations[0].layout
        exchange = cast(CompiledExchange, self._exchanges[layout])
        key = layout, batch_size(len(observations))
        if key in self._batches:
            return False
        with _policy_failures(observations[0].packet.packet_id):
            exchange.answer_many(stack(exchange.plan, policy_state, observations))
        self._batches.add(key)
        return True

    def run_many(
        self,
        policy_state: PolicyState,
        observations: Sequence[Observation],
        budget_ms: float,
        meanwhile: Callable[[], object] | None = None,
    ) -> tuple[Answer[PolicyState], ...]:
        """See `run`."""
        if meanwhile is not None:
            meanwhile()
        exchange = cast(CompiledExchange, self._exchanges[observations[0].layout])
        started = time.perf_counter()
        with _policy_failures(observations[0].packet.packet_id):
            arrays = exchange.answer_many(stack(exchange.plan, policy_state, observations))
            answers = unstack(exchange.plan, arrays)
        latency_ms = _check_budget(started, budget_ms)
        return tuple(Answer(*answer, latency_ms=latency_ms) for answer in answers)

    def prepare_each(self, policy_state: PolicyState, observation: Observation, most: int) -> None:
        """Compile for the observation's layout if that is new: for one, and for `most` at once."""
        self.prepare(policy_state, observation)
        layout = observation.layout
        exchange = cast(CompiledExchange, self._exchanges[layout])
        if (layout, most) not in self._at_once:
            asked = [(jax.device_get(policy_state), observation)]
            with _policy_failures(observation.packet.packet_id):
                exchange.answer_each(stack_each(exchange.plan, asked), most)
            self._at_once.add((layout, most))

    def run_each(
        self, questions: Sequence[tuple[PolicyState, Observation]], most: int, budget_ms: float
    ) -> tuple[Answer[PolicyState], ...]:
        """Ask the policy, a function of arrays, for many runs at once: each has its own state.

        Args:
          questions: policy states and observations of one layout, for which `prepare_each` was
            called; at most `most`.
          most: as for `prepare_each`.
          budget_ms: milliseconds for all of them together.

        Raises:
          TamiyoError: as `run`; there is no answer to any of them then.
        """
        if len(questions) == 1:
            return (self.run(*questions[0], budget_ms),)
        first = questions[0][1]
        exchange = cast(CompiledExchange, self._exchanges[first.layout])
        started = time.perf_counter()
        with _policy_failures(first.packet.packet_id):
            asked = [(jax.device_get(state), observation) for state, observation in questions]
            arrays = exchange.answer_each(stack_each(exchange.plan, asked), most)
            answers = unstack(exchange.plan, arrays)
        latency_ms = _check_budget(started, budget_ms)
        return tuple(Answer(*answer, latency_ms=latency_ms) for answer in answers)

    def wait_ready(self) -> None:
        """See `Runner`; this process is ready."""

    def metrics(self) -> tuple[Metric, ...]:
        """See `Runner`; there are none."""
        return ()

    def close(self) -> None:
        """See `Runner`."""


def _check_budget(started: float, budget_ms: float) -> float:
    """Return the milliseconds since `started`, and raise if they exceed the budget."""
    latency_ms = (time.perf_counter() - started) * 1e3
    if latency_ms > budget_ms:
        raise DeadlineExceededError(
            f"inference took {latency_ms:.1f} ms, its budget is {budget_ms:g} ms; the answer "
            "was discarded. Raise deadlines.inference_ms or choose a smaller policy",
            stage="inference",
            budget_ms=budget_ms,
            latency_ms=latency_ms,
        )
    return latency_ms


@contextmanager
def _policy_failures(packet_id: str) -> Generator[None]:
    """Raise an exception of the policy as a `PolicyFailureError`.

    `SystemExit` goes on: in this process it may be the program's own, from a signal handler.
    """
    try:
        yield
    except TamiyoError:
        raise
    except Exception as error:
        raise PolicyFailureError(
            f"the policy raised {type(error).__name__}: {error}", packet_id=packet_id
        ) from error
