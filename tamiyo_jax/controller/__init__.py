"""The pure step that composes graph, policy and risk; and the state that it carries."""

from tamiyo_jax.controller.observe import Situation, observe
from tamiyo_jax.controller.state import TamiyoState, initial_state, state_from_json, state_to_json
from tamiyo_jax.controller.step import (
    GUARD_POLICY,
    Answer,
    Failure,
    Mode,
    Outcome,
    conclude,
    fail,
    step,
)

__all__ = [
    "GUARD_POLICY",
    "Answer",
    "Failure",
    "Mode",
    "Outcome",
    "Situation",
    "TamiyoState",
    "conclude",
    "fail",
    "initial_state",
    "observe",
    "state_from_json",
    "state_to_json",
    "step",
]
