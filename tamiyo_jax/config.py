"""One frozen configuration tree, resolved once and handed to every part.

`TamiyoConfig()` is complete without arguments and reads nothing from outside.
`TamiyoConfig.load()` is the one place that looks at a file and at the environment.
"""

from __future__ import annotations

import os
import tomllib
from functools import reduce
from pathlib import Path
from typing import Literal, Self, cast

from pydantic import BaseModel, Field, ValidationError, model_validator
from pydantic_settings import BaseSettings, EnvSettingsSource, SettingsError

from tamiyo_jax.errors import ConfigurationError

__all__ = [
    "BreakerConfig",
    "DeadlineConfig",
    "GraphConfig",
    "GuardConfig",
    "HeuristicConfig",
    "PacketConfig",
    "PolicyConfig",
    "RiskConfig",
    "SecurityConfig",
    "StorageConfig",
    "TamiyoConfig",
]


_PREFIX = "TAMIYO__"

Values = dict[str, object]


class Section(BaseModel, frozen=True, extra="forbid", allow_inf_nan=False):
    """A frozen group of settings; unknown names are errors."""


class PacketConfig(Section, frozen=True):
    """What a state packet may hold."""

    max_metrics: int = Field(
        default=1024, ge=1, description="entries of training_metrics, and of a seed"
    )
    seedless: bool = Field(default=False, description="the host has no seeds by design")


class GraphConfig(Section, frozen=True):
    """Caps of the graph, and what happens at their edge."""

    max_seeds: int = Field(default=16, ge=1)
    max_blueprints: int = Field(default=8, ge=1)
    max_layers: int = Field(default=512, ge=1)
    max_activations: int = Field(default=512, ge=1)
    max_parameters: int = Field(default=64, ge=1)
    max_edges: int = Field(default=4096, ge=1, description="edges of one listed relation")
    strict_features: bool = Field(
        default=True, description="a missing required feature is an error"
    )
    overflow: Literal["error", "truncate"] = "error"
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
    """Widths of the network. `reference` is the default, `small` fits a laptop's patience."""

    sage_width: int = Field(default=256, ge=2)
    gat_width: int = Field(default=128, ge=2)
    heads: int = Field(default=4, ge=1)
    blending_methods: tuple[str, ...] = ("linear", "cosine", "warmup_hold")
    dropout: float = Field(default=0.2, ge=0, lt=1)
    risk_semantics: Literal["severity", "max_probability"] = "severity"
    version: str = Field(default="tamiyo-policy-1", min_length=1)

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

    plateau_epochs: int = Field(default=3, ge=1)
    plateau_improvement: float = Field(default=0.005, ge=0, description="relative gain that counts")
    min_epochs: int = Field(default=5, ge=0)
    embargo_epochs: int = Field(default=5, ge=0)
    train_epochs: int = Field(default=3, ge=1)
    cull_penalty: float = Field(default=2.0, ge=0)
    penalty_decay: float = Field(default=0.5, gt=0, lt=1)
    penalty_skip: float = Field(default=0.1, ge=0)
    harm_fraction: float = Field(
        default=0.02, ge=0, description="relative loss that counts as harm"
    )
    harm_epochs: int = Field(default=3, ge=1)
    rising_epochs: int = Field(default=3, ge=1, description="rises in a row that call for a brake")
    brake: float = Field(
        default=0.2, gt=0, lt=1, description="share of the learning rate taken off"
    )
    smoothing: float = Field(
        default=0.3, gt=0, le=1, description="weight of the newest training loss"
    )


class RiskConfig(Section, frozen=True):
    """Thresholds of the rule table, of conservative mode and of the pause budget."""

    policy_risk_critical: float = 0.98
    policy_risk_elevated: float = 0.85
    blueprint_quarantine: float = 0.8
    blueprint_risk: float = 0.5
    loss_spike: float = 0.15
    loss_warning: float = 0.075
    hook_budget_ms: float = 50.0
    step_latency_ms: float = 120.0
    apply_ms: float = 30.0
    finalize_ms: float = 30.0
    loss_volatility: float = 0.1125
    grad_variance: float = 1.0
    grad_conflict: float = 0.5
    gpu_util_percent: float = 95.0
    gpu_mem_free_gb: float = 0.2
    cpu_util_percent: float = 95.0
    coverage_critical: float = 0.10
    coverage_warning: float = 0.30
    calm_steps: int = Field(default=5, ge=1)
    pause_budget: int = Field(default=100, ge=1)
    pause_window_steps: int = Field(default=1000, ge=1)


class GuardConfig(Section, frozen=True):
    """Guard mode: the gate alone, without a policy."""

    brake: float = Field(default=0.3, gt=0, lt=1)
    cooldown_steps: int = Field(default=50, ge=1)


