"""Tamiyo in a training loop of your own: one call after every step.

    tamiyo = Plug.open("runs", params, loss_fn, batch, mode="guard", every=50, tell=print)
    for batch in batches:
        state, loss = train_step(state, batch)
        state = tamiyo(state, loss)
    tamiyo.close()

Each call adds what the step measured to a sum on the device, and waits for nothing. Every
so many calls it reads the means, keeps the state if it is a good one, asks the controller and
applies the answer. A controller that cannot answer leaves the state as it is.
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from tamiyo_jax.config import TamiyoConfig
from tamiyo_jax.contracts import Blueprint, SeedState, SystemStatePacket
from tamiyo_jax.contracts.signing import NonceLedger, Secret, Verifier
from tamiyo_jax.errors import ConfigurationError, PersistenceError, TamiyoError
from tamiyo_jax.host import (
    CommandApplier,
    HardwareMeter,
    Host,
    HostState,
    MemoryCheckpoints,
    SeedMeasurements,
    StepMetrics,
    blueprint_of,
    contribution,
    layer_names,
    loss_of,
    packet_from,
    scale_of,
    seed_state,
    statistics,
    within_budget,
)
from tamiyo_jax.runtime import (
    Decision,
    MemoryBlueprintLibrary,
    SqliteBlueprintLibrary,
    Tamiyo,
)

__all__ = ["Plug"]

HOST_ID = "host"
OPTIMIZER_ID = "optimizer"
OWN_RISK = 0.0  # the network is there with Tamiyo or without
SECRET_BYTES = 32

Batch = Any
Params = Any
State = TypeVar("State")
Judge = Callable[[Any], tuple[jax.Array | None, Mapping[str, jax.Array]]]
"""The validation loss of a train state, and what each of its seeds is worth."""


class Plug:
    """Tamiyo's place in a training loop; made by `Plug.open` or `Plug.grow`.

    It tells packets from what the steps measured, keeps the last good state in memory, and
    verifies and applies commands. Settings come from `TamiyoConfig.load`, and the heuristic
    is the policy. Controller and loop are in one process, so the key that signs commands is
    made here and nobody else has it.

    Attributes:
      directory: of this run: its blueprints in ``blueprints.db``, the controller in ``tamiyo``.
      tamiyo: the controller, for instance to switch its mode.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        blueprint: Blueprint,
        *,
        layers: Sequence[str],
        judge: Judge,
        mode: Literal["act", "shadow", "guard"],
        every: int,
        tell: Callable[[str], object],
        host: Host | None = None,
        candidates: Sequence[Blueprint] = (),
    ) -> None:
        if every < 1:
            raise ConfigurationError(f"every is {every}; ask after each so many steps, at least 1")
        self._layers = layers
        self._judge = judge
        self._every = every
        self._tell = tell
        self._host = host
        self._budget = None if host is None else host.parameter_budget
        self._candidates = tuple(one.blueprint_id for one in candidates)
        self._checkpoints = MemoryCheckpoints()
        self._restorable: str | None = None
        self._meter = HardwareMeter(jax.local_devices()[0])
        self._calls = 0
        self._sum: StepMetrics | None = None
        config = TamiyoConfig.load(packet={"seedless": host is None})
        secret = os.urandom(SECRET_BYTES)
        self._applier = CommandApplier(
            Verifier((Secret(secret),), NonceLedger(time.time_ns()), config.security),
            clock=time.time_ns,
            optimizer_id=OPTIMIZER_ID,
            checkpointer=self._checkpoints,
            parameter_budget=self._budget,
        )
        self.directory = _new_run(Path(directory))
        # Nothing is put later, so no worker need watch the file; `tamiyo-jax` reads it.
        library = MemoryBlueprintLibrary(config.graph)
        kept = SqliteBlueprintLibrary(self.directory / "blueprints.db", config.graph)
        for one in (blueprint, *candidates):
            library.put(one)
            kept.put(one)
        self.tamiyo = Tamiyo.open(
            config,
            directory=self.directory / "tamiyo",
            library=library,
            policy="heuristic",
            mode=mode,
            secret=secret,
        )

    @classmethod
    def open(
        cls,
        directory: str | os.PathLike[str],
        model: Any,  # noqa: ANN401 - any pytree
        forward: Callable[[Any, Any], Any],
        example: Any,  # noqa: ANN401 - as for blueprint_of
        *,
        mode: Literal["act", "shadow", "guard"],
        every: int,
        tell: Callable[[str], object],
        validate: Callable[[Any], jax.Array] | None = None,
    ) -> Self:
        """For a loop that does not grow its network.

        Args:
          directory: of runs; this one gets a directory of its own in it, named by the time, and
            a number where others began in the same second.
          model: the parameters that the monitored optimiser updates, or a model that is a
            pytree of them, of JAX or NumPy; leaves that are no floating arrays are taken as they
            are.
          forward: ``(model, example)``, the network or its loss; traced, never run.
          example: an input of it.
          mode: as for `Tamiyo.open`.
          every: steps from one decision to the next; to the policy that is an epoch.
          tell: is told in a line what is done, and what cannot be.
          validate: the validation loss f32[] of a train state, asked for at every decision.
            Without it no rule sees a loss that rises but stays finite.

        Raises:
          ConfigurationError: `every` is less than 1.
          PersistenceError: `directory` cannot be made or written.
          TamiyoError: as `host.blueprint_of` and `Tamiyo.open` do.
        """
        params, whole = _parts(model)
        return cls(
            directory,
            blueprint_of(
                params,
                lambda params, example: forward(whole(params), example),
                example,
                blueprint_id=HOST_ID,
                risk=OWN_RISK,
            ),
            layers=layer_names(params),
            judge=lambda state: (None if validate is None else validate(state), {}),
            mode=mode,
            every=every,
            tell=tell,
        )

    @classmethod
    def grow(
        cls,
        directory: str | os.PathLike[str],
        state: HostState,
        host: Host,
        candidates: Sequence[Blueprint],
        validation: Batch,
        *,
        mode: Literal["act", "shadow", "guard"],
        every: int,
        tell: Callable[[str], object],
    ) -> Self:
        """For a loop that trains a host with seed slots by `host.train_step`.

        Args:
          directory: as for `open`, like all that is not said here.
          state: of the host, before its first step.
          host: what is trained.
          candidates: what seeds may be grown into, as `host.seed_bank` gives them.
          validation: a batch for `host.loss`, to judge the network and its seeds by.
          mode: as for `Tamiyo.open`.
          every: steps.
          tell: a line.

        Raises:
          ConfigurationError: `every` is less than 1.
          PersistenceError: `directory` cannot be made or written.
          TamiyoError: as `host.blueprint_of` and `Tamiyo.open` do.
        """

        @jax.jit
        def judge(state: HostState, batch: Batch) -> tuple[jax.Array, Mapping[str, jax.Array]]:
            worth = contribution(host.loss, state.params, state.slots, batch)
            return loss_of(host, state, batch), worth

        return cls(
            directory,
            blueprint_of(
                state.params,
                lambda params, batch: loss_of(host, state._replace(params=params), batch),
                validation,
                blueprint_id=HOST_ID,
                risk=OWN_RISK,
            ),
            layers=layer_names(state.params),
            judge=lambda state: judge(state, validation),
            mode=mode,
            every=every,
            tell=tell,
            host=host,
            candidates=candidates,
        )

    def __call__(self, state: State, measured: jax.Array | StepMetrics) -> State:
        """The train state after a step: `state` itself, or what a command made of it.

        Args:
          state: a `HostState`, or any pytree that holds the state of an optimiser with
            `host.monitor` around it and `host.tamiyo_scale` in it.
          measured: of this step: the training loss f32[], or what `host.train_step` returns.

        Raises:
          ConfigurationError: the optimiser is not monitored, or has other layers.
          CommandRejectedError: the optimiser has no `tamiyo_scale`.
        """
        if not isinstance(measured, StepMetrics):
            measured = StepMetrics(measured, {}, statistics(state))
        self._calls += 1
        self._sum = _add(self._sum, measured)
        if self._calls % self._every:
            return state
        scale_of(state)
        total, self._sum = jax.device_get(self._sum), None
        packet = self._packet(state, jax.tree.map(lambda one: one / self._every, total))
        try:
            decision = self.tamiyo.step(packet)
            after = self._applier(state, decision)
        except TamiyoError as error:
            problem = f"{type(error).__name__}: {error}"
            self._tell(f"step {self._calls}: goes on without Tamiyo: {problem}")
            return state
        if decision.command is not None:
            self._tell(f"step {self._calls}: {_line(decision)}")
        return after

    def close(self) -> None:
        """Bring the journal to disk and end the workers; closing twice is harmless."""
        self.tamiyo.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _packet(self, state: Any, mean: StepMetrics) -> SystemStatePacket:  # noqa: ANN401
        """What the controller is sent; a state worth going back to is kept first."""
        validation_loss, worth = jax.device_get(self._judge(state))
        if all(np.isfinite(one).all() for one in jax.tree.leaves((mean, validation_loss))):
            self._restorable = f"step-{self._calls}"
            self._checkpoints.save(self._restorable, state)
        epoch = self._calls // self._every
        identity = SystemStatePacket(
            packet_id=f"{self.directory.name}-{epoch}",
            training_run_id=self.directory.name,
            blueprint_id=HOST_ID,
            candidate_blueprint_ids=self._candidates,
            current_epoch=epoch,
            global_step=self._calls,
            validation_loss=None if validation_loss is None else float(validation_loss),
            optimizer_id=OPTIMIZER_ID,
            restorable_checkpoint=self._restorable,
            source_subsystem="tamiyo_jax.plug",
            timestamp_ns=time.time_ns(),
        )
        packet = packet_from(
            identity,
            layers=self._layers,
            statistics=mean.statistics,
            training_loss=float(mean.loss),
            seeds=self._seeds(state, mean, worth),
            metrics={},
            hardware=self._meter.read(),
        )
        return packet if self._budget is None else within_budget(packet, state, self._budget)

    def _seeds(
        self, state: HostState, mean: StepMetrics, worth: Mapping[str, jax.Array]
    ) -> list[SeedState]:
        if self._host is None:
            return []
        return [
            seed_state(
                name,
                state.slots[name].state,
                SeedMeasurements(float(mean.seed_gradient_norms[name]), float(worth[name])),
                timing=self._host.timing,
                steps_per_epoch=self._every,
            )
            for name in sorted(worth)
        ]


