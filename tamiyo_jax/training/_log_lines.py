"""What a `Plug` logs of a decision, in lines of text."""

from __future__ import annotations

from collections.abc import Iterator

from tamiyo_jax.contracts import TelemetryLevel
from tamiyo_jax.decision import Decision

__all__ = ["describe_decision"]

NOTICES = ("loader_stall", "plateau", "step_refused")
"""Events on which nothing is done, logged when they begin."""


def describe_decision(decision: Decision, before: Decision | None) -> Iterator[str]:
    """The lines about a decision, after the one before it."""
    if decision.command is not None:
        yield _describe(decision)
    known = set() if before is None else {event.name for event in before.events}
    for event in decision.events:
        if event.name in NOTICES and event.name not in known:
            details = ", ".join(f"{name} {text}" for name, text in event.attributes.items())
            yield f"{event.name}: {details}"
    if decision.escalate and not (before is not None and before.escalate):
        critical = {
            event.name for event in decision.events if event.level >= TelemetryLevel.CRITICAL
        }
        yield f"escalates: {', '.join(sorted(critical))}; look at the run"


def _describe(decision: Decision) -> str:
    target = "" if decision.command is None else decision.command.target_seed_id
    words = ("would" if decision.shadow else "", decision.action, target, f"({decision.reason})")
    return f"{' '.join(word for word in words if word)}: {decision.explanation}"
