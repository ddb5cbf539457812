"""State packets, which a training loop sends to the controller at every decision step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum

from tamiyo_jax.contracts._checks import Checks
from tamiyo_jax.errors import InvalidPacketError, MissingBlueprintIdError

__all__ = [
    "HardwareContext",
    "SeedStage",
    "SeedState",
    "SystemStatePacket",
    "validate_packet",
]

MAX_COUNTER = 2**32 - 1  # epochs, ages and depths are u32 on the wire
MAX_STEP = 2**64 - 1
STAGE_SCALE = 11.0

_check = Checks(InvalidPacketError)


class SeedStage(IntEnum):
    """Stages in the life cycle of a seed (Leyline ``SeedLifecycleStage``)."""

    UNKNOWN = 0
    DORMANT = 1
    GERMINATED = 2
    TRAINING = 3
    BLENDING = 4
    SHADOWING = 5
    PROBATIONARY = 6
    FOSSILIZED = 7
    CULLED = 8
    EMBARGOED = 9
    RESETTING = 10
    TERMINATED = 11


@dataclass(frozen=True, slots=True)
class HardwareContext:
    """The device that trains; None means absent. Memory in GB, utilisation in percent."""

    device_type: str
    device_id: str = ""
    total_memory_gb: float | None = None
    available_memory_gb: float | None = None
    temperature_celsius: float | None = None
    utilization_percent: float | None = None
    compute_capability: int | None = None


@dataclass(frozen=True, slots=True)
class SeedState:
    """A seed of the host; None means absent, 0 is zero.

    Attributes:
      seed_id: unique within the packet.
      stage: stage of its life cycle.
      gradient_norm: L2 norm of the gradient of the seed's parameters.
      learning_rate: the seed's own learning rate.
      risk_score: the host's estimate in [0, 1].
      layer_depth: index of the layer at which the seed is placed.
      age_epochs: epochs since germination.
      metrics: numbers by name; the defined names are ``alpha``, ``alpha_steps``,
        ``alpha_total_steps``, ``alpha_temperature``, ``blend_allowed``,
        ``risk_tolerance`` and ``contribution`` (validation loss with the seed off minus on).
    """

    seed_id: str
    stage: SeedStage
    gradient_norm: float | None = None
    learning_rate: float | None = None
    risk_score: float | None = None
    layer_depth: int | None = None
    age_epochs: int | None = None
    metrics: Mapping[str, float] = field(default_factory=dict[str, float])


@dataclass(frozen=True, slots=True)
class SystemStatePacket:
    """The state of a training run at a decision step.

    Attributes:
      packet_id: id of this packet, non-empty.
      training_run_id: id of the training run, non-empty.
      blueprint_id: the blueprint that describes the network; never derived from other ids.
      candidate_blueprint_ids: blueprints that a seed may be grown into; empty means the active
        blueprint.
      current_epoch: number of epochs completed.
      global_step: number of optimiser steps completed.
      validation_loss: newest validation loss, may be NaN or infinite, None if there is none.
      validation_accuracy: newest validation accuracy in [0, 1].
      training_loss: newest training loss.
      training_metrics: ``loss``, ``gradient_norm``, ``samples_per_s``, ``hook_latency_ms``, …
      seeds: the host's seeds.
      optimizer_id: the optimiser whose learning rate Tamiyo may scale.
      restorable_checkpoint: a checkpoint that the host can roll back to.
      hardware: the device that trains, None if unknown.
      source_subsystem: name of the sender.
      experiment_name: a name for display.
      timestamp_ns: time of creation, nanoseconds since the epoch.
    """

    packet_id: str
    training_run_id: str
    blueprint_id: str
    candidate_blueprint_ids: tuple[str, ...] = ()
    current_epoch: int = 0
    global_step: int = 0
    validation_loss: float | None = None
    validation_accuracy: float | None = None
    training_loss: float | None = None
    training_metrics: Mapping[str, float] = field(default_factory=dict[str, float])
    seeds: tuple[SeedState, ...] = ()
    optimizer_id: str | None = None
    restorable_checkpoint: str | None = None
    hardware: HardwareContext | None = None
    source_subsystem: str = ""
    experiment_name: str = ""
    timestamp_ns: int = 0

    @property
    def candidates(self) -> tuple[str, ...]:
        """Ids of the blueprints that a seed may be grown into."""
        return self.candidate_blueprint_ids or (self.blueprint_id,)


def validate_packet(packet: SystemStatePacket, *, max_metrics: int = 1024) -> None:
    """Check a packet once, at the boundary.

    Args:
      packet: the packet to check.
      max_metrics: the largest number of entries in a map of metrics.

    Raises:
      MissingBlueprintIdError: the packet names no blueprint.
      InvalidPacketError: any other field is invalid; the error names field and value.
    """
    _check.instance("packet", packet, SystemStatePacket)
    if not packet.blueprint_id:
        raise MissingBlueprintIdError(
            "blueprint_id is empty; send the id of the blueprint that describes this network",
            field="blueprint_id",
            value=packet.blueprint_id,
        )
    _check.kind("", packet, SystemStatePacket)
    for name in ("packet_id", "training_run_id", "blueprint_id"):
        _check.identifier(name, getattr(packet, name))
    for name in ("optimizer_id", "restorable_checkpoint"):
        if getattr(packet, name) is not None:
            _check.identifier(name, getattr(packet, name))
    for index, candidate in enumerate(packet.candidate_blueprint_ids):
        _check.identifier(f"candidate_blueprint_ids[{index}]", candidate)
    _check.unique("candidate_blueprint_ids", packet.candidate_blueprint_ids)
    _check.whole("current_epoch", packet.current_epoch, MAX_COUNTER)
    _check.whole("global_step", packet.global_step, MAX_STEP)
    _check.whole("timestamp_ns", packet.timestamp_ns, MAX_STEP)
    _check_finite("", packet, "validation_accuracy")
    _check_metrics("training_metrics", packet.training_metrics, max_metrics)
    for index, seed in enumerate(packet.seeds):
        _check_seed(f"seeds[{index}]", seed, max_metrics)
    _check.unique("seeds", tuple(seed.seed_id for seed in packet.seeds))
    if packet.hardware is not None:
        _check_hardware(packet.hardware)


def _check_seed(where: str, seed: SeedState, max_metrics: int) -> None:
    _check.identifier(f"{where}.seed_id", seed.seed_id)
    if seed.stage is SeedStage.UNKNOWN:
        raise _check.failure(f"{where}.stage", seed.stage, "say which stage the seed is in")
    _check_finite(f"{where}.", seed, "gradient_norm", "learning_rate", "risk_score")
    for name in ("layer_depth", "age_epochs"):
        if getattr(seed, name) is not None:
            _check.whole(f"{where}.{name}", getattr(seed, name), MAX_COUNTER)
    _check_metrics(f"{where}.metrics", seed.metrics, max_metrics)


def _check_hardware(hardware: HardwareContext) -> None:
    _check.label("hardware.device_type", hardware.device_type)
    _check.label("hardware.device_id", hardware.device_id)
    _check_finite(
        "hardware.",
        hardware,
        "total_memory_gb",
        "available_memory_gb",
        "temperature_celsius",
        "utilization_percent",
    )
    if hardware.compute_capability is not None:
        _check.whole("hardware.compute_capability", hardware.compute_capability, MAX_COUNTER)


def _check_finite(
    prefix: str, part: SystemStatePacket | SeedState | HardwareContext, *names: str
) -> None:
    """Check that fields are finite or None; only losses and metrics may be NaN or infinite."""
    for name in names:
        if getattr(part, name) is not None:
            _check.finite(f"{prefix}{name}", getattr(part, name))


def _check_metrics(where: str, metrics: Mapping[str, float], limit: int) -> None:
    if len(metrics) > limit:
        raise _check.failure(where, len(metrics), f"send at most {limit} metrics")
