"""The pure step that composes graph, policy and risk; and the state that it carries."""

from tamiyo_jax.controller._answer import Answer, Question, ask, question
from tamiyo_jax.controller._exchange import (
    CalledExchange,
    CompiledExchange,
    Exchange,
    Plan,
    batch_size,
    exchange_for,
    stack,
    stack_each,
    unstack,
)
from tamiyo_jax.controller._observe import Situation, observe, observe_encoded
from tamiyo_jax.controller._outcome import Failure, Mode, Outcome
from tamiyo_jax.controller._packing import Packed, Packing
from tamiyo_jax.controller._runs import (
    find_forgotten_runs,
    follow_runs,
    select_run,
    set_conservative,
)
from tamiyo_jax.controller._state import (
    AppliedPolicy,
    RunState,
    TamiyoState,
    initial_state,
    state_from_json,
    state_to_json,
)
from tamiyo_jax.controller._step import GUARD_POLICY, conclude, fail, step
from tamiyo_jax.controller._windows import Window

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
    "RunState",
    "Situation",
    "TamiyoState",
    "Window",
    "ask",
    "batch_size",
    "conclude",
    "exchange_for",
    "fail",
    "find_forgotten_runs",
    "follow_runs",
    "initial_state",
    "observe",
    "observe_encoded",
    "question",
    "select_run",
    "set_conservative",
    "stack",
    "stack_each",
    "state_from_json",
    "state_to_json",
    "step",
    "unstack",
]
