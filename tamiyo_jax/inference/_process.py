"""Running the policy in a worker process, which can be ended when it is late."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar, cast

import jax
import numpy as np

from tamiyo_jax.config import TamiyoConfig
from tamiyo_jax.contracts import Metric, SystemStatePacket
from tamiyo_jax.controller import (
    Answer,
    CompiledExchange,
    Exchange,
    Mode,
    Packing,
    Plan,
    batch_size,
    exchange_for,
    question,
    stack,
    unstack,
)
from tamiyo_jax.errors import ConfigurationError, PolicyFailureError
from tamiyo_jax.graph import GraphLayout
from tamiyo_jax.inference._policies import PolicyChoice, choose_policy
from tamiyo_jax.policy import ArrayPolicy, Observation
from tamiyo_jax.workers import Load, WorkerPool, WorkerSpec

__all__ = ["ProcessRunner", "serve_policy"]

PolicyState = TypeVar("PolicyState")


class _Example(NamedTuple):
    """The first question about a layout, by whose number the next ones name it."""

    number: int
    policy_state: Any
    observation: Observation


_Ask = tuple[int, tuple[Any, Any], SystemStatePacket | None]
"""The number, a question packed as the example was, and its packet where the policy reads it.

Sent at every step, as plain types: both ends run cold then, and pickling a class costs them more
than the question.
"""


class _AskMany(NamedTuple):
    """Packed questions with a leading axis; see `CompiledExchange.answer_many`."""

    number: int
    arrays: tuple[np.ndarray, ...]


class ProcessRunner(Generic[PolicyState]):
    """Runs the policy in a worker process that is ended when it is late.

    Args:
      config: the configuration.
      choice: the policy; the worker makes its own by the same name.
      environment: what the worker sees of the environment; see `worker_environment`.
      logs: directory of what the workers write.

    Raises:
      ConfigurationError: the policy is of the program that was started, which no other process
        can import.
    """

    def __init__(
        self,
        config: TamiyoConfig,
        choice: PolicyChoice,
        environment: Mapping[str, str],
        logs: Path,
    ) -> None:
        if choice.name.startswith("__main__:"):
            raise ConfigurationError(
                f"a worker process cannot import {choice.name!r}; put the factory into a module "
                "of its own, or open with isolation='inline'",
                policy=choice.name,
            )
        deadlines = config.deadlines
        self._plans: dict[GraphLayout, tuple[int, Plan]] = {}
        self._batches: set[tuple[GraphLayout, int]] = set()
        self._reads_packets = not isinstance(choice.policy, ArrayPolicy)
        arguments = {"config": config, "policy": choice.name, "params": choice.params}
        self._pool = WorkerPool(
            WorkerSpec(
                stage="inference",
                load=Load(
                    f"{__name__}:{serve_policy.__name__}",
                    jax.device_get(arguments),
                    deadlines.memory_mb << 20,
                ),
                failure=PolicyFailureError,
                environment=environment,
                logs=logs,
                spares=deadlines.spares,
                warmup_s=deadlines.warmup_s,
            )
        )

    @property
    def pool(self) -> WorkerPool:
        """The workers."""
        return self._pool

    def prepare(self, policy_state: PolicyState, observation: Observation) -> bool:
        """See `Runner`; every later worker is prepared alike before it serves."""
        if observation.layout in self._plans:
            return False
        number = len(self._plans)
        policy_state, observation = jax.device_get((policy_state, observation))
        answer = self._pool.prepare(number, _Example(number, policy_state, observation))
        plan = Plan(Packing(question(policy_state, observation)), Packing(answer))
        self._plans[observation.layout] = number, plan
        return True

    def run(
        self,
        policy_state: PolicyState,
        observation: Observation,
        budget_ms: float,
        meanwhile: Callable[[], object] | None = None,
    ) -> Answer[PolicyState]:
        """See `Runner`."""
        started = time.perf_counter()
        number, plan = self._plans[observation.layout]
        asked = plan.questions.pack(question(policy_state, observation))
        packet = observation.packet if self._reads_packets else None
        ask: _Ask = number, plan.questions.to_plain(asked), packet
        answered = plan.answers.from_plain(self._pool.call(ask, budget_ms, meanwhile))
        answer = plan.answers.unpack(answered)
        return Answer(*answer, latency_ms=(time.perf_counter() - started) * 1e3)

    def prepare_many(self, policy_state: PolicyState, observations: Sequence[Observation]) -> bool:
        """See `Runner`."""
        layout = observations[0].layout
        key = layout, batch_size(len(observations))
        if key in self._batches:
            return False
        number, plan = self._plans[layout]
        arrays = stack(plan, policy_state, observations)
        self._pool.prepare((number, key[1]), _AskMany(number, arrays))
        self._batches.add(key)
        return True

    def run_many(
        self,
        policy_state: PolicyState,
        observations: Sequence[Observation],
        budget_ms: float,
        meanwhile: Callable[[], object] | None = None,
    ) -> tuple[Answer[PolicyState], ...]:
        """See `Runner`."""
        started = time.perf_counter()
        number, plan = self._plans[observations[0].layout]
        message = _AskMany(number, stack(plan, policy_state, observations))
        answers = unstack(plan, self._pool.call(message, budget_ms, meanwhile))
        latency_ms = (time.perf_counter() - started) * 1e3
        return tuple(Answer(*answer, latency_ms=latency_ms) for answer in answers)

    def wait_ready(self) -> None:
        """See `Runner`."""
        self._pool.wait_ready()

    def metrics(self) -> tuple[Metric, ...]:
        """See `Runner`."""
        return self._pool.metrics("tamiyo.worker")

    def close(self) -> None:
        """End the workers."""
        self._pool.close()


def serve_policy(config: TamiyoConfig, policy: str, params: object) -> Callable[[Any], Any]:
    """What a worker loads: the policy, and its parameters on the device."""
    choice = choose_policy(config, policy, params, Mode.ACT)
    placed = cast(Any, jax).device_put(choice.params)
    exchanges: dict[int, Exchange] = {}

    def serve(message: _Example | _Ask | _AskMany) -> Any:  # noqa: ANN401 - see `Exchange`
        match message:
            case _Example(number, policy_state, observation):
                made = exchange_for(choice.policy, placed, policy_state, observation)
                exchanges[number] = made
                return made.first
            case _AskMany(number, arrays):
                return cast(CompiledExchange, exchanges[number]).answer_many(arrays)
            case (number, asked, packet):
                exchange = exchanges[number]
                questions, answers = exchange.plan
                answer = exchange.answer(questions.from_plain(asked), packet)
                return answers.to_plain(answer)

    return serve
