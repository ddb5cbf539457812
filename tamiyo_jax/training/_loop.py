"""The reference training loop: train an epoch, measure, ask the controller, apply its decision.

One jitted call trains an epoch by `lax.scan`; a second one measures the validation loss and the
contribution of each seed. Both are compiled for what grows, ahead of time (`Programs`). Between
two epochs, at a *decision boundary*, the controller gets a packet and its decision is applied.
There the whole run is a pytree (`LoopState`): randomness is folded from its key and step, and
the order of the data follows from the step, so a run resumed at a boundary continues bit for
bit.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp

from tamiyo_jax.contracts import SeedOperation, SeedStage, SystemStatePacket
from tamiyo_jax.errors import ConfigurationError, TamiyoError
from tamiyo_jax.growth import enter
from tamiyo_jax.host import (
    DecisionLike,
    HardwareMeter,
    HostCheckpoints,
    HostState,
    StepMetrics,
    contribution,
    gates_of,
    init_host,
    layer_names,
    live_parameters,
    loss_of,
    operate,
    probe,
    scale_of,
    seeds_of,
    train_step,
)
from tamiyo_jax.training._accumulator import summarize
from tamiyo_jax.training._programs import Programs, may_grow
from tamiyo_jax.training._reporter import Boundary, Reporter, RunFacts
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


class LoopState(NamedTuple):
    """A run at a decision boundary; a pytree of arrays.

    Attributes:
      host: the train state. ROLLBACK replaces this and nothing else.
      epochs: i32[], epochs trained so far, including those that a rollback undid.
    """

    host: HostState
    epochs: jax.Array


class Controller(Protocol):
    """Makes decisions; `tamiyo_jax.Tamiyo` is a controller."""

    def step(self, packet: SystemStatePacket) -> DecisionLike:
        """Answer a packet, or raise a `TamiyoError`."""
        ...


@dataclass(frozen=True, slots=True)
class Record:
    """One decision boundary.

    Attributes:
      packet: the measurements that were sent to the controller.
      live_parameters: parameters of the host and its grown seeds, before the decision.
      decision: the controller's decision; None without a controller or if it raised.
      error: what the controller raised; the run then continues without a decision. Or why the
        programs with a seed could not be compiled; the run then continues without the seed.
      decision_ms: milliseconds that the controller took; None without a controller.
    """

    packet: SystemStatePacket
    live_parameters: int
    decision: DecisionLike | None
    error: TamiyoError | None
    decision_ms: float | None


@dataclass(frozen=True, slots=True)
class RunResult:
    """The result of a run.

    Attributes:
      history: one record per decision boundary.
      state: the run at its end.
      test_accuracy: share of the test examples labelled correctly, in [0, 1].
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
      contributions: f32[] by slot id: validation loss without the seed minus with it.
      probe: f32[] by slot id and blueprint id; empty while a seed is on its way.
    """

    step: StepMetrics
    validation_loss: jax.Array
    validation_accuracy: jax.Array
    contributions: dict[str, jax.Array]
    probe: dict[str, dict[str, jax.Array]]


def init_loop(task: Task, seed: int) -> LoopState:
    """A run before its first step, all slots dormant; `seed` also determines the data order."""
    return LoopState(_init_host(task, jax.random.PRNGKey(seed)), jnp.int32(0))


def grow_all(task: Task, state: LoopState, blueprint_id: str) -> LoopState:
    """The run with that blueprint fossilised in every slot: a larger network from the start."""
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
    compile_ahead: bool = True,
    checkpoints: HostCheckpoints | None = None,
    on_step: Callable[[Record, LoopState], None] | None = None,
) -> RunResult:
    """Train a task, with or without a controller.

    Epochs that a rollback undoes still count, so runs of equal `steps` have done equal work.

    Args:
      task: the network, its data and its blueprints.
      controller: makes the decisions; None trains the host as it is.
      steps: total number of optimiser steps, rounded down to whole epochs.
      state: the state to start or continue from, from `init_loop` or a checkpoint.
      run_id: identity of the run in its packets.
      applier: applies decisions; required with a controller.
      deterministic: packets carry no times and no readings of the hardware, and the run waits
        for its programs, so that equal runs send equal packets.
      compile_ahead: whether training goes on while a program with a new seed is compiled. The
        epoch in which that seed begins to learn then depends on the machine, so a replay of the
        run may differ from it. Without, the run waits.
      checkpoints: keeps the host after an epoch if validation loss, training loss and the
        statistics of host and seeds were finite and the controller did not object. Packets name
        the newest.
      on_step: called with every record and the run after its decision was applied. The
        history does not hold these states, so their memory is freed unless `on_step` keeps them.

    Returns:
      The history from `state` on, the final state and its test accuracy.

    Raises:
      ConfigurationError: a controller without an applier.
      TamiyoError: the applier refused a command.
    """
    if controller is not None and applier is None:
        raise ConfigurationError("a controller needs an applier; give run() a CommandApplier")
    before = live_parameters(state.host)
    epochs = steps // task.steps_per_epoch
    reporter = Reporter(
        _run_facts(task, state, run_id),
        kept=checkpoints,
        meter=None if deterministic else HardwareMeter(jax.local_devices()[0]),
        clock=(lambda: 0) if deterministic else time.time_ns,
    )
    build = partial(_build, task, probes=controller is not None)
    programs = Programs(build, wait=deterministic or not compile_ahead)
    history: list[Record] = []
    while int(state.epochs) < epochs:
        started = time.perf_counter()
        inside, failed = programs.inside(state.host)
        host, trained = _train_epoch(task, inside)
        probed = _probe(task, host) if controller is not None and may_grow(host) else {}
        measured = jax.device_get(Measured(trained, *_measure(task, host), probe=probed))
        host = programs.rejoin(host)
        seconds = time.perf_counter() - started
        state = LoopState(host, state.epochs + 1)
        metrics = {"epochs_total": float(epochs)}
        if not deterministic:
            metrics["samples_per_s"] = task.steps_per_epoch * task.batch_size / seconds
        boundary = _boundary(state, measured, metrics)
        packet = reporter.packet(host, boundary)
        live = live_parameters(host)
        decision, error, decision_ms = _ask(controller, packet)
        if error is None:
            reporter.settle(host, boundary, decision)
        error = error or failed
        if decision is not None and applier is not None:
            state = _skip_data(state._replace(host=applier(host, decision)), decision)
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


def _skip_data(state: LoopState, decision: DecisionLike) -> LoopState:
    """The run with another order of the data, after a rollback that leaves out what led to it."""
    command = decision.command
    if decision.shadow or command is None or "skip_data" not in command.annotations:
        return state
    rng = jax.random.fold_in(state.host.rng, state.epochs)
    return state._replace(host=state.host._replace(rng=rng))


@partial(jax.jit, static_argnums=0)
def accuracy(task: Task, host: HostState, data: Data) -> jax.Array:
    """f32[]: the share of `data` that the network with its grown seeds labels correctly."""
    logits = task.logits(host.params, seeds_of(host.slots), gates_of(host.slots), data.inputs)
    return jnp.mean((jnp.argmax(logits, axis=-1) == data.labels).astype(jnp.float32))


@partial(jax.jit, static_argnums=0)
def _init_host(task: Task, key: jax.Array) -> HostState:
    return init_host(task.host, task.init_params(key), key)


def _train_epoch(task: Task, host: HostState) -> tuple[HostState, StepMetrics]:
    """One epoch from ``host.step`` on, and the mean of its steps' metrics."""
    return _train_batches(task, host, _draw_batches(task, host.rng, host.step))


