"""The ladder: what a run's rollbacks lead to, from the newest state to escalation.

A fault that calls for ROLLBACK is answered by the next rung as long as it comes back:

1. back to the newest state that can be restored;
2. back to the oldest one, and the data in between is skipped;
3. the same with a lower learning rate, once for each further rollback within the budget;
4. no more rollbacks: `rollback_budget_exhausted`, and the decision escalates.

A rise, which no bad batch explains, lowers the learning rate from the first rung on. Updates that
are too large are braked on the second rung, by as much as they are too large: if the state of the
optimiser was at fault the first has replaced it, else its learning rate is. They were refused,
so the second goes to the newest state again, and the data is not skipped.

After `rollback_calm_steps` decision steps without a fault the ladder starts again from its first
rung. In guard mode brakes are released over calm steps until the multiplier is 1 again, unless
updates without the brake would be larger than they ever were.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from statistics import median

from tamiyo_jax.config import GuardConfig
from tamiyo_jax.contracts import CommandType, Event, SystemStatePacket, TelemetryLevel
from tamiyo_jax.risk._gate import Verdict

__all__ = ["RELEASE_REASON", "Ladder", "Rung", "climb", "is_restorable"]

RELEASE_REASON = "brake_released"
RESTORABLE = "restorable/"
MULTIPLIER = "lr_multiplier"
TOO_LARGE = "update_outlier"
JUMP = "update_jump"
FAMILY = 16
FEWEST = 4
OUTLIER = 6 * 1.4826  # MADs of a normal distribution in six standard deviations
TOLERANCE = 0.25
LARGEST_UPDATE = math.log(2.0)  # over the run's highest level, that a released brake may lead to
PATIENCE = 64

Events = tuple[Event, ...]


@dataclass(frozen=True, slots=True)
class Ladder:
    """What a run's ladder remembers between decision steps.

    Attributes:
      losses: the newest training losses that were like those before them, at most `FAMILY`.
      unlike: decision steps in a row whose loss was not; after `PATIENCE` they are the new rule.
      rung: rollbacks since the last calm.
      calm_steps: decision steps in a row without a fault.
    """

    losses: tuple[float, ...] = ()
    unlike: int = 0
    rung: int = 0
    calm_steps: int = 0


@dataclass(frozen=True, slots=True)
class Rung:
    """What the ladder makes of a verdict.

    Attributes:
      verdict: with the command type that is issued.
      checkpoint: the state that ROLLBACK restores; None for other commands.
      lr_delta: change of the learning rate that goes with ROLLBACK, or that releases a brake.
      skip_data: ROLLBACK leaves out the batches between the restored state and now.
      events: in addition to the verdict's.
      escalate: a person must look.
      restorable: the packet's state may be kept.
    """

    verdict: Verdict
    checkpoint: str | None = None
    lr_delta: float | None = None
    skip_data: bool = False
    events: Events = ()
    escalate: bool = False
    restorable: bool = False


def climb(
    ladder: Ladder,
    verdict: Verdict,
    packet: SystemStatePacket,
    config: GuardConfig,
    *,
    guards: bool,
    seedless: bool,
    may_brake: bool,
) -> tuple[Ladder, Rung]:
    """Take a verdict up the ladder.

    Args:
      ladder: of the packet's run, before this decision step.
      verdict: of the gate, or of the guard.
      packet: its metrics ``restorable/<name>`` are the global steps of the states that can be
        restored; without them only `restorable_checkpoint` can.
      config: budgets and the brake.
      guards: there is no policy that moves the learning rate, so brakes are released.
      seedless: there is nothing that PAUSE could stop; a loss that rises is braked instead.
      may_brake: the last brake is long enough ago.
    """
    ladder, familiar = _with_loss(ladder, packet)
    familiar = familiar and not packet.training_metrics.get("high_updates", 0.0)
    calm = _is_calm(verdict)
    ladder = replace(ladder, calm_steps=ladder.calm_steps + 1 if calm else 0)
    if ladder.calm_steps >= config.rollback_calm_steps:
        ladder = replace(ladder, rung=0)
    if verdict.command_type is CommandType.ROLLBACK:
        return _roll_back(ladder, verdict, packet, config, seedless=seedless)
    if seedless and verdict.command_type is CommandType.PAUSE:
        return ladder, _without_pause(verdict, packet, may_brake=may_brake)
    if guards and verdict.command_type is None:
        release = _release(ladder, packet, config)
        if release is not None:
            lifted = replace(
                verdict,
                command_type=CommandType.OPTIMIZER,
                reason=RELEASE_REASON,
                explanation=f"{ladder.calm_steps} calm steps since the last brake",
            )
            return ladder, Rung(lifted, lr_delta=release, restorable=calm and familiar)
    # A state that was braked at is kept only where there is no other.
    sound = calm or (verdict.star is None and not _names(packet))
    return ladder, Rung(verdict, restorable=sound and familiar)


def is_restorable(packet: SystemStatePacket, name: str) -> bool:
    """Whether the packet says that the host can restore `name`."""
    return name == packet.restorable_checkpoint or f"{RESTORABLE}{name}" in packet.training_metrics


def _roll_back(
    ladder: Ladder,
    verdict: Verdict,
    packet: SystemStatePacket,
    config: GuardConfig,
    *,
    seedless: bool,
) -> tuple[Ladder, Rung]:
    names = _names(packet)
    rung = ladder.rung + 1
    ladder = replace(ladder, rung=min(rung, config.rollback_budget + 1))
    if rung > config.rollback_budget or not names:
        attributes = {"rollbacks": str(rung - 1), "rollbacks_limit": str(config.rollback_budget)}
        exhausted = Event("rollback_budget_exhausted", TelemetryLevel.CRITICAL, attributes)
        kind = None if seedless else CommandType.PAUSE
        stopped = replace(verdict, command_type=kind)
        return ladder, Rung(stopped, events=(exhausted,), escalate=True)
    too_large = verdict.reason == TOO_LARGE
    back = rung - 1 if too_large else rung  # 1 is to the newest state
    braked = {"nonfinite_loss": 3, TOO_LARGE: 2}.get(verdict.reason, 1)  # the rung it begins at
    factor = (1 - config.brake) ** max(1, rung - 2)
    if too_large:
        factor = math.exp(-max(0.0, packet.training_metrics.get(JUMP, 0.0)))
    return ladder, Rung(
        verdict,
        checkpoint=names[-1] if back <= 1 else names[0],
        lr_delta=factor - 1 if rung >= braked else None,
        skip_data=back > 1,
    )


def _without_pause(verdict: Verdict, packet: SystemStatePacket, *, may_brake: bool) -> Rung:
    """Nothing can be paused: a rise is braked, and what cannot be undone escalates."""
    if verdict.reason == "loss_spike" and may_brake and packet.optimizer_id is not None:
        return Rung(replace(verdict, command_type=CommandType.OPTIMIZER, brakes=True))
    waiting = replace(verdict, command_type=None)
    if verdict.reason != "nonfinite_loss":
        return Rung(waiting)
    attributes = {"packet_id": packet.packet_id}
    nowhere = Event("nothing_to_restore", TelemetryLevel.CRITICAL, attributes)
    return Rung(waiting, events=(nowhere,), escalate=True)


def _names(packet: SystemStatePacket) -> tuple[str, ...]:
    """The states that the host can restore, oldest first, without that of the packet itself."""
    steps = {
        name.removeprefix(RESTORABLE): step
        for name, step in packet.training_metrics.items()
        if name.startswith(RESTORABLE) and step < packet.global_step
    }
    if steps:
        return tuple(sorted(steps, key=lambda name: (steps[name], name)))
    own = any(name.startswith(RESTORABLE) for name in packet.training_metrics)
    named = packet.restorable_checkpoint
    return () if own or named is None else (named,)


def _release(ladder: Ladder, packet: SystemStatePacket, config: GuardConfig) -> float | None:
    """The change of the learning rate that takes one brake off; None where none is due."""
    multiplier = packet.training_metrics.get(MULTIPLIER, 1.0)
    due = ladder.calm_steps > 0 and ladder.calm_steps % config.release_steps == 0
    if not due or packet.optimizer_id is None or not 0 < multiplier < 1:
        return None
    rise = packet.training_metrics.get("update_rise", 0.0)
    if rise and rise - math.log(multiplier) > LARGEST_UPDATE:  # 0 is unknown
        return None
    lifted = min(1.0, multiplier / (1 - config.brake))
    return None if lifted / multiplier - 1 < 1e-6 else lifted / multiplier - 1


def _is_calm(verdict: Verdict) -> bool:
    faulty = verdict.star is not None or verdict.brakes
    return not faulty and verdict.command_type is not CommandType.ROLLBACK


def _with_loss(ladder: Ladder, packet: SystemStatePacket) -> tuple[Ladder, bool]:
    """The ladder with the packet's training loss, and whether that is like those before."""
    loss = packet.training_loss
    if loss is None:
        return ladder, True
    if not math.isfinite(loss):
        return ladder, False
    if _is_familiar(loss, ladder.losses) or ladder.unlike >= PATIENCE:
        started = () if ladder.unlike >= PATIENCE else ladder.losses
        return replace(ladder, losses=(*started, loss)[-FAMILY:], unlike=0), True
    return replace(ladder, unlike=ladder.unlike + 1), False


def _is_familiar(loss: float, losses: tuple[float, ...]) -> bool:
    """At most as far above the median as noise goes; fewer than `FEWEST` losses say nothing."""
    if len(losses) < FEWEST:
        return True
    middle = median(losses)
    spread = median(abs(each - middle) for each in losses)
    return loss <= middle + max(OUTLIER * spread, TOLERANCE * abs(middle))
