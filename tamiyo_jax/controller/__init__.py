"""The pure step that composes graph, policy and risk; and the state that it carries."""

from tamiyo_jax.controller.answer import Answer, Question, ask, question
from tamiyo_jax.controller.exchange import (
    CalledExchange,
    CompiledExchange,
    Exchange,
    Plan,
    exchange_for,
)
from tamiyo_jax.controller.observe import Situation, observe, observe_encoded
from tamiyo_jax.controller.outcome import Failure, Mode, Outcome
from tamiyo_jax.controller.packing import Packed, Packing
from tamiyo_jax.controller.state import (
    AppliedPolicy,
    TamiyoState,
    initial_state,
    state_from_json,
    state_to_json,
)
from tamiyo_jax.controller.step import GUARD_POLICY, conclude, fail, step
from tamiyo_jax.controller.windows import Window

__all__ = [
    "GUARD_POLICY",
    "Answer",
    "AppliedPolicy",
    "CalledExchange",
    "CompiledExchange",
    "Exchange",
    "Failure",
    "Mode",
    "Outcome",
    "Packed",
    "Packing",
    "Plan",
    "Question",
    "Situation",
    "TamiyoState",
    "Window",
    "ask",
    "conclude",
    "exchange_for",
    "fail",
    "initial_state",
    "observe",
    "observe_encoded",
    "question",
    "state_from_json",
    "state_to_json",
    "step",
]
