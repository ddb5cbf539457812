"""Risk control: the rule table, the gate, breakers, conservative mode and the pause budget.

Pure Python without arrays: state in, state out.
"""

from tamiyo_jax.risk.breaker import BreakerState, Stage
from tamiyo_jax.risk.conditions import Condition
from tamiyo_jax.risk.gate import (
    POLICY_REASON,
    RESTRICTION,
    Verdict,
    downgraded_lr_delta,
    gate,
    guard,
)
from tamiyo_jax.risk.outcome import health, priority, report_outcome
from tamiyo_jax.risk.rules import (
    RULES,
    Effect,
    HeldRule,
    Rule,
    rules_markdown,
    rules_that_hold,
)
from tamiyo_jax.risk.signals import Signals, read_signals
from tamiyo_jax.risk.state import (
    ConservativeMode,
    RiskState,
    admit_call,
    after_verdict,
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
    "POLICY_REASON",
    "RESTRICTION",
    "RULES",
    "BreakerState",
    "Condition",
    "ConservativeMode",
    "Effect",
    "HeldRule",
    "RiskState",
    "Rule",
    "Signals",
    "Stage",
    "Verdict",
    "admit_call",
    "after_verdict",
    "call_failed",
    "call_succeeded",
    "downgraded_lr_delta",
    "enter_by_hand",
    "from_json",
    "gate",
    "guard",
    "health",
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
