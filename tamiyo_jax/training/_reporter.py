"""Measure, make the packet, keep the state: what `Plug` and the reference loop share.

A boundary is the moment between two steps at which the controller is asked. Its packet already
names the state there, if all its measurements are finite; it is kept once the controller has been
asked and did not object.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import jax
import numpy as np

from tamiyo_jax.contracts import HardwareContext, Rollback, SystemStatePacket
from tamiyo_jax.decision import Decision
from tamiyo_jax.host import (
    DecisionLike,
    Hardware,
    HardwareMeter,
    Host,
    HostState,
    SeedMeasurements,
    StepMetrics,
    limit_to_budget,
    live_parameters,
    packet_from,
    seed_state,
)

FIGURES = ("gradient_norm", "weight_norm", "update_ratio", "gradient_variance", "conflict")
READING_S = 0.5

__all__ = [
    "Boundary",
    "KeptStates",
    "Reporter",
    "RunFacts",
    "describe",
    "may_keep",
    "state_name",
    "step_of",
]


class KeptStates(Protocol):
    """Where a run keeps the states that ROLLBACK may return to."""

    def save(self, name: str, train_state: Any) -> None:  # noqa: ANN401 - any pytree
        """Keep `train_state` under `name`."""
        ...

    def forget_after(self, name: str) -> None:
        """Forget what is newer than `name`."""
        ...

    def names(self) -> frozenset[str]:
        """The names that can be restored."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFacts:
    """What stays the same in all packets of a run.

    Attributes:
      run_id: of the run; packets are ``<run_id>-<boundary>``.
      blueprint_id: of the network.
      candidates: ids of the blueprints that a seed may be grown into.
      optimizer_id: of the optimiser that Tamiyo may scale.
      source: who sends the packets.
      layers: names of the monitored layers, as `host.layer_names` gives them.
      parameters: of the network, where there are no seeds to change their number.
      host: the host with seeds; None for a loop without.
      interval: optimiser steps between two boundaries.
      seed_learning_rate: of the seeds' optimisers; None if unknown.
      slot_depths: index of the layer that each slot follows, by slot id.
    """

    run_id: str
    blueprint_id: str
    candidates: tuple[str, ...]
    optimizer_id: str
    source: str
    layers: tuple[str, ...]
    parameters: int
    host: Host | None
    interval: int
    seed_learning_rate: float | None
    slot_depths: Mapping[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Boundary:
    """What was measured at a boundary, as numbers of the CPU.

    Attributes:
      number: boundaries so far, this one included.
      global_step: optimiser steps so far.
      mean: a step's metrics, averaged over the interval.
      multiplier: of the learning rate.
      validation_loss: None where nothing validates.
      validation_accuracy: in [0, 1]; None where nothing validates.
      contributions: by slot id, validation loss without the seed minus with it.
      probe: by slot id and blueprint id, as `host.probe` gives it; empty if not measured.
      metrics: further training metrics.
    """

    number: int
    global_step: int
    mean: StepMetrics
    multiplier: float
    validation_loss: float | None
    validation_accuracy: float | None
    contributions: Mapping[str, Any]
    probe: Mapping[str, Mapping[str, Any]]
    metrics: Mapping[str, float]


class Reporter:
    """Makes the packets of a run, and keeps the states that they name.

    Args:
      facts: of the run.
      kept: where states are kept; None keeps none.
      meter: reads the hardware; None reports its kind alone, so that equal runs send equal
        packets.
      clock: nanoseconds since the epoch, or a constant for the same reason.
    """

    def __init__(
        self,
        facts: RunFacts,
        *,
        kept: KeptStates | None,
        meter: HardwareMeter | None,
        clock: Callable[[], int],
    ) -> None:
        self._facts = facts
        self._kept = kept
        self._meter = meter
        self._hardware: tuple[float, Hardware] | None = None
        self._clock = clock

    def packet(
        self,
        state: Any,  # noqa: ANN401
        boundary: Boundary,
        *,
        is_held: bool = True,
    ) -> SystemStatePacket:
        """The packet of a boundary; it names its own state if that is finite, else the newest kept.

        Args:
          state: at the boundary; of one without seeds no array is read.
          boundary: what was measured.
          is_held: the state will be kept if the controller does not object.

        Raises:
          ConfigurationError: the statistics are of other layers.
        """
        started = time.perf_counter()
        facts = self._facts
        names = self._names(boundary, is_held=is_held)
        identity = SystemStatePacket(
            packet_id=f"{facts.run_id}-{boundary.number}",
            training_run_id=facts.run_id,
            blueprint_id=facts.blueprint_id,
            candidate_blueprint_ids=facts.candidates,
            current_epoch=boundary.number,
            global_step=boundary.global_step,
            validation_loss=boundary.validation_loss,
            validation_accuracy=boundary.validation_accuracy,
            optimizer_id=facts.optimizer_id,
            restorable_checkpoint=max(names, default=None),
            hardware=HardwareContext(jax.default_backend()),
            source_subsystem=facts.source,
            timestamp_ns=self._clock(),
        )
        seeds = [
            seed_state(
                name,
                state.slots[name].state,
                self._measure_seed(name, boundary),
                timing=facts.host.timing,
                steps_per_epoch=facts.interval,
            )
            for name in sorted(boundary.contributions)
            if facts.host is not None
        ]
        metrics = {f"restorable/{name}": float(step_of(name)) for name in names}
        metrics["live_parameters"] = float(self._count_live(state))
        metrics |= {"lr_multiplier": boundary.multiplier} | dict(boundary.metrics)
        hardware = self._read_hardware()
        if hardware is not None:
            metrics["hook_latency_ms"] = 1e3 * (time.perf_counter() - started)
        packet = packet_from(
            identity,
            layers=facts.layers,
            statistics=boundary.mean.statistics,
            training_loss=float(boundary.mean.loss),
            seeds=seeds,
            metrics=metrics,
            hardware=hardware,
        )
        if facts.host is None or not isinstance(state, HostState):
            return packet
        return limit_to_budget(packet, state, facts.host)

    def settle(self, state: object, boundary: Boundary, decision: DecisionLike | None) -> None:
        """Keep the boundary's state unless the controller objects; forget what is rolled back.

        Args:
          state: before the decision is applied.
          boundary: as it was reported.
          decision: the controller's; None without a controller.
        """
        if self._kept is not None and may_keep(boundary, decision):
            self._kept.save(state_name(boundary.global_step), state)
        self.forget(decision)

    def forget(self, decision: DecisionLike | None) -> None:
        """Forget the states that a decision rolls back."""
        payload = None if decision is None or decision.command is None else decision.command.payload
        if self._kept is None or decision is None or decision.shadow:
            return
        if isinstance(payload, Rollback):
            self._kept.forget_after(payload.checkpoint)

    def _names(self, boundary: Boundary, *, is_held: bool) -> frozenset[str]:
        if self._kept is None:
            return frozenset()
        keeps = is_held and _is_finite(boundary)
        own = {state_name(boundary.global_step)} if keeps else set[str]()
        return self._kept.names() | own

    def _read_hardware(self) -> Hardware | None:
        """A reading at most `READING_S` old, for one takes as long as a rule of the gate."""
        if self._meter is None:
            return None
        now = time.monotonic()
        if self._hardware is None or now - self._hardware[0] >= READING_S:
            self._hardware = now, self._meter.read()
        return self._hardware[1]

    def _count_live(self, state: object) -> int:
        return live_parameters(state) if isinstance(state, HostState) else self._facts.parameters

    def _measure_seed(self, name: str, boundary: Boundary) -> SeedMeasurements:
        return SeedMeasurements(
            gradient_norm=float(boundary.mean.seed_gradient_norms[name]),
            contribution=float(boundary.contributions[name]),
            learning_rate=self._facts.seed_learning_rate,
            layer_depth=self._facts.slot_depths.get(name),
            probe={seed: float(norm) for seed, norm in boundary.probe.get(name, {}).items()},
        )


def may_keep(boundary: Boundary, decision: DecisionLike | None) -> bool:
    """Whether the state of a boundary is finite, and the controller does not object to it."""
    objects = isinstance(decision, Decision) and not decision.restorable
    return _is_finite(boundary) and not objects


def _is_finite(boundary: Boundary) -> bool:
    mean = boundary.mean
    figures = jax.tree.leaves((mean.loss, mean.seed_gradient_norms, boundary.validation_loss))
    figures += [getattr(mean.statistics, name) for name in FIGURES]
    return all(np.isfinite(figure).all() for figure in figures)


def state_name(step: int) -> str:
    """The name of the state after so many steps; names sort by age."""
    return f"step-{step:08d}"


def step_of(name: str) -> int:
    """The number of steps after which a state was kept, by its name."""
    return int(name.removeprefix("step-"))


def describe(decision: Decision) -> str:
    """A decision that has a command, in a line for people."""
    target = "" if decision.command is None else decision.command.target_seed_id
    words = ("would" if decision.shadow else "", decision.action, target, f"({decision.reason})")
    return f"{' '.join(word for word in words if word)}: {decision.explanation}"
