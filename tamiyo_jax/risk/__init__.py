"""Risk control: the rule table, the gate, breakers, conservative mode and the pause budget.

Pure Python without arrays: state in, state out.
"""

from tamiyo_jax.risk._breaker import BreakerState, Stage
from tamiyo_jax.risk._conditions import Condition
from tamiyo_jax.risk._gate import (
    RESTRICTION,
    Verdict,
    clip_lr_delta,
    gate,
    guard,
)
from tamiyo_jax.risk._ladder import Ladder, Rung, climb, is_restorable
from tamiyo_jax.risk._outcome import health, priority, report_outcome
from tamiyo_jax.risk._rules import RULES, Effect, HeldRule, Rule, rules_markdown, rules_that_hold
from tamiyo_jax.risk._signals import Signals, read_signals
from tamiyo_jax.risk._state import (
    ConservativeMode,
    RiskState,
    admit_call,
    apply_verdict,
    call_failed,
    call_succeeded,
    enter_by_hand,
    from_json,
    leave_by_hand,
    loss_delta,
    may_brake,
    to_json,
)

__all__ = [
    "RESTRICTION",
    "RULES",
    "BreakerState",
    "Condition",
    "ConservativeMode",
    "Effect",
    "HeldRule",
    "Ladder",
    "RiskState",
    "Rule",
    "Rung",
    "Signals",
    "Stage",
    "Verdict",
    "admit_call",
    "apply_verdict",
    "call_failed",
    "call_succeeded",
    "climb",
    "clip_lr_delta",
    "enter_by_hand",
    "from_json",
    "gate",
    "guard",
    "health",
    "is_restorable",
    "leave_by_hand",
    "loss_delta",
    "may_brake",
    "priority",
    "read_signals",
    "report_outcome",
    "rules_markdown",
    "rules_that_hold",
    "to_json",
]
