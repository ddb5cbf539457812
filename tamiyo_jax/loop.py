"""The reference training loop: train an epoch, measure, ask, apply, and again.

One jitted call trains an epoch by `lax.scan`; one more measures the validation set and what
each seed is worth. Both compile once, whatever grows. Between two epochs the controller is
sent a packet and its decision is applied: a *decision boundary*. The whole run is a pytree
there (`LoopState`), all randomness is folded from its key and step, and the order of the
data follows from the step, so that a run resumed at a boundary goes on bit for bit.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from tamiyo_jax.contracts import HardwareContext, SeedStage, SeedState, SystemStatePacket
from tamiyo_jax.errors import ConfigurationError, TamiyoError
from tamiyo_jax.host import (
    Decided,
    HostCheckpoints,
    HostState,
    SeedMeasurements,
    StepMetrics,
    contribution,
    enter,
    gates_of,
    init_host,
    layer_names,
    live_parameters,
    packet_from,
    seed_state,
    train_step,
    within_budget,
)
from tamiyo_jax.task import Data, Task

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

    def step(self, packet: SystemStatePacket) -> Decided:
        """Answer a packet, or raise a `TamiyoError`."""
        ...


@dataclass(frozen=True, slots=True)
class Record:
    """One decision boundary.

    Attributes:
      packet: what was measured, and sent to the controller.
      live_parameters: of the host and its grown seeds, before the decision.
      decision: the answer; None without a controller, or where `error` says why.
      error: what the controller raised; training goes on without it for this boundary.
      decision_ms: time that the controller took; None without one.
    """

    packet: SystemStatePacket
    live_parameters: int
    decision: Decided | None
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


class Measured(NamedTuple):
    """Measurements after an epoch.

    Attributes:
      step: a step's metrics, averaged over the epoch.
      validation_loss: f32[].
      validation_accuracy: f32[] in [0, 1].
      contributions: f32[] by slot id, on the validation set.
    """

    step: StepMetrics
    validation_loss: jax.Array
    validation_accuracy: jax.Array
    contributions: dict[str, jax.Array]


def init_loop(task: Task, seed: int) -> LoopState:
    """A run before its first step, all slots dormant; `seed` also orders the data."""
    return LoopState(_init_host(task, jax.random.PRNGKey(seed)), jnp.int32(0))


def grow_all(state: LoopState, blueprint_id: str) -> LoopState:
    """The run with that seed fossilised in every slot: a larger network from the start."""
    slots = {}
    for name, slot in state.host.slots.items():
        chosen = slot.state._replace(blueprint=jnp.int32(sorted(slot.params).index(blueprint_id)))
        slots[name] = slot._replace(state=enter(chosen, jnp.int32(SeedStage.FOSSILIZED)))
    return state._replace(host=state.host._replace(slots=slots))


def run(
    task: Task,
    controller: Controller | None,
    *,
    steps: int,
    state: LoopState,
    run_id: str,
    applier: Callable[[HostState, Decided], HostState] | None = None,
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
      deterministic: packets carry no measured times, so equal runs send equal packets.
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
    reporter = _Reporter(task, run_id, steps // task.steps_per_epoch, deterministic, checkpoints)
    history: list[Record] = []
    while int(state.epochs) < steps // task.steps_per_epoch:
        started = time.perf_counter()
        host, trained = _train_epoch(task, state.host)
        measured = jax.device_get(Measured(trained, *_measure(task, host)))
        seconds = time.perf_counter() - started
        state = LoopState(host, state.epochs + 1)
        packet = reporter.packet(state, measured, seconds)
        live = live_parameters(host)
        decision, error, decision_ms = _ask(controller, packet)
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
    seeds = {name: slot.params for name, slot in host.slots.items()}
    logits = task.logits(host.params, seeds, gates_of(host.slots), data.inputs)
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
    seeds = {name: slot.params for name, slot in host.slots.items()}
    loss = task.host.loss(host.params, seeds, gates_of(host.slots), task.validation)
    worth = contribution(task.host.loss, host.params, host.slots, task.validation)
    return loss, accuracy(task, host, task.validation), worth


def _ask(
    controller: Controller | None, packet: SystemStatePacket
) -> tuple[Decided | None, TamiyoError | None, float | None]:
    """The controller's answer or its error, and how long it took in milliseconds."""
    if controller is None:
        return None, None, None
    started = time.perf_counter()
    try:
        decision, error = controller.step(packet), None
    except TamiyoError as raised:
        decision, error = None, raised
    return decision, error, 1e3 * (time.perf_counter() - started)


class _Reporter:
    """Makes a run's packets, and keeps the checkpoint that they name."""

    def __init__(
        self,
        task: Task,
        run_id: str,
        epochs: int,
        deterministic: bool,
        checkpoints: HostCheckpoints | None,
    ) -> None:
        self._task = task
        self._run_id = run_id
        self._epochs = epochs
        self._deterministic = deterministic
        self._checkpoints = checkpoints

    def packet(self, state: LoopState, measured: Measured, seconds: float) -> SystemStatePacket:
        """The packet of a boundary; `seconds` is what the epoch took."""
        restorable = self._restorable(state, measured)  # its disk time is not the hook's
        started = time.perf_counter()
        task, epoch = self._task, int(state.epochs)
        identity = SystemStatePacket(
            packet_id=f"{self._run_id}-{epoch}",
            training_run_id=self._run_id,
            blueprint_id=task.blueprint.blueprint_id,
            candidate_blueprint_ids=tuple(one.blueprint_id for one in task.candidates),
            current_epoch=epoch,
            global_step=int(state.host.step),
            validation_loss=float(measured.validation_loss),
            validation_accuracy=float(measured.validation_accuracy),
            optimizer_id=task.optimizer_id,
            restorable_checkpoint=restorable,
            hardware=HardwareContext(jax.default_backend()),
            source_subsystem="tamiyo_jax.loop",
            timestamp_ns=0 if self._deterministic else time.time_ns(),
        )
        seeds = [self._seed(name, state.host, measured) for name in sorted(state.host.slots)]
        metrics = {"epochs_total": float(self._epochs)}
        if not self._deterministic:
            metrics["samples_per_s"] = task.steps_per_epoch * task.batch_size / seconds
            metrics["hook_latency_ms"] = 1e3 * (time.perf_counter() - started)
        packet = packet_from(
            identity,
            layers=layer_names(state.host.params),
            statistics=measured.step.statistics,
            training_loss=float(measured.step.loss),
            seeds=seeds,
            metrics=metrics,
        )
        budget = task.host.parameter_budget
        return packet if budget is None else within_budget(packet, state.host, budget)

    def _seed(self, name: str, host: HostState, measured: Measured) -> SeedState:
        facts = SeedMeasurements(
            gradient_norm=float(measured.step.seed_gradient_norms[name]),
            learning_rate=self._task.seed_learning_rate,
            layer_depth=self._task.slot_depths[name],
            contribution=float(measured.contributions[name]),
        )
        return seed_state(
            name,
            host.slots[name].state,
            facts,
            timing=self._task.host.timing,
            steps_per_epoch=self._task.steps_per_epoch,
        )

    def _restorable(self, state: LoopState, measured: Measured) -> str | None:
        """Keep a good host; the name of the newest one kept, None where there is none."""
        if self._checkpoints is None:
            return None
        figures = jax.tree.leaves((measured.step, measured.validation_loss))
        if all(np.isfinite(figure).all() for figure in figures):
            self._checkpoints.save(f"step-{int(state.host.step):08d}", state.host)
        return max(self._checkpoints.names(), default=None)
