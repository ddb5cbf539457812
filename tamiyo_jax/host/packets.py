"""From measurements to the packet that Tamiyo is sent."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from tamiyo_jax.contracts import SeedStage, SeedState, SystemStatePacket
from tamiyo_jax.errors import ConfigurationError
from tamiyo_jax.host.hardware import Hardware
from tamiyo_jax.host.monitor import Statistics
from tamiyo_jax.host.seeds import SlotState, Timing

__all__ = ["SeedMeasurements", "packet_from", "seed_state"]

# Only a seed that has learned something has a worth.
_MEASURED = (
    SeedStage.TRAINING,
    SeedStage.BLENDING,
    SeedStage.PROBATIONARY,
    SeedStage.FOSSILIZED,
)


@dataclass(frozen=True, slots=True)
class SeedMeasurements:
    """What a host knows about a seed besides its state.

    Attributes:
      gradient_norm: norm of the seed's own gradient, 0 where it does not learn; NaN or infinite
        after a broken batch.
      contribution: loss with the seed off minus on.
      learning_rate: of its optimiser; None where nobody knows it.
      layer_depth: index of the layer that its slot follows; likewise.
    """

    gradient_norm: float
    contribution: float
    learning_rate: float | None = None
    layer_depth: int | None = None


def seed_state(
    seed_id: str,
    state: SlotState,
    measured: SeedMeasurements,
    *,
    timing: Timing,
    steps_per_epoch: int,
) -> SeedState:
    """A slot's state as the packet tells it.

    The contribution is told only of a seed that has learned. A gradient norm that is not finite
    is told as None: a packet may hold no such one, and it is the losses that say that a batch
    was broken.
    """
    stage = SeedStage(int(state.stage))
    blending = stage is SeedStage.BLENDING
    metrics = {
        "alpha": float(state.alpha),
        "alpha_steps": float(state.stage_steps) if blending else 0.0,
        "alpha_total_steps": float(timing.blend_steps),
    }
    if stage in _MEASURED:
        metrics["contribution"] = measured.contribution
    return SeedState(
        seed_id=seed_id,
        stage=stage,
        gradient_norm=measured.gradient_norm if math.isfinite(measured.gradient_norm) else None,
        learning_rate=measured.learning_rate,
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
      training_loss: the newest.
      seeds: the host's seeds.
      metrics: further training metrics; they win over those made here.
      hardware: from a `HardwareMeter`; None leaves what `identity` says of it.

    Returns:
      The packet with ``loss`` and ``training_loss``, ``validation_loss`` where `identity` has
      one, ``gradient_norm``, ``grad_var`` (mean over layers), ``grad_conflict_rate``,
      ``layer/<name>/{weight_norm,gradient_norm}`` and the metrics
      of the hardware.

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
