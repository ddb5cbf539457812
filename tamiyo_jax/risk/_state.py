"""What risk control remembers between steps, and how a step changes it.

Steps are indices that grow from decision to decision. No function here looks at a clock; the
breakers' times are the caller's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from tamiyo_jax.config import BreakerConfig, GuardConfig, RiskConfig
from tamiyo_jax.contracts import (
    CircuitBreakerState,
    CommandType,
    Event,
    SystemStatePacket,
    TelemetryLevel,
)
from tamiyo_jax.risk._breaker import BreakerState, Stage, admit, fail, succeed
from tamiyo_jax.risk._gate import Verdict
from tamiyo_jax.risk._ladder import Ladder

__all__ = [
    "ConservativeMode",
    "RiskState",
    "admit_call",
    "apply_verdict",
    "call_failed",
    "call_succeeded",
    "enter_by_hand",
    "from_json",
    "leave_by_hand",
    "loss_delta",
    "may_brake",
    "to_json",
]

Events = tuple[Event, ...]


@dataclass(frozen=True, slots=True)
class ConservativeMode:
    """Conservative mode while it is on.

    Attributes:
      reason: what entered it.
      entered_step: at which step.
      calm_steps: consecutive steps since then without a ★ row and with both breakers closed.
      by_hand: an operator set it, and only an operator ends it.
    """

    reason: str
    entered_step: int
    calm_steps: int = 0
    by_hand: bool = False


@dataclass(frozen=True, slots=True)
class RiskState:
    """The risk part of the controller's state; plain fields, see `to_json`.

    Attributes:
      conservative: None while conservative mode is off.
      pause_runs: first and last step of each run of PAUSE commands within the sliding window.
      last_validation_loss: the newest finite one.
      last_brake_step: guard mode's last brake.
      ladder: rollbacks so far, and the losses that a state is compared with.
      inference: breaker of the inference stage.
      metadata: breaker of the blueprint fetches.
    """

    conservative: ConservativeMode | None = None
    pause_runs: tuple[tuple[int, int], ...] = ()
    last_validation_loss: float | None = None
    last_brake_step: int | None = None
    ladder: Ladder = field(default_factory=Ladder)
    inference: BreakerState = field(default_factory=BreakerState)
    metadata: BreakerState = field(default_factory=BreakerState)


def loss_delta(state: RiskState, packet: SystemStatePacket) -> tuple[float, RiskState]:
    """Rise of the validation loss on a step that brings a new one, else 0.

    A repeated value is not new. Before there is a last one the packet's own
    ``training_metrics["loss_delta"]`` counts, else 0. A missing or non-finite validation loss
    leaves the last one as it is.
    """
    last, newest = state.last_validation_loss, packet.validation_loss
    delta = packet.training_metrics.get("loss_delta", 0.0) if last is None else 0.0
    if newest is None or not math.isfinite(newest):
        return delta, state
    after = replace(state, last_validation_loss=newest)
    return (delta if last is None else newest - last), after


def apply_verdict(
    state: RiskState, verdict: Verdict, step: int, *, shadow: bool, config: RiskConfig
) -> tuple[RiskState, Events, bool]:
    """Carry a verdict into the state.

    Conservative mode that was on before the verdict can be left by it, and one that was off can
    be entered, so never both in one step.

    Args:
      state: as it was when the verdict was made, with this step's calls in the breakers.
      verdict: of the gate, or of the guard.
      step: index of this step, greater than the one before.
      shadow: the command is not given to the host; it spends no pause budget.
      config: thresholds.

    Returns:
      The state, the events, and whether to escalate: the pause budget is exhausted.
    """
    state, events = _conservative_mode_after(state, verdict, step, config)
    if verdict.brakes:
        state = replace(state, last_brake_step=step)
    if shadow or verdict.command_type is not CommandType.PAUSE:
        return state, events, False
    state = replace(state, pause_runs=_pause_runs(state.pause_runs, step, config))
    pauses = sum(last - first + 1 for first, last in state.pause_runs)
    if pauses <= config.pause_budget:
        return state, events, False
    exhausted = Event(
        "pause_budget_exhausted",
        TelemetryLevel.CRITICAL,
        {
            "pauses": str(pauses),
            "pauses_limit": str(config.pause_budget),
            "window_steps": str(config.pause_window_steps),
        },
    )
    return state, (*events, exhausted), True


def may_brake(state: RiskState, step: int, config: GuardConfig) -> bool:
    """Whether guard mode may brake at `step`: once in `cooldown_steps`."""
    last = state.last_brake_step
    return last is None or step - last >= config.cooldown_steps


def enter_by_hand(state: RiskState, reason: str, step: int) -> tuple[RiskState, Events]:
    """An operator turns conservative mode on; only `leave_by_hand` ends it."""
    if state.conservative is not None and state.conservative.by_hand:
        return state, ()
    return _enter(state, reason, step, by_hand=True)


def leave_by_hand(state: RiskState, step: int) -> tuple[RiskState, Events]:
    """An operator ends conservative mode, whatever entered it; a ★ row enters it again."""
    return (state, ()) if state.conservative is None else _leave(state, state.conservative, step)


def admit_call(state: RiskState, stage: Stage, now_ns: int) -> RiskState:
    """Ask the breaker of `stage` for a call.

    Raises:
      CircuitOpenError: it is open; nothing may be started.
    """
    return _with_breaker(state, stage, admit(_breaker(state, stage), now_ns, stage))


def call_succeeded(state: RiskState, stage: Stage) -> tuple[RiskState, Events]:
    """The admitted call of `stage` went well."""
    breaker, events = succeed(_breaker(state, stage), stage)
    return _with_breaker(state, stage, breaker), events


def call_failed(
    state: RiskState, stage: Stage, now_ns: int, step: int, config: BreakerConfig
) -> tuple[RiskState, Events]:
    """The admitted call of `stage` failed; a breaker that opens enters conservative mode."""
    breaker, events = fail(_breaker(state, stage), now_ns, stage, config)
    state = _with_breaker(state, stage, breaker)
    if breaker.state is not CircuitBreakerState.OPEN:
        return state, events
    if state.conservative is not None:
        return replace(state, conservative=replace(state.conservative, calm_steps=0)), events
    state, entered = _enter(state, f"{stage}_breaker_open", step, by_hand=False)
    return state, events + entered


def to_json(state: RiskState) -> dict[str, Any]:
    """Plain dicts, lists, numbers and text; `from_json` is its inverse."""
    mode = state.conservative
    return {
        "conservative": None if mode is None else _to_plain(mode),
        "pause_runs": state.pause_runs,
        "last_validation_loss": state.last_validation_loss,
        "last_brake_step": state.last_brake_step,
        "ladder": _to_plain(state.ladder),
        "inference": _breaker_to_json(state.inference),
        "metadata": _breaker_to_json(state.metadata),
    }


def from_json(fields: Mapping[str, Any]) -> RiskState:
    """The state that `to_json` wrote, also after a passage through JSON text."""
    conservative = fields["conservative"]
    return RiskState(
        conservative=None if conservative is None else ConservativeMode(**conservative),
        pause_runs=tuple((first, last) for first, last in fields["pause_runs"]),
        last_validation_loss=fields["last_validation_loss"],
        last_brake_step=fields["last_brake_step"],
        ladder=_ladder_from_json(fields.get("ladder", {})),
        inference=_breaker_from_json(fields["inference"]),
        metadata=_breaker_from_json(fields["metadata"]),
    )


def _to_plain(values: ConservativeMode | Ladder) -> dict[str, Any]:
    """The fields, which hold numbers and text; `asdict` would copy each at every step."""
    return {each.name: getattr(values, each.name) for each in fields(values)}


def _ladder_from_json(fields: Mapping[str, Any]) -> Ladder:
    """The ladder; the first rung where the state is of a build that had none."""
    losses = tuple(fields.get("losses", ()))
    return Ladder(losses, **{name: fields[name] for name in fields if name != "losses"})


def _conservative_mode_after(
    state: RiskState, verdict: Verdict, step: int, config: RiskConfig
) -> tuple[RiskState, Events]:
    mode = state.conservative
    if mode is None:
        if verdict.star is None:
            return state, ()
        return _enter(state, verdict.star, step, by_hand=False)
    closed = CircuitBreakerState.CLOSED
    calm = (
        verdict.star is None and state.inference.state is closed and state.metadata.state is closed
    )
    mode = replace(mode, calm_steps=mode.calm_steps + 1 if calm else 0)
    if mode.calm_steps >= config.calm_steps and not mode.by_hand:
        return _leave(state, mode, step)
    return replace(state, conservative=mode), ()


def _enter(state: RiskState, reason: str, step: int, *, by_hand: bool) -> tuple[RiskState, Events]:
    mode = ConservativeMode(reason, entered_step=step, by_hand=by_hand)
    event = Event("conservative_entered", TelemetryLevel.WARNING, {"reason": reason})
    return replace(state, conservative=mode), (event,)


def _leave(state: RiskState, mode: ConservativeMode, step: int) -> tuple[RiskState, Events]:
    attributes = {"reason": mode.reason, "steps": str(step - mode.entered_step)}
    event = Event("conservative_exited", TelemetryLevel.INFO, attributes)
    return replace(state, conservative=None), (event,)


def _pause_runs(
    runs: tuple[tuple[int, int], ...], step: int, config: RiskConfig
) -> tuple[tuple[int, int], ...]:
    """Add a pause at `step`, and forget what has left the window that ends there."""
    if runs and runs[-1][1] == step - 1:
        runs = (*runs[:-1], (runs[-1][0], step))
    else:
        runs = (*runs, (step, step))
    oldest = step - config.pause_window_steps + 1
    return tuple((max(first, oldest), last) for first, last in runs if last >= oldest)


def _breaker(state: RiskState, stage: Stage) -> BreakerState:
    return state.inference if stage == "inference" else state.metadata


def _with_breaker(state: RiskState, stage: Stage, breaker: BreakerState) -> RiskState:
    if breaker is _breaker(state, stage):
        return state
    if stage == "inference":
        return replace(state, inference=breaker)
    return replace(state, metadata=breaker)


def _breaker_to_json(breaker: BreakerState) -> dict[str, Any]:
    return {
        "state": breaker.state,
        "failures": breaker.failures,
        "opened_at_ns": breaker.opened_at_ns,
        "cooldown_ns": breaker.cooldown_ns,
    }


def _breaker_from_json(fields: Mapping[str, Any]) -> BreakerState:
    return BreakerState(**{**fields, "state": CircuitBreakerState(fields["state"])})
