"""The sections of the configuration: every setting with its bounds and its meaning."""

from __future__ import annotations

from typing import Literal, LiteralString, Self

from pydantic import BaseModel, Field, model_validator
from pydantic_core import PydanticCustomError

__all__ = [
    "BreakerConfig",
    "DeadlineConfig",
    "GraphConfig",
    "GuardConfig",
    "HeuristicConfig",
    "LibraryConfig",
    "PacketConfig",
    "PolicyConfig",
    "PublishingConfig",
    "RiskConfig",
    "Section",
    "SecurityConfig",
    "StorageConfig",
]


class Section(BaseModel, frozen=True, extra="forbid", allow_inf_nan=False):
    """A frozen group of settings; unknown names are errors."""


def _impossible(message: LiteralString, *fields: str) -> PydanticCustomError:
    """Make the error for an impossible combination; `fields` are the settings involved."""
    return PydanticCustomError("impossible_combination", message, {"fields": fields})


class PacketConfig(Section, frozen=True):
    """What a state packet may hold."""

    max_metrics: int = Field(
        default=1024, ge=1, description="entries of training_metrics, and of each seed's metrics"
    )
    seedless: bool = Field(default=False, description="the host has no seeds by design")


class GraphConfig(Section, frozen=True):
    """Caps of the graph, and what happens beyond them."""

    max_seeds: int = Field(default=16, ge=1, description="seeds of a packet")
    max_blueprints: int = Field(
        default=8, ge=1, description="the active blueprint and its candidates together"
    )
    max_layers: int = Field(default=512, ge=1, description="layers of a blueprint")
    max_activations: int = Field(default=512, ge=1, description="activations of a blueprint")
    max_parameters: int = Field(default=64, ge=1, description="parameters of a blueprint")
    max_edges: int = Field(default=4096, ge=1, description="edges of one listed relation")
    strict_features: bool = Field(
        default=True, description="a missing required feature is an error"
    )
    overflow: Literal["error", "truncate"] = Field(
        default="error", description="what a graph beyond its caps is"
    )
    normalizer_rate: float = Field(default=0.1, gt=0, le=1, description="weight of the newest step")

    def node_cap(self, node_type: str) -> int:
        """Largest number of nodes of `node_type` in one graph."""
        caps = {
            "global": 1,
            "seed": self.max_seeds,
            "blueprint": self.max_blueprints,
            "layer": self.max_layers,
            "activation": self.max_activations,
            "parameter": self.max_parameters,
        }
        return caps[node_type]


class PolicyConfig(Section, frozen=True):
    """Widths of the network, and how its answers are read.

    `reference` is the default, `small` learns quickly on a laptop.
    """

    sage_width: int = Field(default=256, ge=2, description="width of the GraphSAGE layers")
    gat_width: int = Field(default=128, ge=2, description="width of the attention layers")
    heads: int = Field(default=4, ge=1, description="attention heads")
    blending_methods: tuple[str, ...] = Field(
        default=("linear", "cosine", "warmup_hold"),
        min_length=1,
        description="names of the blending methods, in the order of the network's outputs",
    )
    dropout: float = Field(default=0.2, ge=0, lt=1, description="share dropped while learning")
    risk_semantics: Literal["severity", "max_probability"] = Field(
        default="severity",
        description="the risk score: probability of the two gravest classes, or of the likeliest",
    )
    version: str = Field(
        default="tamiyo-policy-1", min_length=1, description="names the policy in annotations"
    )
    blend_annotations: Literal["off", "CONVEX", "RESIDUAL"] = Field(
        default="off",
        description="whether SEED commands say how the seed joins its host, and the mode of a "
        "seed that has no parameters of another",
    )

    @classmethod
    def reference(cls) -> Self:
        """The widths 256/128 with 4 heads."""
        return cls()

    @classmethod
    def small(cls) -> Self:
        """The widths 32/16 with 2 heads, for learning on a laptop."""
        return cls(sage_width=32, gat_width=16, heads=2)


class HeuristicConfig(Section, frozen=True):
    """The rules of the heuristic policy; counted in epochs unless said otherwise."""

    plateau_epochs: int = Field(
        default=3, ge=1, description="epochs without an improvement that make a plateau"
    )
    plateau_improvement: float = Field(default=0.005, ge=0, description="relative gain that counts")
    probe_ratio: float = Field(
        default=1.0,
        gt=0,
        description="gradient of a candidate, as a multiple of the network's own, that calls for "
        "growth without a plateau",
    )
    min_epochs: int = Field(default=5, ge=0, description="no germination before this epoch")
    embargo_epochs: int = Field(default=5, ge=0, description="no germination so soon after a cull")
    train_epochs: int = Field(default=3, ge=1, description="training of a seed before it blends")
    cull_penalty: float = Field(default=2.0, ge=0, description="penalty of a culled blueprint")
    penalty_decay: float = Field(
        default=0.5, gt=0, lt=1, description="factor on every penalty per epoch"
    )
    penalty_skip: float = Field(
        default=0.1, ge=0, description="a blueprint with a higher penalty waits its turn"
    )
    harm_fraction: float = Field(
        default=0.02, ge=0, description="relative loss that counts as harm"
    )
    harm_epochs: int = Field(default=3, ge=1, description="epochs of harm that cull a seed")
    rising_epochs: int = Field(default=3, ge=1, description="rises in a row that call for a brake")
    brake: float = Field(
        default=0.2, gt=0, lt=1, description="share of the learning rate taken off"
    )
    smoothing: float = Field(
        default=0.3, gt=0, le=1, description="weight of the newest training loss"
    )


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
            raise _impossible(
                "max_cooldown_ms must be at least cooldown_ms", "max_cooldown_ms", "cooldown_ms"
            )
        return self


