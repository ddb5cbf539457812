"""The sections of the configuration as plain dicts, for type checkers.

`TamiyoConfig(deadlines={"inference_ms": 100})` is checked against these; Pydantic reads the
values. A test compares them with the sections.
"""

from __future__ import annotations

from typing import Literal, TypedDict

from tamiyo_jax.config._deciding import GraphConfig, HeuristicConfig, PacketConfig, PolicyConfig
from tamiyo_jax.config._intervening import BreakerConfig, GuardConfig, RiskConfig
from tamiyo_jax.config._operating import (
    DeadlineConfig,
    LibraryConfig,
    PublishingConfig,
    SecurityConfig,
    StorageConfig,
)

__all__ = ["Sections"]


class PacketDict(TypedDict, total=False):
    """Settings of `PacketConfig`."""

    max_metrics: int
    seedless: bool


class GraphDict(TypedDict, total=False):
    """Settings of `GraphConfig`."""

    max_seeds: int
    max_blueprints: int
    max_layers: int
    max_activations: int
    max_parameters: int
    max_edges: int
    strict_features: bool
    overflow: Literal["error", "truncate"]
    normalizer_rate: float


class PolicyDict(TypedDict, total=False):
    """Settings of `PolicyConfig`."""

    sage_width: int
    gat_width: int
    heads: int
    blending_methods: tuple[str, ...]
    dropout: float
    risk_semantics: Literal["severity", "max_probability"]
    version: str
    blend_annotations: Literal["off", "CONVEX", "RESIDUAL"]


class HeuristicDict(TypedDict, total=False):
    """Settings of `HeuristicConfig`."""

    plateau_epochs: int
    plateau_improvement: float
    probe_ratio: float
    min_epochs: int
    embargo_epochs: int
    train_epochs: int
    cull_penalty: float
    penalty_decay: float
    penalty_skip: float
    harm_fraction: float
    harm_epochs: int
    rising_epochs: int
    brake: float
    smoothing: float


class RiskDict(TypedDict, total=False):
    """Settings of `RiskConfig`."""

    detection: Literal["absolute", "relative"]
    policy_risk_critical: float
    policy_risk_elevated: float
    blueprint_quarantine: float
    blueprint_risk: float
    loss_spike: float
    loss_warning: float
    hook_budget_ms: float
    step_latency_ms: float
    apply_ms: float
    finalize_ms: float
    loss_volatility: float
    grad_variance: float
    grad_conflict: float
    gpu_util_percent: float
    gpu_mem_free_gb: float
    cpu_util_percent: float
    coverage_critical: float
    coverage_warning: float
    calm_steps: int
    pause_budget: int
    pause_window_steps: int
    high_updates: int
    ruinous_in_row: int
    divergence: float
    sustained_rise: float
    sustained_z: float
    high_gradients: int
    plateau_steps: int
    latency_ratio: float
    loader_ratio: float


class GuardDict(TypedDict, total=False):
    """Settings of `GuardConfig`."""

    brake: float
    cooldown_steps: int
    release_steps: int
    rollback_budget: int
    rollback_calm_steps: int


class BreakerDict(TypedDict, total=False):
    """Settings of `BreakerConfig`."""

    failures: int
    cooldown_ms: float
    max_cooldown_ms: float


class DeadlineDict(TypedDict, total=False):
    """Settings of `DeadlineConfig`."""

    inference_ms: float
    metadata_ms: float
    execution_ms: int
    warmup_s: float
    device: str
    spares: int
    memory_mb: int


class LibraryDict(TypedDict, total=False):
    """Settings of `LibraryConfig`."""

    cache_blueprints: int
    max_staleness_ms: float


class StorageDict(TypedDict, total=False):
    """Settings of `StorageConfig`."""

    durability: Literal["group", "always"]
    flush_ms: float
    segment_bytes: int
    retention_hours: float | None
    retention_bytes: int | None
    sync_directories: bool
    recovery: Literal["repair", "strict"]
    record_packets: bool
    observation_window_epochs: int
    max_windows: int
    max_runs: int


class PublishingDict(TypedDict, total=False):
    """Settings of `PublishingConfig`."""

    backoff_ms: float
    multiplier: float
    max_retries: int
    max_pending: int
    max_age_s: float


class SecurityDict(TypedDict, total=False):
    """Settings of `SecurityConfig`."""

    secret_env: str
    max_age_s: float
    max_future_s: float
    nonce_window_s: float
    nonce_capacity: int
    update_freshness_s: float


class Sections(TypedDict, total=False):
    """Arguments of `TamiyoConfig`: each section as an object or as a dict."""

    packet: PacketConfig | PacketDict
    graph: GraphConfig | GraphDict
    policy: PolicyConfig | PolicyDict
    heuristic: HeuristicConfig | HeuristicDict
    risk: RiskConfig | RiskDict
    guard: GuardConfig | GuardDict
    breakers: BreakerConfig | BreakerDict
    deadlines: DeadlineConfig | DeadlineDict
    library: LibraryConfig | LibraryDict
    storage: StorageConfig | StorageDict
    publishing: PublishingConfig | PublishingDict
    security: SecurityConfig | SecurityDict
