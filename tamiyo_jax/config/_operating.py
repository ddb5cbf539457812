"""Settings of what surrounds a decision: deadlines, files, servers and secrets."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from tamiyo_jax.config._section import Section, make_impossible

__all__ = [
    "DeadlineConfig",
    "LibraryConfig",
    "PublishingConfig",
    "SecurityConfig",
    "StorageConfig",
]


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
    retention_bytes: int | None = Field(
        default=None,
        ge=64 * 1024,
        description="size of the journal above which its oldest segments are removed; null keeps "
        "all",
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
            raise make_impossible(
                "nonce_window_s must be at least max_age_s + max_future_s",
                "nonce_window_s",
                "max_age_s",
                "max_future_s",
            )
        return self
