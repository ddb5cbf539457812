"""Verify commands and apply them to a train state."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NoReturn, Protocol, TypeVar, runtime_checkable

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
    Verifier,
)
from tamiyo_jax.errors import CommandRejectedError
from tamiyo_jax.growth import METHODS, BlendSchedule
from tamiyo_jax.host._budget import live_parameters, size_of
from tamiyo_jax.host._placement import place_like
from tamiyo_jax.host._scale import LIMITS, scale_by
from tamiyo_jax.host._seeding import banks_of, operate
from tamiyo_jax.host._training import Host, HostState

__all__ = ["Checkpointer", "CommandApplier", "DecisionLike"]

State = TypeVar("State")

LR_DELTA = "lr_delta"


@runtime_checkable
class DecisionLike(Protocol):
    """The part of a decision that the applier reads."""

    @property
    def command(self) -> AdaptationCommand | None:
        """The command to apply; None for WAIT."""
        ...

    @property
    def shadow(self) -> bool:
        """Whether the command is a preview that must not be applied."""
        ...


@runtime_checkable
class Checkpointer(Protocol):
    """Restores the states that ROLLBACK returns to."""

    def restore(self, name: str, train_state: Any) -> Any:  # noqa: ANN401 - the host's own
        """The checkpoint `name`, in the shape of `train_state`."""
        ...


class CommandApplier:
    """Applies decisions to a host, in the order in which they are made.

    A train state is a `HostState`, or for a host without slots any pytree that holds the state
    of its optimiser. Such a pytree takes OPTIMIZER and ROLLBACK; PAUSE and CIRCUIT_BREAKER have
    no effect on it, and SEED is rejected.

    The applier remembers nothing but the commands that its verifier has seen.

    Args:
      verifier: checks signature, age and novelty of every command.
      clock: returns the time in nanoseconds since the epoch.
      optimizer_id: the optimiser that OPTIMIZER commands may name.
      checkpointer: restores for ROLLBACK; without one, ROLLBACK is rejected.
      limits: bounds of the learning-rate multiplier after all commands together.
      host: what is trained, of a `HostState`; without it SEED is rejected.
    """

    def __init__(
        self,
        verifier: Verifier,
        *,
        clock: Callable[[], int],
        optimizer_id: str,
        checkpointer: Checkpointer | None = None,
        limits: tuple[float, float] = LIMITS,
        host: Host | None = None,
    ) -> None:
        self._verifier = verifier
        self._clock = clock
        self._optimizer_id = optimizer_id
        self._checkpointer = checkpointer
        self._limits = limits
        self._host = host

    def __call__(self, train_state: State, decision: DecisionLike) -> State:
        """The train state after the decision.

        A pause lasts until the next decision that is neither a pause nor a shadow; apart from
        that, WAIT leaves the state as it is. ROLLBACK restores everything but the breaker,
        which the controller still takes for what it last commanded; the annotation ``lr_delta``
        of a ROLLBACK then changes the restored multiplier. Arrays stay on the devices where the
        state has them, so no command makes a jitted step compile again.

        Raises:
          SignatureError: the command is unsigned or was changed.
          ReplayError: the command was applied before.
          StaleMessageError: the command is too old, or from the future.
          IllegalTransitionError: the seed's stage does not take the operation.
          CommandRejectedError: the command names something that this host does not have,
            or holds numbers that cannot be used.
          PersistenceError: the checkpoint of a ROLLBACK does not exist.
          CheckpointMismatchError: the checkpoint is of another host.
        """
        if decision.shadow:
            return train_state
        command = decision.command
        if command is None:
            return place_like(_set(train_state, paused=False), train_state)
        self._verifier = self._verifier.verify(command, now_ns=self._clock())
        paused = command.command_type is CommandType.PAUSE
        after = train_state if paused else self._act(train_state, command)
        return place_like(_set(after, paused=paused), train_state)

    def _act(self, state: State, command: AdaptationCommand) -> State:
        match command.command_type, command.payload:
            case CommandType.SEED, SeedAdjustment() as adjustment:
                return _apply_seed(state, command, adjustment, self._host)
            case CommandType.OPTIMIZER, OptimizerAdjustment() as adjustment:
                return self._apply_optimizer(state, command, adjustment)
            case CommandType.CIRCUIT_BREAKER, CircuitBreakerAdjustment() as adjustment:
                return _set(state, breaker_open=_wants_open(command, adjustment))
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
        if set(adjustment.hyperparameters) != {LR_DELTA}:
            names = sorted(adjustment.hyperparameters)
            _reject(command, f"hyperparameters are {names}; this host adjusts lr_delta alone")
        factor = 1 + _number(command, adjustment.hyperparameters, LR_DELTA)
        return _scale(state, factor, self._limits)

    def _roll_back(self, state: State, command: AdaptationCommand, checkpoint: str) -> State:
        if self._checkpointer is None:
            _reject(command, "this host keeps no checkpoints; give CommandApplier a checkpointer")
        restored = self._checkpointer.restore(checkpoint, state)
        if LR_DELTA in command.annotations:  # a brake that goes with the rollback
            restored = _scale(restored, 1 + _read_annotation(command, LR_DELTA), self._limits)
        if isinstance(state, HostState):
            return _set(restored, breaker_open=bool(state.breaker_open))
        return restored


def _scale(state: State, factor: float, limits: tuple[float, float]) -> State:
    """The state with its multiplier scaled; of a `HostState` the host's alone, not the seeds'."""
    if isinstance(state, HostState):
        return state._replace(opt_state=scale_by(state.opt_state, factor, limits))
    return scale_by(state, factor, limits)


def _set(state: State, **flags: bool) -> State:
    """The state with these flags, which only a host with slots has."""
    if not isinstance(state, HostState):
        return state
    return state._replace(**{name: jnp.bool_(flag) for name, flag in flags.items()})


def _apply_seed(
    state: State, command: AdaptationCommand, adjustment: SeedAdjustment, host: Host | None
) -> State:
    if not isinstance(state, HostState):
        _reject(command, f"a {type(state).__name__} has no slots; grow seeds in a HostState")
    if host is None:
        _reject(command, "the applier does not know the host; give CommandApplier its host")
    name = command.target_seed_id
    if name is None or name not in state.slots:
        _reject(command, f"seed {name!r} is none of this host's: {sorted(state.slots)}")
    if bool(state.breaker_open) and adjustment.operation is not SeedOperation.CULL:
        _reject(
            command,
            f"the host's adaptation breaker is open, so {adjustment.operation.name} must wait; "
            "close it first",
        )
    if adjustment.operation is SeedOperation.GERMINATE:
        return _germinate(state, command, adjustment, name, host)
    return operate(host, state, name, adjustment.operation)


def _germinate(
    state: HostState, command: AdaptationCommand, adjustment: SeedAdjustment, name: str, host: Host
) -> HostState:
    """The host with the seed, the budget kept, and the blending schedule of the command."""
    bank = banks_of(host)[name]
    chosen = adjustment.blueprint_id
    if chosen is None or chosen not in bank:
        _reject(command, f"blueprint {chosen!r} is not in the slot's bank: {sorted(bank)}")
    schedule = _schedule(command, adjustment)
    live = live_parameters(state) + size_of(bank[chosen])
    if host.parameter_budget is not None and live > host.parameter_budget:
        _reject(
            command,
            f"GERMINATE would make {live} live parameters and parameter_budget is "
            f"{host.parameter_budget}; cull a seed first, or raise the budget",
        )
    grown = operate(host, state, name, adjustment.operation, blueprint_id=chosen)
    slot = grown.slots[name]
    slot = slot._replace(state=slot.state._replace(schedule=schedule))
    return grown._replace(slots={**grown.slots, name: slot})


def _schedule(command: AdaptationCommand, adjustment: SeedAdjustment) -> BlendSchedule:
    method = _number(command, adjustment.parameters, "blending_method_index")
    start = _number(command, adjustment.parameters, "blending_schedule_start")
    end = _number(command, adjustment.parameters, "blending_schedule_end")
    if method not in range(len(METHODS)):
        _reject(command, f"blending_method_index is {method}; the methods are {METHODS}")
    if not 0 <= start <= end <= 1:
        _reject(command, f"the blending schedule is {start} to {end}; order it within 0 to 1")
    return BlendSchedule(jnp.int32(method), jnp.float32(start), jnp.float32(end))


def _wants_open(command: AdaptationCommand, adjustment: CircuitBreakerAdjustment) -> bool:
    if adjustment.desired_state not in (CircuitBreakerState.OPEN, CircuitBreakerState.CLOSED):
        _reject(command, f"desired_state is {adjustment.desired_state.name}; say OPEN or CLOSED")
    return adjustment.desired_state is CircuitBreakerState.OPEN


def _read_annotation(command: AdaptationCommand, name: str) -> float:
    try:
        return _number(command, {name: float(command.annotations[name])}, name)
    except ValueError:
        _reject(command, f"annotation {name} is {command.annotations[name]!r}; send a number")


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
