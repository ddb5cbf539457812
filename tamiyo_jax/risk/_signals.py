"""What the rules look at, and how a packet is read into it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from tamiyo_jax.contracts import Blueprint, SystemStatePacket

__all__ = ["Signals", "read_signals"]


@dataclass(frozen=True, slots=True)
class Signals:
    """Everything that one verdict depends on, besides the proposal and the thresholds.

    Attributes:
      policy_risk_score: in [0, 1]; None where there is no policy.
      loss_delta: rise of the validation loss, see `tamiyo_jax.risk.loss_delta`.
      metrics: the packet's training metrics; milliseconds, percent and GB as named.
      coverage: share of the expected features that the input holds, in [0, 1]; None is unknown.
      blueprint: the blueprint to evaluate: the selected candidate for GERMINATE, else the active
        blueprint.
      conservative: conservative mode is on.
      nonfinite_loss: a loss in the packet is NaN or infinite.
      restorable_checkpoint: where a rollback can go, None is nowhere.
      device_type: the hardware that trains, such as ``cuda`` or ``cpu``; None is unknown.
      optimizer_id: the optimiser that a downgrade may slow, None is none.
    """

    policy_risk_score: float | None = None
    loss_delta: float = 0.0
    metrics: Mapping[str, float] = field(default_factory=dict[str, float])
    coverage: float | None = None
    blueprint: Blueprint | None = None
    conservative: bool = False
    nonfinite_loss: bool = False
    restorable_checkpoint: str | None = None
    device_type: str | None = None
    optimizer_id: str | None = None

    def read_number(self, name: str) -> float | None:
        """The number that a rule calls `name`; None where it was not measured."""
        match name:
            case "policy_risk_score":
                return self.policy_risk_score
            case "loss_delta":
                return self.loss_delta
            case "coverage":
                return self.coverage
            case "blueprint_risk":
                return None if self.blueprint is None else self.blueprint.effective_risk
            case _:
                return self.metrics.get(name)


def read_signals(
    packet: SystemStatePacket,
    *,
    loss_delta: float,
    conservative: bool,
    blueprint: Blueprint | None,
    policy_risk_score: float | None,
    coverage: float | None,
) -> Signals:
    """Join what the packet says with what the controller knows."""
    return Signals(
        policy_risk_score=policy_risk_score,
        loss_delta=loss_delta,
        metrics=packet.training_metrics,
        coverage=coverage,
        blueprint=blueprint,
        conservative=conservative,
        nonfinite_loss=not all(map(math.isfinite, _losses(packet))),
        restorable_checkpoint=packet.restorable_checkpoint,
        device_type=None if packet.hardware is None else packet.hardware.device_type,
        optimizer_id=packet.optimizer_id,
    )


def _losses(packet: SystemStatePacket) -> Iterator[float]:
    """The packet's losses: its two fields, and each metric whose name ends in ``loss``."""
    for value in (packet.validation_loss, packet.training_loss):
        if value is not None:
            yield value
    for metrics in (packet.training_metrics, *(seed.metrics for seed in packet.seeds)):
        yield from (value for name, value in metrics.items() if name.endswith("loss"))
