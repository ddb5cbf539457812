"""The runs of a controller: which one a state is about, and what operators set for them.

One run is current: its memory stands in the fields of the `TamiyoState`. The memories of the
others are `RunState` values in `TamiyoState.idle`, the longest idle first.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, TypeVar

from tamiyo_jax.contracts import Event, TelemetryLevel
from tamiyo_jax.controller._state import RunState, TamiyoState
from tamiyo_jax.policy import ArrayPolicy, Policy
from tamiyo_jax.risk import RiskState, enter_by_hand, leave_by_hand

__all__ = ["find_forgotten_runs", "follow_runs", "select_run", "set_conservative"]

PolicyState = TypeVar("PolicyState")


def select_run(
    state: TamiyoState[PolicyState],
    run_id: str,
    policy: Policy[Any, PolicyState],
    *,
    max_runs: int,
) -> TamiyoState[PolicyState]:
    """Make a run the current one, with the memory that it had when it was current last.

    A run that is not known begins afresh. An `ArrayPolicy` has one state for all runs, since
    one pass answers packets of several; any other policy has a state for each run.

    Args:
      state: the state.
      run_id: `training_run_id` of the packet that is decided next.
      policy: the policy that decides.
      max_runs: runs remembered, at least 1. Beyond it the longest idle run is forgotten, and
        one that an operator has put into conservative mode only where all others are too.
    """
    if run_id == state.run_id:
        return state
    per_run = not isinstance(policy, ArrayPolicy)
    if not state.run_id:  # nothing was decided yet, or by a build that knew one run
        return replace(state, run_id=run_id, policy_per_run=per_run)
    idle = {**state.idle, state.run_id: state.current}
    run = idle.pop(run_id, None)
    if run is None:
        run = RunState(risk=_first_risk(state))
    _forget(idle, max_runs - 1)
    policy_state = state.policy_state
    if per_run:
        kept = run.policy_state
        policy_state = policy.initial_state() if kept is None else kept
    breakers = {"inference": state.risk.inference, "metadata": state.risk.metadata}
    return replace(
        state,
        run_id=run_id,
        run_steps=run.steps,
        policy_state=policy_state,
        risk=replace(run.risk, **breakers),
        windows=run.windows,
        host_breaker=run.host_breaker,
        missing_features=run.missing_features,
        truncated=run.truncated,
        idle=idle,
        policy_per_run=per_run,
    )


def follow_runs(
    before: TamiyoState[PolicyState], after: TamiyoState[PolicyState], idle_runs: int
) -> TamiyoState[PolicyState]:
    """Complete a state that was written without its idle runs.

    Args:
      before: the state before the step, complete.
      after: the state after it, as the step's record has it.
      idle_runs: how many idle runs it had.
    """
    idle = dict(before.idle)
    if before.run_id and before.run_id != after.run_id:
        idle[before.run_id] = before.current
    idle.pop(after.run_id, None)
    _forget(idle, idle_runs)
    return replace(after, idle=idle)


def find_forgotten_runs(
    before: TamiyoState[Any], after: TamiyoState[Any], max_runs: int
) -> tuple[Event, ...]:
    """One event ``run_forgotten`` for each run that `after` does not know any more."""
    if before.idle is after.idle:
        return ()
    return tuple(
        Event(
            "run_forgotten",
            TelemetryLevel.WARNING,
            {"training_run_id": run_id, "max_runs": str(max_runs)},
        )
        for run_id in (*before.idle, before.run_id)
        if run_id and run_id != after.run_id and run_id not in after.idle
    )


def set_conservative(
    state: TamiyoState[PolicyState], on: bool, reason: str, *, everywhere: bool
) -> tuple[TamiyoState[PolicyState], tuple[Event, ...]]:
    """Enter or leave conservative mode by hand.

    Args:
      state: the state.
      on: enter, or leave.
      reason: why; part of the event.
      everywhere: for all runs, and those that begin later; else for the current run alone.

    Returns:
      The state, and the events of the runs that changed.
    """

    def change(risk: RiskState, step: int, run_id: str) -> tuple[RiskState, tuple[Event, ...]]:
        after, events = enter_by_hand(risk, reason, step) if on else leave_by_hand(risk, step)
        named = {"training_run_id": run_id} if run_id else {}
        return after, tuple(
            replace(event, attributes={**event.attributes, **named}) for event in events
        )

    risk, events = change(state.risk, state.run_steps, state.run_id)
    state = replace(state, risk=risk)
    if not everywhere:
        return state, events
    idle: dict[str, RunState[PolicyState]] = {}
    for run_id, run in state.idle.items():
        risk, changed = change(run.risk, run.steps, run_id)
        idle[run_id] = replace(run, risk=risk)
        events += changed
    return replace(state, idle=idle, conservative_all=reason if on else None), events


def _first_risk(state: TamiyoState[Any]) -> RiskState:
    """The risk state of a run that begins: in conservative mode if operators set it for all."""
    if state.conservative_all is None:
        return RiskState()
    risk, _ = enter_by_hand(RiskState(), state.conservative_all, 0)
    return risk


def _forget(idle: dict[str, RunState[Any]], limit: int) -> None:
    """Take out the longest idle runs beyond a limit, those set by hand last."""
    while len(idle) > limit:
        mode = {run_id: run.risk.conservative for run_id, run in idle.items()}
        by_hand = {run_id: on is not None and on.by_hand for run_id, on in mode.items()}
        del idle[min(idle, key=lambda run_id: by_hand[run_id])]  # the first of equals
