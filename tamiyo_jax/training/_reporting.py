"""What a run tells of itself: its packets, and the checkpoints that they name."""

from __future__ import annotations

import time
from typing import NamedTuple

import jax
import numpy as np

from tamiyo_jax.contracts import HardwareContext, SeedState, SystemStatePacket
from tamiyo_jax.host import (
    HostCheckpoints,
    HostState,
    SeedMeasurements,
    StepMetrics,
    layer_names,
    live_parameters,
    packet_from,
    seed_state,
    within_budget,
)
from tamiyo_jax.training._task import Task

__all__ = ["Measured", "Reporter"]


class Measured(NamedTuple):
    """Measurements after an epoch.

    Attributes:
      step: a step's metrics, averaged over the epoch.
      probe: of the candidates of dormant slots; empty while a seed is on its way.
      validation_loss: f32[].
      validation_accuracy: f32[] in [0, 1].
      contributions: f32[] by slot id, on the validation set.
    """

    step: StepMetrics
    validation_loss: jax.Array
    validation_accuracy: jax.Array
    contributions: dict[str, jax.Array]
    probe: dict[str, dict[str, jax.Array]]


class Reporter:
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

    def packet(
        self, host: HostState, epoch: int, measured: Measured, seconds: float
    ) -> SystemStatePacket:
        """The packet of a boundary; `seconds` is what the epoch took."""
        restorable = self._restorable(host, measured)  # its disk time is not the hook's
        started = time.perf_counter()
        task = self._task
        identity = SystemStatePacket(
            packet_id=f"{self._run_id}-{epoch}",
            training_run_id=self._run_id,
            blueprint_id=task.blueprint.blueprint_id,
            candidate_blueprint_ids=tuple(one.blueprint_id for one in task.candidates),
            current_epoch=epoch,
            global_step=int(host.step),
            validation_loss=float(measured.validation_loss),
            validation_accuracy=float(measured.validation_accuracy),
            optimizer_id=task.optimizer_id,
            restorable_checkpoint=restorable,
            hardware=HardwareContext(jax.default_backend()),
            source_subsystem="tamiyo_jax.loop",
            timestamp_ns=0 if self._deterministic else time.time_ns(),
        )
        seeds = [self._seed(name, host, measured) for name in sorted(host.slots)]
        metrics = {
            "epochs_total": float(self._epochs),
            "live_parameters": float(live_parameters(host)),
        }
        if not self._deterministic:
            metrics["samples_per_s"] = task.steps_per_epoch * task.batch_size / seconds
            metrics["hook_latency_ms"] = 1e3 * (time.perf_counter() - started)
        packet = packet_from(
            identity,
            layers=layer_names(host.params),
            statistics=measured.step.statistics,
            training_loss=float(measured.step.loss),
            seeds=seeds,
            metrics=metrics,
        )
        return within_budget(packet, host, task.host)

    def _seed(self, name: str, host: HostState, measured: Measured) -> SeedState:
        facts = SeedMeasurements(
            gradient_norm=float(measured.step.seed_gradient_norms[name]),
            learning_rate=self._task.seed_learning_rate,
            layer_depth=self._task.slot_depths[name],
            contribution=float(measured.contributions[name]),
            probe={one: float(norm) for one, norm in measured.probe.get(name, {}).items()},
        )
        return seed_state(
            name,
            host.slots[name].state,
            facts,
            timing=self._task.host.timing,
            steps_per_epoch=self._task.steps_per_epoch,
        )

    def _restorable(self, host: HostState, measured: Measured) -> str | None:
        """Keep a good host; the name of the newest one kept, None where there is none."""
        if self._checkpoints is None:
            return None
        figures = jax.tree.leaves((measured.step, measured.validation_loss))
        if all(np.isfinite(figure).all() for figure in figures):
            self._checkpoints.save(f"step-{int(host.step):08d}", host)
        return max(self._checkpoints.names(), default=None)
