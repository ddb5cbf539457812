"""Make packets from measurements."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from tamiyo_jax.contracts import SeedStage, SeedState, SystemStatePacket
from tamiyo_jax.errors import ConfigurationError
from tamiyo_jax.growth import SlotState, Timing
from tamiyo_jax.host._hardware import Hardware
from tamiyo_jax.host._monitor import Statistics

__all__ = ["MEASURED_STAGES", "RISK_SCALE", "SeedMeasurements", "packet_from", "seed_state"]

# Only a seed that has begun to learn has a contribution.
MEASURED_STAGES = (
    SeedStage.TRAINING,
    SeedStage.BLENDING,
    SeedStage.PROBATIONARY,
    SeedStage.FOSSILIZED,
)

RISK_SCALE = 0.1
"""The contribution, in units of the loss, that takes a seed's risk from 1/2 to 0.12."""


@dataclass(frozen=True, slots=True)
class SeedMeasurements:
    """Measurements of a seed, besides the state of its slot.

    Attributes:
      gradient_norm: norm of the seed's own gradient, 0 where it does not learn; NaN or infinite
        after a broken batch.
      contribution: validation loss without the seed minus with it.
      learning_rate: of its optimiser; None if unknown.
      layer_depth: index of the layer that its slot follows; None if unknown.
      probe: what `host.probe` found for the candidates of a dormant slot; empty if not measured.
    """

    gradient_norm: float
    contribution: float
    learning_rate: float | None = None
    layer_depth: int | None = None
    probe: Mapping[str, float] = field(default_factory=dict[str, float])


def seed_state(
    seed_id: str,
    state: SlotState,
    measured: SeedMeasurements,
    *,
    timing: Timing,
    steps_per_epoch: int,
) -> SeedState:
    """Make the packet's entry for a slot.

    Args:
      seed_id: id of the slot.
      state: of the slot.
      measured: of the seed. A gradient norm that is not finite becomes None, for a packet may
        not hold one; a broken batch shows in the losses. The contribution is left out of a seed
        that has not begun to learn; the probe is that of a dormant slot alone, and becomes
        ``probe/<blueprint id>``. The seed's risk score is ``(1 − tanh(contribution / 0.1)) / 2``:
        what the policy's network sees of the contribution. It is None without one.
      timing: of the host.
      steps_per_epoch: optimiser steps of an epoch, or between two packets.
    """
    stage = SeedStage(int(state.stage))
    blending = stage is SeedStage.BLENDING
    metrics = {
        "alpha": float(state.alpha),
        "alpha_steps": float(state.stage_steps) if blending else 0.0,
        "alpha_total_steps": float(timing.blend_steps),
    }
    risk = None
    if stage in MEASURED_STAGES:
        metrics["contribution"] = measured.contribution
        if math.isfinite(measured.contribution):
            risk = 0.5 - 0.5 * math.tanh(measured.contribution / RISK_SCALE)
    if stage is SeedStage.DORMANT:
        metrics |= {f"probe/{name}": norm for name, norm in measured.probe.items()}
    return SeedState(
        seed_id=seed_id,
        stage=stage,
        gradient_norm=measured.gradient_norm if math.isfinite(measured.gradient_norm) else None,
        learning_rate=measured.learning_rate,
        risk_score=risk,
        layer_depth=measured.layer_depth,
        age_epochs=int(state.age_steps) // steps_per_epoch,
        metrics=metrics,
    )


def packet_from(
    identity: SystemStatePacket,
    *,
    layers: Sequence[str],
    statistics: Statistics,
    training_loss: float,
    seeds: Sequence[SeedState],
    metrics: Mapping[str, float],
    hardware: Hardware | None = None,
) -> SystemStatePacket:
    """Complete a packet with what was measured.

    Args:
      identity: a packet with its ids, counters and validation results.
      layers: names of the layers, as `layer_names` gives them; the blueprint's layer ids.
      statistics: of the host's layers, fetched from the device.
      training_loss: the newest, or the mean since the last packet.
      seeds: the host's seeds, as `seed_state` makes them.
      metrics: further training metrics; they replace those made here.
      hardware: a reading of a `HardwareMeter`; None keeps the hardware of `identity`.

    Returns:
      The packet with ``loss`` and ``training_loss``, ``validation_loss`` where `identity` has
      one, ``gradient_norm``, ``grad_var`` (mean over layers), ``grad_conflict_rate``,
      ``layer/<name>/{weight_norm,gradient_norm}``, the metrics of the hardware, and what the
      monitor's detector says of the step, see `Signals` and `Refusals`: ``loss_z``,
      ``loss_rise``, ``gradient_z``, ``layer_gradient_z``, ``metric_z``, ``update_rise``,
      ``update_jump``, ``high_updates``, ``sustained_rise``, ``sustained_z``, ``high_gradients``,
      ``steps_without_progress``, ``step_refused`` (of these steps), ``steps_refused`` (of the
      run), ``ruinous_in_row``.

    Raises:
      ConfigurationError: `layers` are not those of the statistics.
    """
    gradients = np.asarray(statistics.gradient_norm)
    if len(layers) != len(gradients):
        raise ConfigurationError(
            f"{len(layers)} layers are named and {len(gradients)} were measured; name them with "
            "layer_names(params) of the parameters that the monitor sees",
            layers=len(layers),
            measured=len(gradients),
        )
    training_metrics = {
        "loss": training_loss,
        "training_loss": training_loss,
        "gradient_norm": float(np.linalg.norm(gradients)),
        "grad_var": float(np.mean(np.asarray(statistics.gradient_variance))),
        "grad_conflict_rate": float(statistics.conflict),
    }
    training_metrics |= _signals(statistics)
    if identity.validation_loss is not None:
        training_metrics["validation_loss"] = identity.validation_loss
    weights = np.asarray(statistics.weight_norm)
    for layer, weight, gradient in zip(layers, weights.tolist(), gradients.tolist(), strict=True):
        training_metrics[f"layer/{layer}/weight_norm"] = weight
        training_metrics[f"layer/{layer}/gradient_norm"] = gradient
    if hardware is not None:
        identity = replace(identity, hardware=hardware.context)
        training_metrics |= hardware.metrics
    return replace(
        identity,
        training_loss=training_loss,
        seeds=tuple(seeds),
        training_metrics={**training_metrics, **metrics},
    )


def _signals(statistics: Statistics) -> dict[str, float]:
    """The step beside those before it, by the names that the risk rules read."""
    signals, refusals = statistics.signals, statistics.refusals
    return {
        "loss_z": float(signals.loss_z),
        "loss_rise": float(signals.loss_rise),
        "gradient_z": float(signals.gradient_z),
        "layer_gradient_z": float(signals.layer_gradient_z),
        "metric_z": float(signals.metric_z),
        "update_rise": float(signals.update_rise),
        "update_jump": float(signals.update_jump),
        "high_updates": float(signals.high_updates),
        "sustained_rise": float(signals.sustained_rise),
        "sustained_z": float(signals.sustained_z),
        "high_gradients": float(signals.high_gradients),
        "steps_without_progress": float(signals.steps_without_progress),
        "step_refused": float(refusals.steps),
        "steps_refused": float(np.sum(refusals.by_cause)),
        "ruinous_in_row": float(refusals.in_row),
    }
