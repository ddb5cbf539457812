"""Commands from the controller to the host."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum

__all__ = [
    "AdaptationCommand",
    "CircuitBreakerAdjustment",
    "CircuitBreakerState",
    "CommandType",
    "OptimizerAdjustment",
    "Payload",
    "Rollback",
    "SeedAdjustment",
    "SeedOperation",
]


class CommandType(IntEnum):
    """The kind of a command (Leyline ``CommandType``)."""

    UNKNOWN = 0
    SEED = 1
    ROLLBACK = 2
    OPTIMIZER = 3
    CIRCUIT_BREAKER = 4
    PAUSE = 5
    EMERGENCY = 6
    STRUCTURAL_PRUNING = 7


class SeedOperation(IntEnum):
    """The operation of a SEED command (Leyline ``SeedOperation``)."""

    UNKNOWN = 0
    GERMINATE = 1
    START_TRAINING = 2
    START_GRAFTING = 3
    STABILIZE = 4
    EVALUATE = 5
    FINE_TUNE = 6
    FOSSILIZE = 7
    CULL = 8
    CANCEL = 9


class CircuitBreakerState(IntEnum):
    """State of a circuit breaker (Leyline ``CircuitBreakerState``)."""

    UNKNOWN = 0
    CLOSED = 1
    OPEN = 2
    HALF_OPEN = 3


@dataclass(frozen=True, slots=True)
class SeedAdjustment:
    """Payload of a SEED command; `blueprint_id` is what to germinate, else None."""

    operation: SeedOperation
    blueprint_id: str | None = None
    parameters: Mapping[str, float] = field(default_factory=dict[str, float])


@dataclass(frozen=True, slots=True)
class OptimizerAdjustment:
    """Payload of an OPTIMIZER command; ``lr_delta`` is relative."""

    optimizer_id: str
    hyperparameters: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class CircuitBreakerAdjustment:
    """Payload of a CIRCUIT_BREAKER command, for the host's breaker."""

    desired_state: CircuitBreakerState
    rationale: str = ""


@dataclass(frozen=True, slots=True)
class Rollback:
    """Payload of a ROLLBACK command: the checkpoint to restore."""

    checkpoint: str


Payload = SeedAdjustment | OptimizerAdjustment | CircuitBreakerAdjustment | Rollback


@dataclass(frozen=True, slots=True)
class AdaptationCommand:
    """A command; it names only seeds, blueprints and optimisers that exist.

    Attributes:
      command_id: a UUID.
      command_type: the kind of command; `payload` is of the matching class.
      issued_at_ns: nanoseconds since the epoch; None only if a peer left it out, which
        `verify` refuses.
      execution_deadline_ms: time that the host may take to apply it, in milliseconds.
      target_seed_id: the seed that a SEED command acts on, else None.
      issued_by: name of the sender.
      payload: None for PAUSE.
      annotations: facts about the decision, and the signature, as text by name.
    """

    command_id: str
    command_type: CommandType
    issued_at_ns: int | None
    execution_deadline_ms: int
    target_seed_id: str | None = None
    issued_by: str = "tamiyo"
    payload: Payload | None = None
    annotations: Mapping[str, str] = field(default_factory=dict[str, str])
