"""Blueprints: descriptions of a network, or of a module that a seed can be grown into."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from typing import ClassVar

from pydantic import ConfigDict

__all__ = [
    "ActivationSpec",
    "Blueprint",
    "BlueprintTier",
    "HandlingClass",
    "HazardBand",
    "LayerEdge",
    "LayerSpec",
    "MonitoredLayer",
    "ParameterSpec",
    "SafetySheet",
]


class BlueprintTier(IntEnum):
    """How much is known about a blueprint."""

    UNSPECIFIED = 0
    SAFE = 1
    EXPERIMENTAL = 2
    HIGH_RISK = 3


class HazardBand(StrEnum):
    """Hazard of a blueprint, by its safety sheet."""

    LOW = "LOW"
    MEDIUM = "MEDIUM"
    HIGH = "HIGH"
    CRITICAL = "CRITICAL"


class HandlingClass(StrEnum):
    """How a blueprint must be handled, by its safety sheet."""

    STANDARD = "standard"
    RESTRICTED = "restricted"
    QUARANTINE = "quarantine"


@dataclass(frozen=True, slots=True)
class SafetySheet:
    """A blueprint's safety data sheet; its risk score is the blueprint's risk."""

    risk_score: float
    hazard_band: HazardBand
    handling_class: HandlingClass
    resource_profile: str = ""
    provenance: str = ""
    issued_at: str = ""


@dataclass(frozen=True, slots=True)
class LayerSpec:
    """A layer; None means absent. `latency_ms` in milliseconds, `parameter_count` in parameters."""

    layer_id: str
    type: str
    depth: int
    activation: str = ""
    latency_ms: float | None = None
    parameter_count: int | None = None
    dropout_rate: float | None = None
    weight_norm: float | None = None
    gradient_norm: float | None = None
    input_channels: int | None = None
    output_channels: int | None = None


@dataclass(frozen=True, slots=True)
class ActivationSpec:
    """An activation; None means absent. `computational_cost` in floating-point operations."""

    activation_id: str
    type: str
    saturation_rate: float | None = None
    gradient_flow: float | None = None
    computational_cost: float | None = None
    nonlinearity_strength: float | None = None


@dataclass(frozen=True, slots=True)
class ParameterSpec:
    """A parameter that may be set within bounds."""

    name: str
    min: float
    max: float
    span: float | None = None
    default: float | None = None


@dataclass(frozen=True, slots=True)
class LayerEdge:
    """Output of layer `source` feeds layer `target`; both are indices into `layers`."""

    source: int
    target: int
    strength: float | None = None


@dataclass(frozen=True, slots=True)
class MonitoredLayer:
    """Seed `seed_id` watches layer `layer_index`, an index into `layers`."""

    seed_id: str
    layer_index: int
    weight: float | None = None


@dataclass(frozen=True, slots=True)
class Blueprint:
    """A network's structure, its bounds and its risk.

    Attributes:
      blueprint_id: unique id, non-empty, at most 256 bytes.
      name: a name for display.
      revision: set by the library, grows with every change.
      tier: how well the blueprint is known.
      risk: in [0, 1]; `effective_risk` takes the safety sheet's risk instead, if there is one.
      stage: maturity, 0 to 9.
      quarantine_only: may not be grown.
      approval_required: may be grown only when `approved`.
      approved: whether the approval was given.
      description: a text for display.
      candidate_score: a prior preference, None where there is none.
      allowed_parameters: bounds by parameter name.
      layers: the layers, in order.
      activations: the activations, in order.
      parameters: the parameters that may be set.
      layer_edges: connections between layers; None if `chain` is set.
      chain: each layer feeds the next.
      monitored_layers: layers that seeds watch; empty means each seed watches its own layer.
      monitor_thresholds: ``risk_max`` and ``stage_min`` (compared with stage/11).
      relation_pairs: (source, target) pairs by relation, for a relation that would otherwise be
        complete.
      allowed_blending_methods: names of blending methods; empty allows none.
      allowed_parameters_by_seed_id: parameter names by seed; an empty list allows none, no
        entry allows all.
      optimizer_family: family of the optimiser, such as ``adam``.
      hazard_class: free-form class of the hazard.
      safety: the safety data sheet.
    """

    # How JSON is read, for the parts too: exact types, finite numbers, no unknown names.
    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(
        extra="forbid", allow_inf_nan=False, strict=True
    )

    blueprint_id: str
    name: str = ""
    revision: int = 0
    tier: BlueprintTier = BlueprintTier.UNSPECIFIED
    risk: float | None = None
    stage: int = 0
    quarantine_only: bool = False
    approval_required: bool = False
    approved: bool = True
    description: str = ""
    candidate_score: float | None = None
    allowed_parameters: Mapping[str, tuple[float, float]] = field(
        default_factory=dict[str, tuple[float, float]]
    )
    layers: tuple[LayerSpec, ...] = ()
    activations: tuple[ActivationSpec, ...] = ()
    parameters: tuple[ParameterSpec, ...] = ()
    layer_edges: tuple[LayerEdge, ...] | None = None
    chain: bool = False
    monitored_layers: tuple[MonitoredLayer, ...] = ()
    monitor_thresholds: Mapping[str, float] = field(default_factory=dict[str, float])
    relation_pairs: Mapping[str, tuple[tuple[int, int], ...]] = field(
        default_factory=dict[str, tuple[tuple[int, int], ...]]
    )
    allowed_blending_methods: tuple[str, ...] = ()
    allowed_parameters_by_seed_id: Mapping[str, tuple[str, ...]] = field(
        default_factory=dict[str, tuple[str, ...]]
    )
    optimizer_family: str = ""
    hazard_class: str = ""
    safety: SafetySheet | None = None

    @property
    def effective_risk(self) -> float | None:
        """The safety sheet's risk score where there is a sheet, else `risk`."""
        return self.risk if self.safety is None else self.safety.risk_score

    @property
    def selectable(self) -> bool:
        """Whether a seed may be grown into this blueprint."""
        quarantined = self.quarantine_only or (
            self.safety is not None and self.safety.handling_class is HandlingClass.QUARANTINE
        )
        return not quarantined and (self.approved or not self.approval_required)
