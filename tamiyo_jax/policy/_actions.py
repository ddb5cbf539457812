"""The actions: one table of what each commands and needs, legality as masks, and the choice.

What the packet does not offer is masked before the argmax, so nothing is ever chosen that
would have to be invented.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from types import ModuleType
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float32, Int32

from tamiyo_jax.contracts import (
    Blueprint,
    CircuitBreakerState,
    CommandType,
    SeedOperation,
    SeedStage,
    SystemStatePacket,
)
from tamiyo_jax.errors import NoSeedCandidatesError
from tamiyo_jax.policy._outputs import NUM_ACTIONS, Array, Legality, PolicyOutputs

__all__ = [
    "ACTIONS",
    "Action",
    "ActionRule",
    "Selection",
    "legality",
    "select",
]


class Action(IntEnum):
    """Actions by their index in the policy's logits; 9 to 31 are reserved."""

    GERMINATE = 0
    OPTIMIZER = 1
    PAUSE = 2
    BREAKER_OPEN = 3
    BREAKER_CLOSE = 4
    WAIT = 5
    ADVANCE = 6
    CULL = 7
    FOSSILIZE = 8


@dataclass(frozen=True, slots=True)
class ActionRule:
    """What an action commands, and what it needs.

    Attributes:
      command_type: the command, None for WAIT.
      operations: what it does to a seed, by the stages that it takes seeds in; empty for an
        action that takes no seed.
      needs_blueprint: whether it also takes a blueprint.
      desired_breaker: the state that it wants the host's breaker in.
    """

    command_type: CommandType | None
    operations: Mapping[SeedStage, SeedOperation] = field(
        default_factory=dict[SeedStage, SeedOperation]
    )
    needs_blueprint: bool = False
    desired_breaker: CircuitBreakerState | None = None


_ALIVE = tuple(
    stage for stage in SeedStage if SeedStage.GERMINATED <= stage <= SeedStage.PROBATIONARY
)

ACTIONS: Mapping[Action, ActionRule] = {
    Action.GERMINATE: ActionRule(
        CommandType.SEED, {SeedStage.DORMANT: SeedOperation.GERMINATE}, needs_blueprint=True
    ),
    Action.OPTIMIZER: ActionRule(CommandType.OPTIMIZER),
    Action.PAUSE: ActionRule(CommandType.PAUSE),
    Action.BREAKER_OPEN: ActionRule(
        CommandType.CIRCUIT_BREAKER, desired_breaker=CircuitBreakerState.OPEN
    ),
    Action.BREAKER_CLOSE: ActionRule(
        CommandType.CIRCUIT_BREAKER, desired_breaker=CircuitBreakerState.CLOSED
    ),
    Action.WAIT: ActionRule(None),
    Action.ADVANCE: ActionRule(
        CommandType.SEED,
        {
            SeedStage.GERMINATED: SeedOperation.START_TRAINING,
            SeedStage.TRAINING: SeedOperation.START_GRAFTING,
            SeedStage.BLENDING: SeedOperation.STABILIZE,
        },
    ),
    Action.CULL: ActionRule(CommandType.SEED, dict.fromkeys(_ALIVE, SeedOperation.CULL)),
    Action.FOSSILIZE: ActionRule(
        CommandType.SEED, {SeedStage.PROBATIONARY: SeedOperation.FOSSILIZE}
    ),
}


_NEEDS_BLUEPRINT = np.zeros(NUM_ACTIONS, np.bool_)
_NEEDS_BLUEPRINT[[action for action, rule in ACTIONS.items() if rule.needs_blueprint]] = True

_BREAKERS = {
    action: rule.desired_breaker
    for action, rule in ACTIONS.items()
    if rule.desired_breaker is not None
}

# bool[32, stages]: the stages in which each action takes a seed.
_STAGES = np.zeros((NUM_ACTIONS, len(SeedStage)), np.bool_)
for _action, _rule in ACTIONS.items():
    _STAGES[_action, list(_rule.operations)] = True


