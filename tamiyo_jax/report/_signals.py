"""Which columns the rules of the gate watch, and the limits that they have there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from tamiyo_jax.config import RiskConfig

if TYPE_CHECKING:
    from tamiyo_jax.report._run import Run

__all__ = ["SIGNALS", "Signal", "divide_by_limits", "read_limits"]


@dataclass(frozen=True, slots=True)
class Signal:
    """A signal of the rule table.

    Attributes:
      name: as the rules call it.
      column: where a run's table holds it.
      limit: the field of `RiskConfig` beyond which the mildest rule with an effect holds.
      detection: the setting `risk.detection` under which that rule applies.
    """

    name: str
    column: str
    limit: str
    detection: Literal["any", "absolute", "relative"]


def _metrics(detection: Literal["any", "absolute", "relative"], **limits: str) -> list[Signal]:
    return [Signal(name, f"metrics/{name}", limit, detection) for name, limit in limits.items()]


SIGNALS = (
    Signal("loss_delta", "loss_delta", "loss_warning", "absolute"),
    *_metrics(
        "absolute",
        loss_volatility="loss_volatility",
        grad_var="grad_variance",
        grad_conflict_rate="grad_conflict",
        hook_latency_ms="hook_budget_ms",
        step_latency_ms="step_latency_ms",
    ),
    *_metrics(
        "relative",
        high_updates="high_updates",
        ruinous_in_row="ruinous_in_row",
        sustained_rise="sustained_rise",
        sustained_z="sustained_z",
        high_gradients="high_gradients",
        steps_without_progress="plateau_steps",
        latency_ratio="latency_ratio",
        loader_ratio="loader_ratio",
    ),
    *_metrics("any", gpu_util_percent="gpu_util_percent"),
    Signal("kasmina.apply_ms", "metrics/kasmina.apply_ms", "apply_ms", "any"),
    Signal("kasmina.finalize_ms", "metrics/kasmina.finalize_ms", "finalize_ms", "any"),
    Signal("policy_risk_score", "risk_score", "policy_risk_elevated", "any"),
    Signal("blueprint_risk", "blueprint_risk", "blueprint_risk", "any"),
)
"""Signals that are dangerous when they are large."""


def read_limits(run: Run) -> RiskConfig:
    """Return the limits that the run was controlled with; defaults where they are not on record."""
    known = run.settings.get("risk", {})
    return RiskConfig(**{k: v for k, v in known.items() if k in RiskConfig.model_fields})


def divide_by_limits(run: Run, risk: RiskConfig) -> dict[str, np.ndarray]:
    """Divide signals by their limits: f64 [rows] each, for the signals that were measured."""
    return {
        f"{signal.name} (limit {getattr(risk, signal.limit):g})": run.frame[signal.column]
        / getattr(risk, signal.limit)
        for signal in SIGNALS
        if signal.detection in ("any", risk.detection)
        if signal.column in run.frame and not np.isnan(run.frame[signal.column]).all()
    }
