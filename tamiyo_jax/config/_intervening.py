"""Settings of when to intervene: rules, the guard, and the controller's own breakers."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from tamiyo_jax.config._section import Section, make_impossible

__all__ = [
    "BreakerConfig",
    "GuardConfig",
    "RiskConfig",
]


class RiskConfig(Section, frozen=True):
    """Thresholds of the rule table, of conservative mode and of the pause budget."""

    detection: Literal["absolute", "relative"] = Field(
        default="absolute",
        description="whether losses, gradients and latencies are compared with fixed limits, or "
        "with the run itself, which needs a monitored optimiser",
    )
    policy_risk_critical: float = Field(
        default=0.98, description="risk score from which a decision becomes a pause"
    )
    policy_risk_elevated: float = Field(
        default=0.85, description="risk score from which a decision is downgraded"
    )
    blueprint_quarantine: float = Field(
        default=0.8, description="blueprint risk from which a decision becomes a pause"
    )
    blueprint_risk: float = Field(
        default=0.5, description="blueprint risk from which a decision is downgraded"
    )
    loss_spike: float = Field(default=0.15, description="rise of the loss above which to pause")
    loss_warning: float = Field(
        default=0.075, description="rise of the loss above which to downgrade"
    )
    hook_budget_ms: float = Field(default=50.0, description="time in hooks above which to pause")
    step_latency_ms: float = Field(
        default=120.0, description="time of a training step above which to pause"
    )
    apply_ms: float = Field(
        default=30.0, description="time to apply a command above which to downgrade"
    )
    finalize_ms: float = Field(
        default=30.0, description="time to finalise a command above which to downgrade"
    )
    loss_volatility: float = Field(
        default=0.1125, description="volatility of the loss above which to downgrade"
    )
    grad_variance: float = Field(
        default=1.0, description="variance of the gradients above which to downgrade"
    )
    grad_conflict: float = Field(
        default=0.5, description="rate of conflicting gradients above which to downgrade"
    )
    high_updates: int = Field(
        default=3, ge=1, description="steps in a row with a much larger update, to roll back"
    )
    ruinous_in_row: int = Field(
        default=32, ge=1, description="ruinous steps in a row from which to roll back"
    )
    divergence: float = Field(
        default=0.69, description="log of the loss over its lowest level that is critical"
    )
    sustained_rise: float = Field(
        default=0.41, description="log of the loss over its lowest level above which to roll back"
    )
    sustained_z: float = Field(
        default=6.0, description="the same in units of the loss's spread, which both need"
    )
    high_gradients: int = Field(
        default=8, ge=1, description="steps in a row with a high gradient norm, to brake"
    )
    plateau_steps: int = Field(
        default=2000, ge=1, description="steps without progress after which it is reported"
    )
    latency_ratio: float = Field(
        default=5.0, description="ratio of a step's time to its median above which it is reported"
    )
    loader_ratio: float = Field(
        default=5.0,
        description="wait for a batch, over a step's median time, above which it is reported",
    )
    gpu_util_percent: float = Field(
        default=95.0, description="GPU utilisation that counts as pressure"
    )
    gpu_mem_free_gb: float = Field(
        default=0.2, description="free GPU memory that counts as pressure"
    )
    cpu_util_percent: float = Field(
        default=95.0, description="CPU utilisation that counts as pressure"
    )
    coverage_critical: float = Field(
        default=0.10, description="share of known inputs up to which to pause"
    )
    coverage_warning: float = Field(
        default=0.30, description="share of known inputs below which to warn"
    )
    calm_steps: int = Field(
        default=5, ge=1, description="calm steps in a row that end conservative mode"
    )
    pause_budget: int = Field(
        default=100, ge=1, description="pauses within the window, beyond which to escalate"
    )
    pause_window_steps: int = Field(
        default=1000, ge=1, description="steps over which pauses are counted"
    )


class GuardConfig(Section, frozen=True):
    """Guard mode: the gate alone, without a policy."""

    brake: float = Field(
        default=0.3, gt=0, lt=1, description="share of the learning rate taken off"
    )
    cooldown_steps: int = Field(default=50, ge=1, description="steps between two brakes")
    release_steps: int = Field(
        default=50, ge=1, description="calm steps after which a brake is released"
    )
    rollback_budget: int = Field(
        default=3, ge=1, description="rollbacks without calm in between, beyond which to escalate"
    )
    rollback_calm_steps: int = Field(
        default=50, ge=1, description="calm steps after which rollbacks are counted anew"
    )


class BreakerConfig(Section, frozen=True):
    """The controller's own two circuit breakers."""

    failures: int = Field(default=3, ge=1, description="consecutive failures that open it")
    cooldown_ms: float = Field(default=1_000.0, gt=0, description="time before the first trial")
    max_cooldown_ms: float = Field(
        default=60_000.0, gt=0, description="limit of that time, which doubles per failed trial"
    )

    @model_validator(mode="after")
    def _cooldown_grows(self) -> Self:
        if self.max_cooldown_ms < self.cooldown_ms:
            raise make_impossible(
                "max_cooldown_ms must be at least cooldown_ms", "max_cooldown_ms", "cooldown_ms"
            )
        return self