@partial(jax.jit, static_argnums=0)
def _draw_batches(task: Task, key: jax.Array, step: jax.Array) -> jax.Array:
    """i32[steps, batch]: rows of the training examples; compiled once, whatever grows."""
    steps = task.steps_per_epoch
    order = jax.random.permutation(jax.random.fold_in(key, step // steps), len(task.train.labels))
    return order[: steps * task.batch_size].reshape(steps, task.batch_size)


@partial(jax.jit, static_argnums=0)
def _train_batches(
    task: Task, host: HostState, batches: jax.Array
) -> tuple[HostState, StepMetrics]:
    def train_batch(host: HostState, rows: jax.Array) -> tuple[HostState, StepMetrics]:
        return train_step(task.host, host, jax.tree.map(lambda x: x[rows], task.train))

    host, metrics = jax.lax.scan(train_batch, host, batches)
    return host, summarize(metrics)


@partial(jax.jit, static_argnums=0)
def _measure(task: Task, host: HostState) -> tuple[jax.Array, jax.Array, dict[str, jax.Array]]:
    """Validation loss and accuracy, and the contribution of each seed."""
    loss = loss_of(task.host, host, task.validation)
    contributions = contribution(task.host.loss, host.params, host.slots, task.validation)
    return loss, accuracy(task, host, task.validation), contributions


def _probe(task: Task, host: HostState) -> dict[str, dict[str, jax.Array]]:
    """The gradients of the candidates of dormant slots, by some of the training examples."""
    some = jax.tree.map(lambda x: x[: PROBE_BATCHES * task.batch_size], task.train)
    return probe(task.host, host, some)


def _build(task: Task, host: HostState, *, probes: bool) -> None:
    """Compile what an epoch runs and run it once; a jitted function finds it when it is called."""
    found = (_train_epoch(task, host), _measure(task, host), _probe(task, host) if probes else {})
    jax.block_until_ready(found)


def _ask(
    controller: Controller | None, packet: SystemStatePacket
) -> tuple[DecisionLike | None, TamiyoError | None, float | None]:
    """The controller's decision or its error, and the milliseconds that it took."""
    if controller is None:
        return None, None, None
    started = time.perf_counter()
    try:
        decision, error = controller.step(packet), None
    except TamiyoError as raised:
        decision, error = None, raised
    return decision, error, 1e3 * (time.perf_counter() - started)


def _run_facts(task: Task, state: LoopState, run_id: str) -> RunFacts:
    return RunFacts(
        run_id=run_id,
        blueprint_id=task.blueprint.blueprint_id,
        candidates=tuple(blueprint.blueprint_id for blueprint in task.candidates),
        optimizer_id=task.optimizer_id,
        source="tamiyo_jax.loop",
        layers=layer_names(state.host.params),
        parameters=sum(layer.parameter_count or 0 for layer in task.blueprint.layers),
        host=task.host,
        interval=task.steps_per_epoch,
        seed_learning_rate=task.seed_learning_rate,
        slot_depths=task.slot_depths,
    )


def _boundary(state: LoopState, measured: Measured, metrics: Mapping[str, float]) -> Boundary:
    return Boundary(
        number=int(state.epochs),
        global_step=int(state.host.step),
        mean=measured.step,
        multiplier=float(scale_of(state.host.opt_state)),
        validation_loss=float(measured.validation_loss),
        validation_accuracy=float(measured.validation_accuracy),
        contributions=measured.contributions,
        probe=measured.probe,
        metrics=metrics,
    )
