"""The gate: what the rules make of a proposed command.

All rows are judged against the proposal, not against each other's results, so the order of
the table decides nothing but ties in the stated reason.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from tamiyo_jax.config import RiskConfig
from tamiyo_jax.contracts import CommandType, Event, Priority, SeedOperation, TelemetryLevel
from tamiyo_jax.risk.rules import RULES, Effect, HeldRule, Rule, rules_that_hold
from tamiyo_jax.risk.signals import Signals

__all__ = ["POLICY_REASON", "RESTRICTION", "Verdict", "downgraded_lr_delta", "gate", "guard"]

POLICY_REASON = "policy"

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
    """What the gate answers.

    Attributes:
      command_type: the command to issue; None is WAIT.
      reason: of the most severe row that had an effect, else ``policy``.
      events: one for each row that holds, the most severe first, then by name.
      priority: of the message.
      star: reason of the most severe ★ row that holds, whether or not it had an effect.
      downgraded: a SEED command became OPTIMIZER; its learning rate may not rise, see
        `downgraded_lr_delta`.
      brakes: guard mode lowers the learning rate by its `brake`.
    """

    command_type: CommandType | None
    reason: str
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
) -> Verdict:
    """Judge the policy's proposal.

    Args:
      command_type: the proposal, one of `RESTRICTION`; None is WAIT.
      operation: of a SEED command, else None.
      signals: what the rules look at.
      config: their thresholds.
      rules: the table.
    """
    culls = command_type is CommandType.SEED and operation is SeedOperation.CULL

    def restrict(effect: Effect) -> CommandType | None:
        restricted = _restricted(effect, command_type, signals)
        # Removing a seed lowers risk, so only a rollback stands above it.
        return None if culls and restricted is not CommandType.ROLLBACK else restricted

    verdict = _judge(command_type, rules_that_hold(signals, config, rules), restrict)
    downgraded = command_type is CommandType.SEED and verdict.command_type is CommandType.OPTIMIZER
    return replace(verdict, downgraded=downgraded)


def guard(signals: Signals, config: RiskConfig, *, may_brake: bool) -> Verdict:
    """Judge without a policy: the proposal is WAIT, and a downgrade row brakes.

    Args:
      signals: what the rules look at; without an optimizer_id there is nothing to brake.
      config: the rules' thresholds.
      may_brake: the last brake is long enough ago, see `tamiyo_jax.risk.may_brake`.
    """

    def restrict(effect: Effect) -> CommandType | None:
        if effect is Effect.DOWNGRADE and may_brake and signals.optimizer_id is not None:
            return CommandType.OPTIMIZER
        return _restricted(effect, None, signals)

    verdict = _judge(None, rules_that_hold(signals, config), restrict)
    return replace(verdict, brakes=verdict.command_type is CommandType.OPTIMIZER)


def downgraded_lr_delta(lr_delta: float) -> float:
    """The policy's relative change of the learning rate, clipped to [-1, 0]; NaN is 0.

    When in doubt, never speed up.
    """
    return max(-1.0, min(0.0, lr_delta))


def _restricted(
    effect: Effect, proposal: CommandType | None, signals: Signals
) -> CommandType | None:
    """The command that `effect` asks for; None where it has nothing to ask."""
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


def _judge(
    proposal: CommandType | None,
    held: Sequence[HeldRule],
    restrict: Callable[[Effect], CommandType | None],
) -> Verdict:
    effective = [
        (row, command) for row in held if (command := restrict(row.rule.effect)) is not None
    ]
    # `max` keeps the first of equals, which is the earlier row of the table.
    deciding = max(
        effective, key=lambda pair: (pair[0].rule.level, RESTRICTION[pair[1]]), default=None
    )
    return Verdict(
        command_type=max((proposal, *(one for _, one in effective)), key=RESTRICTION.__getitem__),
        reason=POLICY_REASON if deciding is None else deciding[0].rule.reason,
        events=tuple(sorted((row.event for row in held), key=lambda one: (-one.level, one.name))),
        priority=_priority(held),
        star=_star(held),
    )


def _star(held: Sequence[HeldRule]) -> str | None:
    stars = (row.rule for row in held if row.rule.star)
    worst = max(stars, key=lambda rule: rule.severity, default=None)
    return None if worst is None else worst.reason


def _priority(held: Sequence[HeldRule]) -> Priority:
    if any(row.rule.level is TelemetryLevel.CRITICAL for row in held):
        return Priority.CRITICAL
    return Priority.HIGH if any(row.rule.raises_priority for row in held) else Priority.NORMAL
