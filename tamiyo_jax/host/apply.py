"""Doing what a command says, after making sure who says it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NoReturn, Protocol, TypeVar

import jax.numpy as jnp

from tamiyo_jax.contracts import (
    AdaptationCommand,
    CircuitBreakerAdjustment,
    CircuitBreakerState,
    CommandType,
    OptimizerAdjustment,
    Rollback,
    SeedAdjustment,
    SeedOperation,
)
from tamiyo_jax.contracts.signing import Verifier
from tamiyo_jax.errors import CommandRejectedError
from tamiyo_jax.host.blending import METHODS, BlendSchedule
from tamiyo_jax.host.budget import live_parameters
from tamiyo_jax.host.placement import placed_like
from tamiyo_jax.host.scale import LIMITS, scale_by
from tamiyo_jax.host.seeds import SlotState, transition
from tamiyo_jax.host.training import HostState

__all__ = ["Checkpointer", "CommandApplier", "Decided"]

State = TypeVar("State")


class Decided(Protocol):
    """What the applier reads of a decision."""

    @property
    def command(self) -> AdaptationCommand | None:
        """What to do; None for WAIT."""
        ...

    @property
    def shadow(self) -> bool:
        """Whether the command is only what would have been done."""
        ...


class Checkpointer(Protocol):
    """Where ROLLBACK finds what it restores."""

    def restore(self, name: str, train_state: Any) -> Any:  # noqa: ANN401 - the host's own
        """The checkpoint `name`, in the shape of `train_state`."""
        ...


class CommandApplier:
    """Applies decisions to a host, in the order in which they are made.

    A train state is a `HostState`, or for a host without slots any pytree that holds its
    optimiser's state. The latter takes OPTIMIZER and ROLLBACK; PAUSE and CIRCUIT_BREAKER ask
    for nothing that it could stop, and SEED is rejected.

    The only state that it holds is the verifier's memory of the commands it has seen.

    Args:
      verifier: checks signature, age and novelty of every command.
      clock: gives the time, nanoseconds since the epoch.
      optimizer_id: the optimiser that OPTIMIZER commands may name.
      checkpointer: restores for ROLLBACK; without one, ROLLBACK is rejected.
      limits: bounds of the learning-rate multiplier after all commands together.
      parameter_budget: most live parameters that GERMINATE may lead to; None is no limit.
    """

    def __init__(
        self,
        verifier: Verifier,
        *,
        clock: Callable[[], int],
        optimizer_id: str,
        checkpointer: Checkpointer | None = None,
        limits: tuple[float, float] = LIMITS,
        parameter_budget: int | None = None,
    ) -> None:
        self._verifier = verifier
        self._clock = clock
        self._optimizer_id = optimizer_id
        self._checkpointer = checkpointer
        self._limits = limits
        self._parameter_budget = parameter_budget

    def __call__(self, train_state: State, decision: Decided) -> State:
        """The train state after the decision.

        A pause lasts until the next decision that is no pause and no shadow; apart from
        that, WAIT leaves the state as it is. ROLLBACK brings everything back as it was, with
        the one exception of the breaker: who commanded it does not forget that either. Arrays
        stay where the state has them, so a jitted step is compiled for no command.

        Raises:
          SignatureError: the command is unsigned or was changed.
          ReplayError: the command was applied before.
          StaleMessageError: the command is too old, or from the future.
          IllegalTransitionError: the seed's stage does not take the operation.
          CommandRejectedError: the command names something that this host does not have,
            or holds numbers that it cannot use.
          PersistenceError: the checkpoint of a ROLLBACK is not there.
          CheckpointMismatchError: it is of another host.
        """
        if decision.shadow:
            return train_state
        command = decision.command
        if command is None:
            return placed_like(_set(train_state, paused=False), train_state)
        self._verifier = self._verifier.verify(command, now_ns=self._clock())
        paused = command.command_type is CommandType.PAUSE
        after = train_state if paused else self._act(train_state, command)
        return placed_like(_set(after, paused=paused), train_state)

    def _act(self, state: State, command: AdaptationCommand) -> State:
        match command.command_type, command.payload:
            case CommandType.SEED, SeedAdjustment() as adjustment:
                return _apply_seed(state, command, adjustment, self._parameter_budget)
            case CommandType.OPTIMIZER, OptimizerAdjustment() as adjustment:
                return self._apply_optimizer(state, command, adjustment)
            case CommandType.CIRCUIT_BREAKER, CircuitBreakerAdjustment() as adjustment:
                return _set(state, breaker_open=_says_open(command, adjustment))
            case CommandType.ROLLBACK, Rollback(checkpoint):
                return self._roll_back(state, command, checkpoint)
            case kind, payload:
                _reject(command, f"{kind.name} with payload {type(payload).__name__} means nothing")

    def _apply_optimizer(
        self, state: State, command: AdaptationCommand, adjustment: OptimizerAdjustment
    ) -> State:
        if adjustment.optimizer_id != self._optimizer_id:
            _reject(
                command,
                f"optimizer_id is {adjustment.optimizer_id!r}; this host's is "
                f"{self._optimizer_id!r}",
            )
        if set(adjustment.hyperparameters) != {"lr_delta"}:
            names = sorted(adjustment.hyperparameters)
            _reject(command, f"hyperparameters are {names}; this host adjusts lr_delta alone")
        factor = 1 + _number(command, adjustment.hyperparameters, "lr_delta")
        if isinstance(state, HostState):  # and not what its seeds' optimisers may hold
            opt_state = scale_by(state.opt_state, factor, self._limits)
            return state._replace(opt_state=opt_state)
        return scale_by(state, factor, self._limits)

    def _roll_back(self, state: State, command: AdaptationCommand, checkpoint: str) -> State:
        if self._checkpointer is None:
            _reject(command, "this host keeps no checkpoints; give CommandApplier a checkpointer")
        restored = self._checkpointer.restore(checkpoint, state)
        if isinstance(state, HostState):
            return _set(restored, breaker_open=bool(state.breaker_open))
        return restored


def _set(state: State, **flags: bool) -> State:
    """The state with these flags, which only a host with slots has."""
    if not isinstance(state, HostState):
        return state
    return state._replace(**{name: jnp.bool_(flag) for name, flag in flags.items()})


def _apply_seed(
    state: State, command: AdaptationCommand, adjustment: SeedAdjustment, budget: int | None
) -> State:
    if not isinstance(state, HostState):
        _reject(command, f"a {type(state).__name__} has no slots; grow seeds in a HostState")
    name = command.target_seed_id
    if name is None or name not in state.slots:
        _reject(command, f"seed {name!r} is none of this host's: {sorted(state.slots)}")
    if bool(state.breaker_open) and adjustment.operation is not SeedOperation.CULL:
        _reject(
            command,
            f"the host's adaptation breaker is open, so {adjustment.operation.name} must wait; "
            "close it first",
        )
    slot = state.slots[name]
    moved = transition(slot.state, adjustment.operation)
    if adjustment.operation is SeedOperation.GERMINATE:
        moved = _chosen(moved, command, adjustment, sorted(slot.params))
    after = state._replace(slots={**state.slots, name: slot._replace(state=moved)})
    if adjustment.operation is SeedOperation.GERMINATE and budget is not None:
        _keep_within(command, live_parameters(after), budget)
    return after


def _keep_within(command: AdaptationCommand, live: int, budget: int) -> None:
    if live > budget:
        _reject(
            command,
            f"GERMINATE would make {live} live parameters and parameter_budget is {budget}; "
            "cull a seed first, or raise the budget",
        )


def _chosen(
    state: SlotState, command: AdaptationCommand, adjustment: SeedAdjustment, ids: list[str]
) -> SlotState:
    """The germinated slot with the blueprint and the blending schedule of its command."""
    if adjustment.blueprint_id not in ids:
        _reject(command, f"blueprint {adjustment.blueprint_id!r} is not in the slot's bank: {ids}")
    method = _number(command, adjustment.parameters, "blending_method_index")
    start = _number(command, adjustment.parameters, "blending_schedule_start")
    end = _number(command, adjustment.parameters, "blending_schedule_end")
    if method not in range(len(METHODS)):
        _reject(command, f"blending_method_index is {method}; the methods are {METHODS}")
    if not 0 <= start <= end <= 1:
        _reject(command, f"the blending schedule is {start} to {end}; order it within 0 to 1")
    return state._replace(
        blueprint=jnp.int32(ids.index(adjustment.blueprint_id)),
        schedule=BlendSchedule(jnp.int32(method), jnp.float32(start), jnp.float32(end)),
    )


def _says_open(command: AdaptationCommand, adjustment: CircuitBreakerAdjustment) -> bool:
    if adjustment.desired_state not in (CircuitBreakerState.OPEN, CircuitBreakerState.CLOSED):
        _reject(command, f"desired_state is {adjustment.desired_state.name}; say OPEN or CLOSED")
    return adjustment.desired_state is CircuitBreakerState.OPEN


def _number(command: AdaptationCommand, numbers: Mapping[str, float], name: str) -> float:
    value = numbers.get(name)
    if value is None or not math.isfinite(value):
        _reject(command, f"{name} is {value}; send a finite number")
    return value


def _reject(command: AdaptationCommand, why: str) -> NoReturn:
    raise CommandRejectedError(
        f"command {command.command_id}: {why}",
        command_id=command.command_id,
        command_type=command.command_type,
    )
