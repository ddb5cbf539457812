"""Running the policy under its deadline.

In a worker process, which can be ended; or in the calling process, which can only measure
the deadline and discard a late answer.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Generic, NamedTuple, Protocol, TypeVar, cast

import jax

from tamiyo_jax.config import TamiyoConfig
from tamiyo_jax.contracts import Metric, SystemStatePacket
from tamiyo_jax.controller import Answer, Mode, ask
from tamiyo_jax.errors import DeadlineExceededError, PolicyFailureError, TamiyoError
from tamiyo_jax.graph import GraphLayout, RawGraph
from tamiyo_jax.policy import Legality, Observation, Policy
from tamiyo_jax.runtime.framing import Load
from tamiyo_jax.runtime.packing import Packing
from tamiyo_jax.runtime.policies import PolicyChoice, choose_policy
from tamiyo_jax.runtime.pool import WorkerPool
from tamiyo_jax.runtime.worker import WorkerSpec

__all__ = ["InlineRunner", "ProcessRunner", "Runner", "serve_policy"]

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
          DeadlineExceededError: there was no answer within `budget_ms`.
          PolicyFailureError: the policy raised, or the process that it ran in crashed.
          WorkerUnavailableError: no worker is warm.
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
        self._prepared: set[GraphLayout] = set()

    def prepare(self, policy_state: PolicyState, observation: Observation) -> bool:
        """See `Runner`."""
        if observation.layout in self._prepared:
            return False
        self._ask(policy_state, observation)
        self._prepared.add(observation.layout)
        return True

    def run(
        self, policy_state: PolicyState, observation: Observation, budget_ms: float
    ) -> Answer[PolicyState]:
        """See `Runner`."""
        started = time.perf_counter()
        answer = self._ask(policy_state, observation)
        latency_ms = (time.perf_counter() - started) * 1e3
        if latency_ms > budget_ms:
            raise DeadlineExceededError(
                f"inference took {latency_ms:.1f} ms, its budget is {budget_ms:g} ms; the answer "
                "was discarded. Raise deadlines.inference_ms or choose a smaller policy",
                stage="inference",
                budget_ms=budget_ms,
                latency_ms=latency_ms,
            )
        return replace(answer, latency_ms=latency_ms)

    def wait_ready(self) -> None:
        """See `Runner`; this process is ready."""

    def metrics(self) -> tuple[Metric, ...]:
        """See `Runner`; there are none."""
        return ()

    def close(self) -> None:
        """See `Runner`."""

    def _ask(self, policy_state: PolicyState, observation: Observation) -> Answer[PolicyState]:
        try:
            return ask(self._policy, self._params, policy_state, observation)
        except TamiyoError:
            raise
        except Exception as error:
            raise PolicyFailureError(
                f"the policy raised {type(error).__name__}: {error}",
                packet_id=observation.packet.packet_id,
            ) from error


class _Question(NamedTuple):
    """What a worker is asked.

    Attributes:
      number: of the layout.
      layout: travels once, with its number.
      arrays: policy state, raw graph and legality; packed as those that came with the layout.
      packet: the packet.
    """

    number: int
    layout: GraphLayout | None
    arrays: tuple[Any, RawGraph, Legality] | bytes
    packet: SystemStatePacket


class _Layout(NamedTuple):
    """What both sides remember of a layout: how its questions and answers are packed."""

    layout: GraphLayout
    number: int
    questions: Packing
    answers: Packing


class ProcessRunner(Generic[PolicyState]):
    """Runs the policy in a worker process that is ended when it is late.

    Args:
      config: the configuration.
      choice: the policy; the worker makes its own by the same name.
      environment: what the worker sees of the environment; see `worker_environment`.
    """

    def __init__(
        self, config: TamiyoConfig, choice: PolicyChoice, environment: Mapping[str, str]
    ) -> None:
        deadlines = config.deadlines
        self._layouts: dict[GraphLayout, _Layout] = {}
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
        layout = observation.layout
        if layout in self._layouts:
            return False
        number, arrays = len(self._layouts), _arrays(policy_state, observation)
        question = _Question(number, layout, arrays, observation.packet)
        answer = self._pool.prepare(number, question)
        self._layouts[layout] = _Layout(layout, number, Packing(arrays), Packing(answer))
        return True

    def run(
        self, policy_state: PolicyState, observation: Observation, budget_ms: float
    ) -> Answer[PolicyState]:
        """See `Runner`."""
        started = time.perf_counter()
        known = self._layouts[observation.layout]
        arrays = _arrays(policy_state, observation)
        packed = known.questions.pack(arrays)
        question = _Question(known.number, None, packed or arrays, observation.packet)
        answer = self._pool.call(question, budget_ms)
        if isinstance(answer, bytes):
            answer = known.answers.unpack(answer)
        return Answer(*answer, latency_ms=(time.perf_counter() - started) * 1e3)

    def wait_ready(self) -> None:
        """See `Runner`."""
        self._pool.wait_ready()

    def metrics(self) -> tuple[Metric, ...]:
        """See `Runner`."""
        return (
            Metric("tamiyo.worker.restarts", float(self._pool.restarts)),
            Metric("tamiyo.worker.spares_ready", float(self._pool.spares_ready)),
        )

    def close(self) -> None:
        """End the workers."""
        self._pool.close()


def _arrays(policy_state: object, observation: Observation) -> tuple[Any, RawGraph, Legality]:
    return policy_state, observation.raw, observation.legality


def serve_policy(
    config: TamiyoConfig, policy: str, params: object
) -> Callable[[_Question], tuple[Any, ...] | bytes]:
    """What a worker loads: the policy, and its parameters on the device."""
    choice = choose_policy(config, policy, params, Mode.ACT)
    placed = cast(Any, jax).device_put(choice.params)
    layouts: dict[int, _Layout] = {}

    def decide(
        question: _Question, layout: GraphLayout, arrays: tuple[Any, RawGraph, Legality]
    ) -> tuple[Any, ...]:
        policy_state, raw, legality = arrays
        observation = Observation(question.packet, layout, raw, legality)
        answer = ask(choice.policy, placed, policy_state, observation)
        return answer.policy_state, answer.outputs, answer.selection

    def serve(question: _Question) -> tuple[Any, ...] | bytes:
        number, layout, arrays, _ = question
        if layout is not None and not isinstance(arrays, bytes):
            answer = decide(question, layout, arrays)
            layouts[number] = _Layout(layout, number, Packing(arrays), Packing(answer))
            return answer
        known = layouts[number]
        if isinstance(arrays, bytes):
            arrays = known.questions.unpack(arrays)
        answer = decide(question, known.layout, arrays)
        return known.answers.pack(answer) or answer

    return serve
