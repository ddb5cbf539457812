"""A step of a journal as a row of a table."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

from tamiyo_jax.contracts import (
    AdaptationCommand,
    CircuitBreakerAdjustment,
    OptimizerAdjustment,
    Rollback,
    SeedAdjustment,
    SystemStatePacket,
)
from tamiyo_jax.storage import StepRecord

__all__ = ["describe_command", "make_row"]

Row = dict[str, float | int | bool | str]

_REPORTED = ("loss_delta", "inference_ms", "blueprint_risk")
_PROPOSED = {"value_estimate": "value", "risk_score": "risk_score"}


def make_row(sequence: int, step: StepRecord) -> Row:
    """Make the row of a step, by column; what it does not say is left out.

    Args:
      sequence: of its record.
      step: the step, decided or failed.
    """
    report = step.report
    issued_ns = report.issued_at_ns or 0  # a report without it is not journalled
    row: Row = {
        "sequence": sequence,
        "time_ns": issued_ns,
        "action": step.action,
        "target": report.seed_id,
        "command": "" if step.command is None else describe_command(step.command),
        "reason": report.notes,
        "explanation": step.explanation or report.notes,
        "mode": step.mode,
        "outcome": report.outcome.name,
        "policy": report.tamiyo_policy_version,
        "run_id": report.training_run_id,
    }
    row |= {name: float(report.metrics[name]) for name in _REPORTED if name in report.metrics}
    row |= {
        column: float(report.metrics[name])
        for name, column in _PROPOSED.items()
        if name in report.metrics
    }
    row |= _risk(json.loads(step.state)["risk"])
    if step.packet is not None:
        row |= _packet(step.packet, issued_ns)
    return row


def describe_command(command: AdaptationCommand) -> str:
    """Describe a command in a few words: ``GERMINATE left as gated``, ``learning rate ×0.8``."""
    match command.payload:
        case SeedAdjustment(operation, blueprint_id):
            grown = "" if blueprint_id is None else f" as {blueprint_id}"
            return f"{operation.name} {command.target_seed_id}{grown}"
        case OptimizerAdjustment(_, hyperparameters):
            change = hyperparameters.get("lr_delta", 0.0)
            return f"learning rate ×{1 + change:.3g}"
        case CircuitBreakerAdjustment(desired_state):
            return f"host's breaker {desired_state.name}"
        case Rollback(checkpoint):
            return f"ROLLBACK to {checkpoint}"
        case None:
            return command.command_type.name


def _risk(risk: Mapping[str, Any]) -> Row:
    mode = risk["conservative"]
    return {
        "conservative": "" if mode is None else str(mode["reason"]),
        "inference_breaker": int(risk["inference"]["state"]),
        "metadata_breaker": int(risk["metadata"]["state"]),
        "pauses": sum(last - first + 1 for first, last in risk["pause_runs"]),
    }


def _packet(packet: SystemStatePacket, issued_ns: int) -> Row:
    row: Row = {
        "step": packet.global_step,
        "epoch": packet.current_epoch,
        "blueprint": packet.blueprint_id,
        "has_packet": True,
        "nonfinite": _first_nonfinite(packet),
    }
    losses = {
        "training_loss": packet.training_loss,
        "validation_loss": packet.validation_loss,
        "validation_accuracy": packet.validation_accuracy,
    }
    row |= {name: float(value) for name, value in losses.items() if value is not None}
    if packet.restorable_checkpoint is not None:
        row["restorable"] = packet.restorable_checkpoint
    if packet.timestamp_ns and issued_ns >= packet.timestamp_ns:
        row["decision_ms"] = (issued_ns - packet.timestamp_ns) / 1e6
    row |= {f"metrics/{name}": float(value) for name, value in packet.training_metrics.items()}
    for seed in packet.seeds:
        at = f"seeds/{seed.seed_id}"
        row |= {f"{at}/{name}": float(value) for name, value in seed.metrics.items()}
        if seed.gradient_norm is not None:
            row[f"{at}/gradient_norm"] = float(seed.gradient_norm)
        row[f"{at}/stage"] = int(seed.stage)
    return row


def _first_nonfinite(packet: SystemStatePacket) -> str:
    """The first loss of a packet that is NaN or infinite, by name; empty if none is."""
    return next((name for name, value in _losses(packet) if not math.isfinite(value)), "")


def _losses(packet: SystemStatePacket) -> Iterator[tuple[str, float]]:
    for name in ("training_loss", "validation_loss"):
        value = getattr(packet, name)
        if value is not None:
            yield name, value
    yield from ((k, v) for k, v in packet.training_metrics.items() if k.endswith("loss"))
    for seed in packet.seeds:
        yield from (
            (f"{seed.seed_id} {k}", v) for k, v in seed.metrics.items() if k.endswith("loss")
        )
