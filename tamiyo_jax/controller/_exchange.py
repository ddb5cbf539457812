"""How a policy is asked about graphs of one layout, again and again.

A policy that is a function of arrays is compiled whole, with unpacking, selection and
packing: a few arrays go in, and one comes out. Any other is called.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple, TypeVar, cast

import jax
import numpy as np

from tamiyo_jax.contracts import SystemStatePacket
from tamiyo_jax.controller._answer import Question, ask, question
from tamiyo_jax.controller._packing import Packed, Packing
from tamiyo_jax.graph import GraphLayout
from tamiyo_jax.policy import ArrayPolicy, Observation, Policy, PolicyOutputs, Selection, select

__all__ = [
    "CalledExchange",
    "CompiledExchange",
    "Exchange",
    "Plan",
    "batch_size",
    "exchange_for",
    "stack",
    "stack_each",
    "unstack",
]

PolicyState = TypeVar("PolicyState")
Answered = tuple[Any, PolicyOutputs, Selection]
"""Policy state, outputs and selection."""


class Plan(NamedTuple):
    """How questions and answers about graphs of one layout are packed."""

    questions: Packing
    answers: Packing


class CalledExchange:
    """Asks a policy by calling it.

    Args:
      policy: the policy.
      params: its parameters.
      policy_state: its state.
      observation: one like all to come; it is asked about once.

    Attributes:
      first: what was answered to it.
      plan: how questions and answers are packed.
    """

    def __init__(
        self,
        policy: Policy[Any, PolicyState],
        params: object,
        policy_state: PolicyState,
        observation: Observation,
    ) -> None:
        self._policy, self._params, self._layout = policy, params, observation.layout
        example = question(policy_state, observation)
        self.first = self._ask(example, observation.packet)
        self.plan = Plan(Packing(example), Packing(self.first))

    def answer(self, asked: object, packet: SystemStatePacket | None) -> Any:  # noqa: ANN401
        """The answer to a question about a packet, packed where it fits the plan."""
        answered = self._ask(self.plan.questions.unpack(asked), cast(SystemStatePacket, packet))
        return self.plan.answers.pack(answered)

    def _ask(self, asked: Question, packet: SystemStatePacket) -> Answered:
        policy_state, raw, legality = asked
        observation = Observation(packet, self._layout, raw, legality)
        answer = ask(self._policy, self._params, policy_state, observation)
        return answer.policy_state, answer.outputs, answer.selection


class CompiledExchange:
    """Asks a policy that is a function of arrays; see `CalledExchange`."""

    def __init__(
        self,
        policy: ArrayPolicy[Any, PolicyState],
        params: object,
        policy_state: PolicyState,
        observation: Observation,
    ) -> None:
        layout = observation.layout
        example = jax.device_get(question(policy_state, observation))
        questions = Packing(example)
        self._params = policy.fold(params, layout)
        shapes = _decider(policy, layout).eval_shape(self._params, example)
        self.plan = Plan(questions, Packing(shapes))
        self._step, self._steps, self._each = _programs(policy, layout, self.plan)
        self.first = self.plan.answers.unpack(self.answer(example, None))

    def answer(self, asked: Any, packet: SystemStatePacket | None) -> Packed:  # noqa: ANN401
        """The answer to a question; what packet it is about does not matter."""
        del packet
        if not isinstance(asked, Packed):
            asked = self.plan.questions.pack(jax.device_get(asked))
        # Several times as fast as `jax.device_get`, which prepares for many arrays.
        return Packed(tuple(map(np.asarray, self._step(self._params, asked.arrays))), ())

    def answer_many(self, arrays: tuple[np.ndarray, ...]) -> tuple[np.ndarray, ...]:
        """Answers to B questions, as if each were asked with the state after the one before.

        Compiles once for each `batch_size`.

        Args:
          arrays: of the packed questions, with a leading axis of B; only the first question's
            policy state counts.

        Returns:
          Arrays of the packed answers, with a leading axis of B.
        """
        count = len(arrays[0])
        rows = np.minimum(np.arange(batch_size(count)), count - 1)
        answers = self._steps(self._params, tuple(array[rows] for array in arrays))
        return tuple(np.asarray(array)[:count] for array in answers)

    def answer_each(self, arrays: tuple[np.ndarray, ...], size: int) -> tuple[np.ndarray, ...]:
        """Answers to at most `size` questions, each with a policy state of its own.

        Compiles once for each size; else as `answer_many`.
        """
        count = len(arrays[0])
        rows = np.minimum(np.arange(size), count - 1)
        answers = self._each(self._params, tuple(array[rows] for array in arrays))
        return tuple(np.asarray(array)[:count] for array in answers)


Exchange = CalledExchange | CompiledExchange

_REMEMBERED = 64  # programs, for controllers that come and go in one process


@lru_cache(_REMEMBERED)
def _decider(policy: ArrayPolicy[Any, Any], layout: GraphLayout) -> Any:  # noqa: ANN401 - jitted
    def decide(params: object, asked: Question) -> Answered:
        policy_state, raw, legality = asked
        after, outputs = policy.decide_arrays(params, policy_state, raw, layout=layout)
        return after, outputs, select(outputs, legality)

    return jax.jit(decide)


@lru_cache(_REMEMBERED)
def _programs(policy: ArrayPolicy[Any, Any], layout: GraphLayout, plan: Plan) -> tuple[Any, ...]:
    """From packed questions to packed answers: of one, of many in turn, and of many at once."""
    questions, answers = plan

    def policy_step(params: object, arrays: tuple[Any, ...]) -> tuple[jax.Array, ...]:
        asked = questions.unpack(Packed(arrays, ()))
        return answers.flatten(_decider(policy, layout)(params, asked))

    def policy_steps(params: object, arrays: tuple[Any, ...]) -> tuple[jax.Array, ...]:
        unpack = jax.vmap(lambda packed: questions.unpack(Packed(packed, ())))
        states, raws, legality = unpack(arrays)
        first = jax.tree.map(lambda leaf: leaf[0], states)
        after, outputs = policy.decide_many(params, first, raws, layout=layout)
        return jax.vmap(answers.flatten)((after, outputs, jax.vmap(select)(outputs, legality)))

    at_once = jax.jit(jax.vmap(policy_step, in_axes=(None, 0)))
    return jax.jit(policy_step), jax.jit(policy_steps), at_once


def exchange_for(
    policy: Policy[Any, PolicyState],
    params: object,
    policy_state: PolicyState,
    observation: Observation,
) -> Exchange:
    """The exchange that suits a policy; compiles for the observation's layout."""
    if isinstance(policy, ArrayPolicy):
        return CompiledExchange(policy, params, policy_state, observation)
    return CalledExchange(policy, params, policy_state, observation)


def batch_size(count: int) -> int:
    """The next power of two: how many questions are answered where `count` are asked."""
    return 1 << (count - 1).bit_length()


def stack(
    plan: Plan, policy_state: object, observations: Sequence[Observation]
) -> tuple[np.ndarray, ...]:
    """Questions about observations of one layout, packed, with a leading axis."""
    policy_state = jax.device_get(policy_state)
    return stack_each(plan, [(policy_state, observation) for observation in observations])


def stack_each(
    plan: Plan, questions: Sequence[tuple[object, Observation]]
) -> tuple[np.ndarray, ...]:
    """The same for observations with a policy state each, which is on the host."""
    packed = [plan.questions.pack(question(*each)).arrays for each in questions]
    return tuple(map(np.stack, zip(*packed, strict=True)))


def unstack(plan: Plan, arrays: tuple[np.ndarray, ...]) -> list[Answered]:
    """The answers to them."""
    return [plan.answers.unpack(Packed(array, ())) for array in zip(*arrays, strict=True)]
