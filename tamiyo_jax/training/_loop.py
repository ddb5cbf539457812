"""The reference training loop: train an epoch, measure, ask, apply, and again.

One jitted call trains an epoch by `lax.scan`; one more measures the validation set and what
each seed is worth. Both are compiled for what grows, ahead of time (`Programs`). Between two
epochs the controller is sent a packet and its decision is applied: a *decision boundary*.
The whole run is a pytree there (`LoopState`), all randomness is folded from its key and step,
and the order of the data follows from the step, so that a run resumed at a boundary goes on
bit for bit.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp

from tamiyo_jax.contracts import (
    SeedOperation,
    SeedStage,
    SystemStatePacket,
)
from tamiyo_jax.errors import CompilationError, ConfigurationError, TamiyoError
from tamiyo_jax.growth import enter
from tamiyo_jax.host import (
    DecisionLike,
    HostCheckpoints,
    HostState,
    StepMetrics,
    contribution,
    gates_of,
    init_host,
    live_parameters,
    loss_of,
    operate,
    probe,
    seeds_of,
    train_step,
)
from tamiyo_jax.training._programs import Programs
from tamiyo_jax.training._reporting import Measured, Reporter
from tamiyo_jax.training._task import Data, Task

__all__ = [
    "Controller",
    "LoopState",
    "Record",
    "RunResult",
    "accuracy",
    "grow_all",
    "init_loop",
    "run",
]


PROBE_BATCHES = 4
_ON_THE_WAY = (
    SeedStage.GERMINATED,
    SeedStage.TRAINING,
    SeedStage.BLENDING,
    SeedStage.PROBATIONARY,
)


class LoopState(NamedTuple):
    """A run at a decision boundary; a pytree of arrays.

    Attributes:
      host: what is trained. ROLLBACK replaces this and nothing else.
      epochs: i32[], epochs trained so far, those that a rollback undid included.
    """

    host: HostState
    epochs: jax.Array


class Controller(Protocol):
    """What decides; `tamiyo_jax.Tamiyo` is one."""

    def step(self, packet: SystemStatePacket) -> DecisionLike:
        """Answer a packet, or raise a `TamiyoError`."""
        ...


@dataclass(frozen=True, slots=True)
class Record:
    """One decision boundary.

    Attributes:
      packet: what was measured, and sent to the controller.
      live_parameters: of the host and its grown seeds, before the decision.
      decision: the answer; None without a controller, or where `error` says why.
      error: what the controller raised; training goes on without it for this boundary. Or why
        the programs with a seed could not be compiled; training goes on without the seed.
      decision_ms: time that the controller took; None without one.
    """

    packet: SystemStatePacket
    live_parameters: int
    decision: DecisionLike | None
    error: TamiyoError | None
    decision_ms: float | None


@dataclass(frozen=True, slots=True)
class RunResult:
    """What became of a run.

    Attributes:
      history: one record per decision boundary.
      state: the run at its end.
      test_accuracy: in [0, 1].
      parameters_before: live parameters at the start.
      parameters_after: live parameters at the end.
    """

    history: tuple[Record, ...]
    state: LoopState
    test_accuracy: float
    parameters_before: int
    parameters_after: int


def init_loop(task: Task, seed: int) -> LoopState:
    """A run before its first step, all slots dormant; `seed` also orders the data."""
    return LoopState(_init_host(task, jax.random.PRNGKey(seed)), jnp.int32(0))


def grow_all(task: Task, state: LoopState, blueprint_id: str) -> LoopState:
    """The run with that seed fossilised in every slot: a larger network from the start."""
    host = state.host
    for name in host.slots:
        host = operate(task.host, host, name, SeedOperation.GERMINATE, blueprint_id=blueprint_id)
        slot = host.slots[name]
        grown = slot._replace(state=enter(slot.state, SeedStage.FOSSILIZED))
        host = host._replace(slots={**host.slots, name: grown})
    return state._replace(host=host)


def run(
    task: Task,
    controller: Controller | None,
    *,
    steps: int,
    state: LoopState,
    run_id: str,
    applier: Callable[[HostState, DecisionLike], HostState] | None = None,
    deterministic: bool = False,
    checkpoints: HostCheckpoints | None = None,
    on_step: Callable[[Record, LoopState], None] | None = None,
) -> RunResult:
    """Train a task, with or without a controller.

    An epoch that a rollback undoes is not given back, so runs of equal `steps` have done
    equal work.

    Args:
      task: what to train.
      controller: what decides; None trains the host as it is.
      steps: optimiser steps to do in all, rounded down to whole epochs.
      state: where to start or to go on, from `init_loop` or a checkpoint.
      run_id: of the run, in its packets.
      applier: applies decisions; required with a controller.
      deterministic: packets carry no measured times, and the run waits for its programs, so
        equal runs send equal packets.
      checkpoints: keeps the host of the last epoch in which all was finite: validation loss,
        training loss, and the statistics of the host and of its seeds. Packets name it as the
        one to roll back to.
      on_step: called with every record and the run after its decision was applied. The
        history holds no such states, so their memory is free again unless this keeps them.

    Returns:
      The history from `state` on, the final state and its test accuracy.

    Raises:
      ConfigurationError: a controller without an applier.
      TamiyoError: the applier refused a command.
    """
    if controller is not None and applier is None:
        raise ConfigurationError("a controller needs an applier; give run() a CommandApplier")
    before = live_parameters(state.host)
    reporter = Reporter(task, run_id, steps // task.steps_per_epoch, deterministic, checkpoints)
    programs = Programs(partial(_compile, task), wait=deterministic)
    history: list[Record] = []
    while int(state.epochs) < steps // task.steps_per_epoch:
        started = time.perf_counter()
        inside, failed = _inside(programs, state.host)
        host, trained = _train_epoch(task, inside)
        probed = {} if controller is None or _is_growing(host) else _probe(task, host)
        measured = jax.device_get(Measured(trained, *_measure(task, host), probe=probed))
        host = programs.rejoined(host, state.host)
        seconds = time.perf_counter() - started
        state = LoopState(host, state.epochs + 1)
        packet = reporter.packet(host, int(state.epochs), measured, seconds)
        live = live_parameters(host)
        decision, error, decision_ms = _ask(controller, packet)
        error = error or failed
        if decision is not None and applier is not None:
            state = state._replace(host=applier(host, decision))
        history.append(Record(packet, live, decision, error, decision_ms))
        if on_step is not None:
            on_step(history[-1], state)
    return RunResult(
        history=tuple(history),
        state=state,
        test_accuracy=float(accuracy(task, state.host, task.test)),
        parameters_before=before,
        parameters_after=live_parameters(state.host),
    )


@partial(jax.jit, static_argnums=0)
def accuracy(task: Task, host: HostState, data: Data) -> jax.Array:
    """f32[]: the share of `data` that the network as it is now labels right."""
    logits = task.logits(host.params, seeds_of(host.slots), gates_of(host.slots), data.inputs)
    return jnp.mean((jnp.argmax(logits, axis=-1) == data.labels).astype(jnp.float32))


@partial(jax.jit, static_argnums=0)
def _init_host(task: Task, key: jax.Array) -> HostState:
    return init_host(task.host, task.init_params(key), key)


@partial(jax.jit, static_argnums=0)
def _train_epoch(task: Task, host: HostState) -> tuple[HostState, StepMetrics]:
    """One epoch from ``host.step`` on, and the mean of its steps' metrics."""
    steps = task.steps_per_epoch
    key = jax.random.fold_in(host.rng, host.step // steps)
    order = jax.random.permutation(key, len(task.train.labels))
    batches = order[: steps * task.batch_size].reshape(steps, task.batch_size)

    def one(host: HostState, rows: jax.Array) -> tuple[HostState, StepMetrics]:
        return train_step(task.host, host, jax.tree.map(lambda x: x[rows], task.train))

    host, metrics = jax.lax.scan(one, host, batches)
    return host, jax.tree.map(lambda values: jnp.mean(values, axis=0), metrics)


@partial(jax.jit, static_argnums=0)
def _measure(task: Task, host: HostState) -> tuple[jax.Array, jax.Array, dict[str, jax.Array]]:
    """Validation loss and accuracy, and what each seed is worth."""
    loss = loss_of(task.host, host, task.validation)
    worth = contribution(task.host.loss, host.params, host.slots, task.validation)
    return loss, accuracy(task, host, task.validation), worth


@partial(jax.jit, static_argnums=0)
def _probe(task: Task, host: HostState) -> dict[str, dict[str, jax.Array]]:
    """What the candidates of dormant slots would learn, by some of the training examples."""
    some = jax.tree.map(lambda x: x[: PROBE_BATCHES * task.batch_size], task.train)
    return probe(task.host, host, some)


def _is_growing(host: HostState) -> bool:
    """Whether a seed is on its way, or there is no slot for one: then no candidate is asked."""
    stages = {int(slot.state.stage) for slot in host.slots.values()}
    return SeedStage.DORMANT not in stages or bool(stages & set(_ON_THE_WAY))


def _compile(task: Task, host: HostState) -> None:
    """Compile what an epoch runs; a jitted function finds its program when it is called."""
    _train_epoch.lower(task, host).compile()
    _measure.lower(task, host).compile()


def _inside(programs: Programs, host: HostState) -> tuple[HostState, TamiyoError | None]:
    try:
        return programs.inside(host), None
    except CompilationError as error:
        return programs.inside(host), error


def _ask(
    controller: Controller | None, packet: SystemStatePacket
) -> tuple[DecisionLike | None, TamiyoError | None, float | None]:
    """The controller's answer or its error, and how long it took in milliseconds."""
    if controller is None:
        return None, None, None
    started = time.perf_counter()
    try:
        decision, error = controller.step(packet), None
    except TamiyoError as raised:
        decision, error = None, raised
    return decision, error, 1e3 * (time.perf_counter() - started)