class DeadlineConfig(Section, frozen=True):
    """Budgets in milliseconds, and where inference runs."""

    inference_ms: float = Field(default=45.0, gt=0, description="budget of the policy")
    metadata_ms: float = Field(default=25.0, gt=0, description="budget of fetching blueprints")
    execution_ms: int = Field(default=5, ge=1, description="what a command grants the host")
    warmup_s: float = Field(default=60.0, gt=0, description="to prepare a new layout")
    device: str = Field(default="cpu", min_length=1, description="JAX platform of the worker")
    spares: int = Field(default=1, ge=0, description="warm workers that stand by")
    memory_mb: int = Field(default=8192, ge=256, description="data that a worker may allocate")


class LibraryConfig(Section, frozen=True):
    """The cache of blueprints."""

    cache_blueprints: int = Field(
        default=256, ge=1, description="blueprints kept, the least recently used leave first"
    )
    max_staleness_ms: float = Field(
        default=5_000.0, gt=0, description="without word from the library, steps raise after it"
    )


class StorageConfig(Section, frozen=True):
    """The run directory."""

    durability: Literal["group", "always"] = Field(
        default="group", description="a step returns once its record is written, or on disk"
    )
    flush_ms: float = Field(
        default=5.0, gt=0, description="how long a record may wait for the disk"
    )
    segment_bytes: int = Field(
        default=4 * 1024 * 1024, ge=64 * 1024, description="size at which the next segment begins"
    )
    retention_hours: float | None = Field(
        default=None, gt=0, description="age at which whole segments are removed; null keeps all"
    )
    sync_directories: bool = Field(
        default=True, description="sync new and removed names; off where the file system cannot"
    )
    recovery: Literal["repair", "strict"] = Field(
        default="repair", description="quarantine what is corrupt and go on, or refuse to open"
    )
    record_packets: bool = Field(
        default=True, description="records hold packets and outputs, for replaying and learning"
    )
    observation_window_epochs: int = Field(
        default=1, ge=1, description="steps after a command that its synthesised report covers"
    )
    max_windows: int = Field(
        default=256, ge=1, description="observation windows of a run that are open at once"
    )
    max_runs: int = Field(
        default=256, ge=1, description="training runs remembered; the longest idle is forgotten"
    )


class PublishingConfig(Section, frozen=True):
    """Sending reports to a bus: at least once, with full jitter between attempts."""

    backoff_ms: float = Field(default=1_000.0, gt=0, description="bound of the first wait")
    multiplier: float = Field(default=2.0, ge=1, description="factor on the bound per attempt")
    max_retries: int = Field(
        default=3, ge=0, description="retries after which a report leaves the queue"
    )
    max_pending: int = Field(
        default=10_000, ge=1, description="reports that wait at once; the oldest are dropped"
    )
    max_age_s: float = Field(
        default=86_400.0, gt=0, description="age at which a waiting report is dropped"
    )


class SecurityConfig(Section, frozen=True):
    """Signing of messages; the secret itself is never part of the configuration."""

    secret_env: str = Field(
        default="TAMIYO_SECRET",
        pattern=r"^[A-Za-z_][A-Za-z0-9_]*$",
        description="name of the variable that holds the secret",
    )
    max_age_s: float = Field(default=60.0, gt=0, description="age at which a message is refused")
    max_future_s: float = Field(default=5.0, ge=0, description="how far clocks may differ")
    nonce_window_s: float = Field(
        default=300.0, gt=0, description="how long ids of messages are remembered"
    )
    nonce_capacity: int = Field(default=100_000, ge=1, description="ids remembered at once")
    update_freshness_s: float = Field(
        default=3_600.0, gt=0, description="age at which a policy update is refused"
    )

    @model_validator(mode="after")
    def _fresh_is_remembered(self) -> Self:
        if self.nonce_window_s < self.max_age_s + self.max_future_s:
            raise _impossible(
                "nonce_window_s must be at least max_age_s + max_future_s",
                "nonce_window_s",
                "max_age_s",
                "max_future_s",
            )
        return self
