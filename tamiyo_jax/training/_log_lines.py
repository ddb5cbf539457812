"""What a plugged loop logs of a decision."""

from __future__ import annotations

from tamiyo_jax.contracts import TelemetryLevel
from tamiyo_jax.decision import Decision

__all__ = ["describe", "describe_escalation"]


def describe(decision: Decision) -> str:
    """What is done, to which seed, by which rule, and why."""
    target = "" if decision.command is None else decision.command.target_seed_id
    words = ("would" if decision.shadow else "", decision.action, target, f"({decision.reason})")
    return f"{' '.join(word for word in words if word)}: {decision.explanation}"


def describe_escalation(decision: Decision) -> str:
    """The critical events that the controller cannot help with."""
    critical = TelemetryLevel.CRITICAL
    worst = sorted({event.name for event in decision.events if event.level >= critical})
    return f"escalates: {', '.join(worst)}; look at the run"