def legality(
    packet: SystemStatePacket,
    candidates: Sequence[Blueprint],
    *,
    max_seeds: int,
    max_blueprints: int,
    seedless: bool,
    host_breaker: CircuitBreakerState,
) -> Legality:
    """What may be chosen upon this packet.

    Args:
      packet: the packet.
      candidates: the blueprints in the order of their nodes, the active one first.
      max_seeds: S, the seed rows of the graph.
      max_blueprints: B, the blueprint rows of the graph.
      seedless: the host has no seeds by design, so no seed action is legal.
      host_breaker: state of the host's breaker; only another state than the one it is in
        can be asked for, and none while it is UNKNOWN.

    Returns:
      Masks actions[32], seeds[32, S] and blueprints[B].

    Raises:
      NoSeedCandidatesError: the packet has no seeds and the host is not `seedless`.
    """
    if not packet.seeds and not seedless:
        raise NoSeedCandidatesError(
            f"packet {packet.packet_id} carries no seeds, so the graph upstream is broken; a "
            "host that has none by design sets packet.seedless=True",
            packet_id=packet.packet_id,
        )
    blueprints = np.zeros(max_blueprints, np.bool_)
    offered = frozenset(packet.candidates)
    for row, blueprint in enumerate(candidates[:max_blueprints]):
        blueprints[row] = blueprint.selectable and blueprint.blueprint_id in offered

    seeds = np.zeros((NUM_ACTIONS, max_seeds), np.bool_)
    if not seedless:
        stages = [int(seed.stage) for seed in packet.seeds[:max_seeds]]  # NumPy is slow with enums
        seeds[:, : len(stages)] = _STAGES.take(stages, axis=1)
    actions = np.logical_or.reduce(seeds, axis=1)
    if not blueprints.any():
        actions &= ~_NEEDS_BLUEPRINT
    actions[[Action.PAUSE, Action.WAIT]] = True
    actions[Action.OPTIMIZER] = packet.optimizer_id is not None
    if host_breaker is not CircuitBreakerState.UNKNOWN:
        for action, desired in _BREAKERS.items():
            actions[action] = host_breaker is not desired
    return Legality(actions, seeds, blueprints)


class Selection(NamedTuple):
    """The winner, as indices; `vmap` puts a batch axis before each.

    Attributes:
      action: i32[].
      seed: i32[], row among the seeds; -1 where the action takes none.
      blueprint: i32[], row among the blueprints; -1 where the action takes none.
    """

    action: Int32[Array, ""]
    seed: Int32[Array, ""]
    blueprint: Int32[Array, ""]


def select(outputs: PolicyOutputs, legality: Legality) -> Selection:
    """Choose the legal action with the highest logit, and its seed and blueprint.

    Among equal logits WAIT wins, then the lower index; among equal scores the first row.
    Pure, jittable, vmappable; in NumPy where the outputs are.
    """
    xp = np if isinstance(outputs.policy_logits, np.ndarray) else jnp
    logits = xp.where(legality.actions, outputs.policy_logits, xp.float32(-np.inf))
    waits = xp.asarray(legality.actions)[Action.WAIT] & (logits[Action.WAIT] == xp.max(logits))
    action = xp.where(waits, xp.int32(Action.WAIT), xp.argmax(logits).astype(np.int32))
    blueprints = xp.asarray(legality.blueprints) & xp.asarray(_NEEDS_BLUEPRINT)[action]
    return Selection(
        action,
        _best(xp, outputs.seed_scores, xp.asarray(legality.seeds)[action]),
        _best(xp, outputs.blueprint_scores, blueprints),
    )


def _best(
    xp: ModuleType, scores: Float32[Array, " rows"], legal: Bool[Array, " rows"]
) -> Int32[Array, ""]:
    """Row i32[] of the highest legal score, -1 where none is legal."""
    row = xp.argmax(xp.where(legal, xp.asarray(scores), xp.float32(-np.inf)))
    return xp.where(xp.any(legal), row.astype(np.int32), xp.int32(-1))
