"""Training runs on real digits with Tamiyo on guard, and the troubles that befall them.

A perceptron, Adam, a packet for every step: a loop of a user's own. Tests and
`benchmarks/guard.py` run this code, all troubles under one configuration.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits

import tamiyo_jax as tj
from tamiyo_jax import growth, host
from tamiyo_jax.contracts import NonceLedger, Secret, Verifier
from tamiyo_jax.library import MemoryBlueprintLibrary

# Defaults, but for one threshold: of two layers both pull against their recent direction in every
# fifth step of a healthy run, so here that says nothing (docs/choosing_thresholds.md).
CONFIG = tj.TamiyoConfig(packet={"seedless": True}, risk={"grad_conflict": 1.0})
RATE = 3e-3
BATCH = 32
VALIDATION = 360
VALIDATE_EVERY = 10
SAVE_EVERY = 50
DISK_KIB = 2048


@dataclass(frozen=True)
class Trouble:
    """What goes wrong with a run.

    Attributes:
      name: what it is called.
      inputs: factor on the inputs of the one batch at which it begins.
      rate: factor on the user's learning rate from there on.
      wait_s: what each of ten batches from there on takes to arrive.
      fills_disk: the disk of the run directory is full from there on.
    """

    name: str
    inputs: float = 1.0
    rate: float = 1.0
    wait_s: float = 0.0
    fills_disk: bool = False


NOTHING = Trouble("none")
SPIKE = Trouble("loss spike: one batch × 1,000", inputs=1e3)
NAN = Trouble("one batch of NaN", inputs=float("nan"))
HIGH_RATE = Trouble("learning rate × 30", rate=30.0)
SLOW_INPUT = Trouble("ten batches, each 0.2 s late", wait_s=0.2)
FULL_DISK = Trouble("full disk", fills_disk=True)
TROUBLES = (NOTHING, SPIKE, NAN, HIGH_RATE, SLOW_INPUT, FULL_DISK)
_LATE_BATCHES = 10


class Answer(NamedTuple):
    """What came of one packet; where the step raised, the error's name and message."""

    step: int
    action: str
    reason: str


@dataclass(frozen=True)
class Run:
    """A run at its end.

    Attributes:
      answers: one per step; none without Tamiyo.
      losses: the validation loss by step, each time it was measured.
      accuracy: on the validation scans at the end, in [0, 1].
      scale: Tamiyo's multiplier of the learning rate at the end.
      params: the parameters at the end.
    """

    answers: tuple[Answer, ...]
    losses: dict[int, float]
    accuracy: float
    scale: float
    params: Any


class Perceptron(nn.Module):
    """64 pixels, 32 hidden units, 10 digits."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return nn.Dense(10)(nn.leaky_relu(nn.Dense(32)(x)))


def logits_of(params: Any, inputs: jax.Array) -> jax.Array:
    return Perceptron().apply({"params": params}, inputs)  # pyright: ignore[reportReturnType]


def loss_of(params: Any, seeds: Any, gates: Any, batch: tuple[jax.Array, jax.Array]) -> jax.Array:
    del seeds, gates
    logits = logits_of(params, batch[0])
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch[1]).mean()


@jax.jit
def validate(params: Any, data: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
    """Loss and accuracy."""
    right = jnp.argmax(logits_of(params, data[0]), axis=-1) == data[1]
    return loss_of(params, {}, {}, data), jnp.mean(right.astype(jnp.float32))


def make_host(trouble: Trouble, at: int) -> host.Host:
    """The host; the user's own schedule has the trouble in it."""

    def schedule(step: jax.Array) -> jax.Array:
        return jnp.float32(RATE) * jnp.where(step < at, 1.0, jnp.float32(trouble.rate))

    return host.Host(
        loss=loss_of,
        optimizer=host.monitor(optax.chain(optax.adam(schedule), host.tamiyo_scale())),
        seed_optimizer=optax.identity(),
        init_seeds=lambda key: {},
        timing=growth.Timing(1, 1),
    )


