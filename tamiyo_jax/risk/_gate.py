"""The gate: evaluate a proposed command against the rules.

All rows are evaluated against the proposal, not against each other's results, so the order of
the table only settles ties in the stated reason.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from tamiyo_jax.config import RiskConfig
from tamiyo_jax.contracts import CommandType, Event, Priority, SeedOperation, TelemetryLevel
from tamiyo_jax.risk._rules import RULES, Effect, HeldRule, Rule, rules_that_hold
from tamiyo_jax.risk._signals import Signals

__all__ = ["RESTRICTION", "Verdict", "clip_lr_delta", "gate", "guard"]

_GUARD_REASON = "guard:wait"

# What an explanation adds where an effect could not be had in full.
_SHORTFALLS: Mapping[tuple[Effect, CommandType], str] = {
    (Effect.ROLLBACK, CommandType.PAUSE): "; no checkpoint to return to",
    (Effect.DOWNGRADE, CommandType.PAUSE): "; no optimiser to slow down",
}

RESTRICTION: Mapping[CommandType | None, int] = {
    None: 0,
    CommandType.SEED: 1,
    CommandType.OPTIMIZER: 2,
    CommandType.CIRCUIT_BREAKER: 3,
    CommandType.PAUSE: 4,
    CommandType.ROLLBACK: 5,
}
"""How much each command restricts the host; None is WAIT."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the gate decided.

    Attributes:
      command_type: the command to issue; None is WAIT.
      reason: id of the most severe row that had an effect, else the reason of the proposal.
      explanation: the same in words, with the measured values and their limits.
      events: one for each row that holds, the most severe first, then by name.
      priority: of the message.
      star: reason of the most severe ★ row that holds, whether or not it had an effect.
      downgraded: a SEED command became OPTIMIZER; its learning rate may not rise, see
        `downgraded_lr_delta`.
      brakes: guard mode lowers the learning rate by its `brake`.
    """

    command_type: CommandType | None
    reason: str
    explanation: str
    events: tuple[Event, ...]
    priority: Priority
    star: str | None
    downgraded: bool = False
    brakes: bool = False

    @property
    def enters_conservative(self) -> bool:
        """A ★ row holds."""
        return self.star is not None


def gate(
    command_type: CommandType | None,
    operation: SeedOperation | None,
    signals: Signals,
    config: RiskConfig,
    rules: Iterable[Rule] = RULES,
    *,
    reason: str,
    explanation: str,
) -> Verdict:
    """Evaluate the policy's proposal.

    Args:
      command_type: the proposal, one of `RESTRICTION`; None is WAIT.
      operation: of a SEED command, else None.
      signals: the measurements and facts that the rules read.
      config: their thresholds.
      rules: the table.
      reason: id of the policy's own rule, stated where no row has an effect.
      explanation: the policy's reason in words.
    """
    culls = command_type is CommandType.SEED and operation is SeedOperation.CULL

    def restrict(effect: Effect) -> CommandType | None:
        restricted = _restrict(effect, command_type, signals)
        # Removing a seed lowers risk, so only a rollback stands above it.
        return None if culls and restricted is not CommandType.ROLLBACK else restricted

    held = rules_that_hold(signals, config, rules)
    verdict = _evaluate(command_type, held, restrict, reason, explanation)
    downgraded = command_type is CommandType.SEED and verdict.command_type is CommandType.OPTIMIZER
    return replace(verdict, downgraded=downgraded)


def guard(signals: Signals, config: RiskConfig, *, may_brake: bool) -> Verdict:
    """Evaluate without a policy: the proposal is WAIT, and a downgrade row brakes.

    Args:
      signals: the measurements and facts that the rules read; no brake without an
        optimizer_id.
      config: the rules' thresholds.
      may_brake: whether the last brake is long enough ago; see `tamiyo_jax.risk.may_brake`.
    """

    def restrict(effect: Effect) -> CommandType | None:
        if effect is Effect.DOWNGRADE and may_brake and signals.optimizer_id is not None:
            return CommandType.OPTIMIZER
        return _restrict(effect, None, signals)

    held = rules_that_hold(signals, config)
    verdict = _evaluate(None, held, restrict, _GUARD_REASON, _explain_wait(held))
    return replace(verdict, brakes=verdict.command_type is CommandType.OPTIMIZER)


def clip_lr_delta(lr_delta: float) -> float:
    """The policy's relative change of the learning rate, clipped to [-1, 0]; NaN is 0.

    When in doubt, never speed up.
    """
    return max(-1.0, min(0.0, lr_delta))


def _restrict(effect: Effect, proposal: CommandType | None, signals: Signals) -> CommandType | None:
    """The command that `effect` requires; None where it requires none."""
    seed = proposal is CommandType.SEED
    match effect:
        case Effect.NONE:
            return None
        case Effect.DOWNGRADE:
            if not seed:
                return None
            known = signals.optimizer_id is not None
            return CommandType.OPTIMIZER if known else CommandType.PAUSE
        case Effect.PAUSE_SEED:
            return CommandType.PAUSE if seed else None
        case Effect.PAUSE:
            return CommandType.PAUSE
        case Effect.ROLLBACK:
            known = signals.restorable_checkpoint is not None
            return CommandType.ROLLBACK if known else CommandType.PAUSE


def _evaluate(
    proposal: CommandType | None,
    held: Sequence[HeldRule],
    restrict: Callable[[Effect], CommandType | None],
    reason: str,
    explanation: str,
) -> Verdict:
    effective = [
        (row, command) for row in held if (command := restrict(row.rule.effect)) is not None
    ]
    # `max` keeps the first of equals, which is the earlier row of the table.
    deciding = max(
        effective, key=lambda pair: (pair[0].rule.level, RESTRICTION[pair[1]]), default=None
    )
    if deciding is not None:
        row, command = deciding
        reason = row.rule.reason
        explanation = row.explanation + _SHORTFALLS.get((row.rule.effect, command), "")
    return Verdict(
        command_type=max(
            (proposal, *(command for _, command in effective)), key=RESTRICTION.__getitem__
        ),
        reason=reason,
        explanation=explanation,
        events=tuple(
            sorted((row.event for row in held), key=lambda event: (-event.level, event.name))
        ),
        priority=_priority(held),
        star=_star(held),
    )


def _explain_wait(held: Sequence[HeldRule]) -> str:
    """Why the guard waits, given that no row has an effect."""
    found = [row.explanation for row in held if row.rule.effect is not Effect.NONE]
    return f"no brake is due: {'; '.join(found)}" if found else "no signal is beyond its limit"


def _star(held: Sequence[HeldRule]) -> str | None:
    stars = (row.rule for row in held if row.rule.star)
    worst = max(stars, key=lambda rule: rule.severity, default=None)
    return None if worst is None else worst.reason


def _priority(held: Sequence[HeldRule]) -> Priority:
    if any(row.rule.level is TelemetryLevel.CRITICAL for row in held):
        return Priority.CRITICAL
    return Priority.HIGH if any(row.rule.raises_priority for row in held) else Priority.NORMAL
