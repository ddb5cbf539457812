"""The pure step that composes graph, policy and risk; and the state that it carries."""

from tamiyo_jax.controller.answer import Answer, ask
from tamiyo_jax.controller.observe import Situation, observe, observe_encoded
from tamiyo_jax.controller.outcome import Failure, Mode, Outcome
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
    "Failure",
    "Mode",
    "Outcome",
    "Situation",
    "TamiyoState",
    "Window",
    "ask",
    "conclude",
    "fail",
    "initial_state",
    "observe",
    "observe_encoded",
    "state_from_json",
    "state_to_json",
    "step",
]