class Digits:
    """The scans, split and ordered by a seed."""

    def __init__(self, seed: int) -> None:
        inputs, labels = load_digits(return_X_y=True)
        order = np.random.default_rng(seed).permutation(len(labels))
        inputs = (inputs[order] / 16).astype(np.float32)
        labels = labels[order].astype(np.int32)
        self.validation = jnp.asarray(inputs[:VALIDATION]), jnp.asarray(labels[:VALIDATION])
        self._train = inputs[VALIDATION:], labels[VALIDATION:]
        self._seed = seed

    def batch(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """The batch of a step; a run that was rolled back sees the same again."""
        count = len(self._train[1])
        epoch, index = divmod(step, count // BATCH)
        order = np.random.default_rng((self._seed, epoch)).permutation(count)
        rows = order[index * BATCH : (index + 1) * BATCH]
        return self._train[0][rows], self._train[1][rows]


class Guard:
    """Tamiyo on guard, what applies its commands, and the checkpoints that they may name."""

    def __init__(
        self,
        directory: Path,
        blueprint: tj.Blueprint,
        made: host.Host,
        isolation: Literal["process", "inline"],
    ) -> None:
        library, secret = MemoryBlueprintLibrary(), os.urandom(32)
        library.put(blueprint)
        self.good: str | None = None  # the newest checkpoint
        self._checkpoints = host.HostCheckpoints(directory / "checkpoints", made)
        self.tamiyo = tj.Tamiyo.open(
            CONFIG,
            directory=directory / "disk" / "tamiyo",
            library=library,
            mode="guard",
            secret=secret,
            isolation=isolation,
        )
        self._apply = host.CommandApplier(
            Verifier((Secret(secret),), NonceLedger(time.time_ns()), CONFIG.security),
            clock=time.time_ns,
            optimizer_id="adam",
            checkpointer=self._checkpoints,
        )

    def step(
        self, packet: tj.SystemStatePacket, state: host.HostState
    ) -> tuple[Answer, host.HostState]:
        """Ask and apply; where Tamiyo raises, train on without it.

        A state is kept where Tamiyo answers WAIT.
        """
        try:
            decision = self.tamiyo.step(packet)
        except tj.TamiyoError as error:
            return Answer(packet.global_step, type(error).__name__, str(error)), state
        if decision.command is None and packet.global_step % SAVE_EVERY == 0:
            self.good = f"step-{packet.global_step:06d}"
            self._checkpoints.save(self.good, state)
        answer = Answer(packet.global_step, decision.action, decision.reason)
        return answer, self._apply(state, decision)


def train(
    trouble: Trouble,
    directory: Path | None,
    *,
    steps: int,
    at: int,
    seed: int = 0,
    isolation: Literal["process", "inline"] = "inline",
) -> Run:
    """Train, with the trouble from step `at` on; on guard if there is a directory to guard in."""
    digits, made = Digits(seed), make_host(trouble, at)
    key = jax.random.PRNGKey(seed)
    params = Perceptron().init(key, digits.validation[0])["params"]
    state = host.init_host(made, params, key)
    train_step = jax.jit(partial(host.train_step, made))
    jax.block_until_ready((train_step(state, digits.batch(0)), validate(params, digits.validation)))
    blueprint = host.blueprint_of(
        params, logits_of, digits.validation[0], blueprint_id="perceptron", risk=0.1
    )
    guard = None
    if directory is not None:
        guard = Guard(directory, blueprint, made, isolation)
    answers: list[Answer] = []
    losses: dict[int, float] = {}
    loss: float | None = None
    for step in range(steps):
        started = time.perf_counter()
        inputs, labels = read_batch(trouble, digits, int(state.step), step - at)
        state, metrics = train_step(state, (inputs, labels))
        metrics = jax.device_get(metrics)
        step_ms = 1e3 * (time.perf_counter() - started)
        if step % VALIDATE_EVERY == 0:
            loss = losses[step] = float(validate(state.params, digits.validation)[0])
        if guard is None or directory is None:
            continue
        if trouble.fills_disk and step == at:
            fill(directory / "disk")
        identity = tj.SystemStatePacket(
            packet_id=f"step-{step}",
            training_run_id="guarded",
            blueprint_id=blueprint.blueprint_id,
            global_step=step,
            validation_loss=loss,
            optimizer_id="adam",
            restorable_checkpoint=guard.good,
            timestamp_ns=time.time_ns(),
        )
        packet = host.packet_from(
            identity,
            layers=host.layer_names(state.params),
            statistics=metrics.statistics,
            training_loss=float(metrics.loss),
            seeds=(),
            metrics={"step_latency_ms": step_ms},
        )
        answer, state = guard.step(packet, state)
        answers.append(answer)
        if answer.action == "ROLLBACK":
            loss = None  # it was of parameters that are no more
    if guard is not None:
        with suppress(tj.TamiyoError):  # a full disk, which the run has heard of
            guard.tamiyo.close()
    accuracy = float(validate(state.params, digits.validation)[1])
    scale = float(host.scale_of(state.opt_state))
    return Run(tuple(answers), losses, accuracy, scale, state.params)


def read_batch(
    trouble: Trouble, digits: Digits, position: int, since: int
) -> tuple[np.ndarray, np.ndarray]:
    """The batch at a position in the data, as the input pipeline delivers it.

    A batch is spoilt on its way, once: read again after a rollback, it is sound.
    """
    inputs, labels = digits.batch(position)
    if 0 <= since < _LATE_BATCHES:
        time.sleep(trouble.wait_s)
    return (inputs * np.float32(trouble.inputs) if since == 0 else inputs), labels


def fill(disk: Path) -> None:
    """Write until there is no space left."""
    with suppress(OSError), (disk / "ballast").open("wb", buffering=0) as ballast:
        while True:
            ballast.write(bytes(1024))


@contextmanager
def small_disk(directory: Path, refused: Callable[[str], object]) -> Iterator[None]:
    """A real file system of `DISK_KIB` at ``disk`` in the directory.

    Args:
      directory: a new run's.
      refused: called with the reason where none may be mounted; then it is any other directory.
    """
    disk = directory / "disk"
    disk.mkdir(parents=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_KIB}k", "tamiyo-guard", str(disk)]
    mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    if mounted.returncode:
        refused(f"a tmpfs may not be mounted here: {mounted.stderr.strip()}")
        yield
        return
    try:
        yield
    finally:
        subprocess.run(["umount", str(disk)], check=True)