class BreakerConfig(Section, frozen=True):
    """The controller's own two circuit breakers."""

    failures: int = Field(default=3, ge=1, description="consecutive failures that open it")
    cooldown_ms: float = Field(default=1_000.0, gt=0)
    max_cooldown_ms: float = Field(default=60_000.0, gt=0)

    @model_validator(mode="after")
    def _cooldown_grows(self) -> Self:
        if self.max_cooldown_ms < self.cooldown_ms:
            raise ValueError("max_cooldown_ms must be at least cooldown_ms")
        return self


class DeadlineConfig(Section, frozen=True):
    """Budgets in milliseconds, and where inference runs."""

    inference_ms: float = Field(default=45.0, gt=0)
    metadata_ms: float = Field(default=25.0, gt=0)
    execution_ms: int = Field(default=5, ge=1, description="what a command grants the host")
    warmup_s: float = Field(default=60.0, gt=0)
    device: str = Field(default="cpu", min_length=1)


class StorageConfig(Section, frozen=True):
    """The run directory."""

    durability: Literal["group", "always"] = "group"
    flush_ms: float = Field(default=5.0, gt=0)
    segment_bytes: int = Field(default=4 * 1024 * 1024, ge=64 * 1024)
    retention_hours: float = Field(default=24.0, gt=0)
    recovery: Literal["repair", "strict"] = "repair"
    record_packets: bool = True
    observation_window_epochs: int = Field(default=1, ge=1)


class SecurityConfig(Section, frozen=True):
    """Signing of commands; the secret itself is never part of the configuration."""

    secret_env: str = Field(default="TAMIYO_SECRET", min_length=1)
    max_age_s: float = Field(default=60.0, gt=0)
    max_future_s: float = Field(default=5.0, ge=0)
    nonce_window_s: float = Field(default=300.0, gt=0)
    nonce_capacity: int = Field(default=100_000, ge=1)

    @model_validator(mode="after")
    def _fresh_is_remembered(self) -> Self:
        if self.nonce_window_s < self.max_age_s + self.max_future_s:
            raise ValueError("nonce_window_s must be at least max_age_s + max_future_s")
        return self


class TamiyoConfig(Section, frozen=True):
    """All settings of a controller, frozen; each section takes a plain dict too."""

    packet: PacketConfig = PacketConfig()
    graph: GraphConfig = GraphConfig()
    policy: PolicyConfig = PolicyConfig()
    heuristic: HeuristicConfig = HeuristicConfig()
    risk: RiskConfig = RiskConfig()
    guard: GuardConfig = GuardConfig()
    breakers: BreakerConfig = BreakerConfig()
    deadlines: DeadlineConfig = DeadlineConfig()
    storage: StorageConfig = StorageConfig()
    security: SecurityConfig = SecurityConfig()

    @classmethod
    def load(cls, path: str | os.PathLike[str] | None = None, **overrides: object) -> Self:
        """Resolve a TOML file, ``TAMIYO__SECTION__FIELD`` variables and keyword overrides.

        Later ones win, field by field. Unknown sections and fields are errors. A variable
        holds the plain value, or a list as JSON.

        Args:
          path: a TOML file with one table per section; None reads no file.
          **overrides: sections, each a dict or a section object.

        Raises:
          ConfigurationError: a value is unknown, malformed or impossible in combination.
        """
        sources = [
            _from_file(path),
            _from_environment(cls),
            {
                name: value.model_dump(exclude_unset=True) if isinstance(value, Section) else value
                for name, value in overrides.items()
            },
        ]
        try:
            return cls.model_validate(reduce(_merged, sources))
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise ConfigurationError(
                f"configuration: {where}: {first['msg']}", field=where, value=first.get("input")
            ) from error


def _from_file(path: str | os.PathLike[str] | None) -> Values:
    if path is None:
        return {}
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigurationError(
            f"configuration file {path} does not exist", path=str(path)
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(
            f"configuration file {path} is not TOML: {error}", path=str(path)
        ) from error


def _from_environment(config: type[BaseModel]) -> Values:
    # The source asks for settings, but reads no more of them than the fields of any model.
    settings = cast(type[BaseSettings], config)
    source = EnvSettingsSource(settings, env_prefix=_PREFIX, env_nested_delimiter="__")
    try:
        known = cast(Values, source())
    except SettingsError as error:
        raise ConfigurationError(
            f"configuration: a variable {_PREFIX}… is not JSON where a list is due: {error}"
        ) from error
    names = {
        variable.removeprefix(_PREFIX.lower()).partition("__")[0]: text
        for variable, text in source.env_vars.items()
        if variable.startswith(_PREFIX.lower())
    }
    # It passes over sections that it does not know; here they stay, to be refused.
    return {**{name: text for name, text in names.items() if name not in known}, **known}


def _merged(below: Values, above: Values) -> Values:
    """Both, where `above` wins field by field within a section."""
    merged = below | above
    for name, section in above.items():
        under = below.get(name)
        if isinstance(section, dict) and isinstance(under, dict):
            merged[name] = {**cast(Values, under), **cast(Values, section)}
    return merged