def _new_run(directory: Path) -> Path:
    """A new directory in `directory`: the time, with -2, -3, … where others began just then.

    Making it claims the name, which no other thread, process or host can have then.

    Raises:
      PersistenceError: it cannot be made.
    """
    name = time.strftime("%Y%m%d-%H%M%S")
    further = (f"{name}-{number}" for number in itertools.count(2))
    try:
        directory.mkdir(parents=True, exist_ok=True)
        return next(filter(_claimed, (directory / one for one in itertools.chain([name], further))))
    except OSError as error:
        raise PersistenceError(
            f"directory {directory} cannot hold runs: {error.strerror}; name one that can be "
            "made and written",
            path=str(directory),
            errno=error.errno,
        ) from error


def _claimed(path: Path) -> bool:
    try:
        path.mkdir()
    except FileExistsError:
        return False
    return True


def _parts(model: Any) -> tuple[Params, Callable[[Params], Any]]:  # noqa: ANN401
    """A model's floating arrays, and what makes a model of such arrays again."""

    def is_learned(leaf: object) -> bool:
        is_array = isinstance(leaf, jax.Array | np.ndarray)
        return is_array and jnp.issubdtype(leaf.dtype, jnp.inexact)

    leaves, structure = jax.tree.flatten(model)
    params = jax.tree.map(lambda leaf: leaf if is_learned(leaf) else None, model)

    def whole(params: Params) -> Any:  # noqa: ANN401
        learned = iter(jax.tree.leaves(params))
        return structure.unflatten([next(learned) if is_learned(x) else x for x in leaves])

    return params, whole


@jax.jit
def _add(total: StepMetrics | None, measured: StepMetrics) -> StepMetrics:
    """The sum with one more step, in buffers of its own: the step's may be donated next."""
    wide = jax.tree.map(lambda one: jnp.asarray(one, jnp.float32), measured)
    return jax.tree.map(jnp.add, total or jax.tree.map(jnp.zeros_like, wide), wide)


def _line(decision: Decision) -> str:
    target = "" if decision.command is None else decision.command.target_seed_id
    words = ("would" if decision.shadow else "", decision.action, target, f"({decision.reason})")
    return " ".join(word for word in words if word)
