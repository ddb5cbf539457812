"""What the heuristic policy remembers, and how a packet changes it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TypeVar

from tamiyo_jax.config import HeuristicConfig
from tamiyo_jax.contracts import SeedStage, SystemStatePacket

__all__ = ["ALIVE", "HeuristicState", "observe"]

V = TypeVar("V")

ALIVE = frozenset(
    stage for stage in SeedStage if SeedStage.GERMINATED <= stage <= SeedStage.PROBATIONARY
)
"""Stages in which a seed counts as being in training."""

_HEARD = frozenset({SeedStage.BLENDING, SeedStage.PROBATIONARY})
"""Stages in which a seed on its way has a share of the output, so that it may do harm."""


@dataclass(frozen=True, slots=True)
class HeuristicState:
    """Counters and memories; every field is plain JSON.

    Attributes:
      epoch: the newest epoch seen, -1 before the first packet.
      measured_epoch: the newest epoch whose loss was counted.
      validates: whether a validation loss was ever given; from then on it alone counts.
      smoothed: exponentially smoothed training loss.
      loss: the loss last counted.
      best: the loss that an improvement is measured against.
      stalled: epochs since the last improvement, or since a seed last germinated.
      rises: rises of the loss in a row.
      culled_at: epoch of the last cull.
      turn: germinations so far; whose turn it is among the blueprints.
      penalties: by blueprint that was culled.
      stages: stage of each seed in the last packet.
      entered: epoch in which each seed entered its stage.
      entry_loss: validation loss at that time, by seed, where there was one.
      harm: epochs in a row in which each seed's stage made validation worse.
      asked: the blueprint last asked for, by dormant seed.
      grown: the blueprint that each living seed grows, as far as it was asked for here.
    """

    epoch: int = -1
    measured_epoch: int = -1
    validates: bool = False
    smoothed: float | None = None
    loss: float | None = None
    best: float | None = None
    stalled: int = 0
    rises: int = 0
    culled_at: int | None = None
    turn: int = 0
    penalties: Mapping[str, float] = field(default_factory=dict[str, float])
    stages: Mapping[str, int] = field(default_factory=dict[str, int])
    entered: Mapping[str, int] = field(default_factory=dict[str, int])
    entry_loss: Mapping[str, float] = field(default_factory=dict[str, float])
    harm: Mapping[str, int] = field(default_factory=dict[str, int])
    asked: Mapping[str, str] = field(default_factory=dict[str, str])
    grown: Mapping[str, str] = field(default_factory=dict[str, str])


def observe(
    config: HeuristicConfig, state: HeuristicState, packet: SystemStatePacket
) -> HeuristicState:
    """Take in a packet: epochs, then losses, then what became of the seeds."""
    state = _epochs(config, state, packet)
    state = _losses(config, state, packet)
    return _seeds(config, state, packet)


def _epochs(
    config: HeuristicConfig, state: HeuristicState, packet: SystemStatePacket
) -> HeuristicState:
    """Penalties fade with every epoch."""
    passed = packet.current_epoch - state.epoch
    if passed <= 0:
        return state
    fade = config.penalty_decay**passed
    penalties = {name: penalty * fade for name, penalty in state.penalties.items()}
    return replace(state, epoch=packet.current_epoch, penalties=penalties)


def _losses(
    config: HeuristicConfig, state: HeuristicState, packet: SystemStatePacket
) -> HeuristicState:
    """Count the first loss of every epoch; a loss that is not finite is ignored here."""
    training, validation = _finite(packet.training_loss), _finite(packet.validation_loss)
    if training is not None:
        before = training if state.smoothed is None else state.smoothed
        smoothed = _finite(before + config.smoothing * (training - before))
        # A step beyond every float cannot be smoothed: start afresh from the newest loss.
        state = replace(state, smoothed=training if smoothed is None else smoothed)
    if validation is not None and not state.validates:
        # Counts over training losses say nothing about validation losses: start afresh.
        state = replace(state, validates=True, loss=None, best=None, stalled=0, rises=0)
    loss = validation if state.validates else state.smoothed
    if loss is None or state.measured_epoch >= state.epoch:
        return state
    improved = state.best is None or (
        loss < state.best - config.plateau_improvement * abs(state.best)
    )
    rose = state.loss is not None and loss > state.loss
    state = replace(
        state,
        measured_epoch=state.epoch,
        loss=loss,
        best=loss if improved else state.best,
        stalled=0 if improved else state.stalled + 1,
        rises=state.rises + 1 if rose else 0,
    )
    return _count_harm(config, state, loss) if state.validates else state


def _count_harm(config: HeuristicConfig, state: HeuristicState, loss: float) -> HeuristicState:
    harm = {
        seed_id: state.harm.get(seed_id, 0) + 1
        for seed_id, entry in state.entry_loss.items()
        if loss > entry + config.harm_fraction * abs(entry)
    }
    return replace(state, harm=harm)


def _seeds(
    config: HeuristicConfig, state: HeuristicState, packet: SystemStatePacket
) -> HeuristicState:
    """Read off the stages what was germinated, what moved on, and what was culled."""
    stages = {seed.seed_id: int(seed.stage) for seed in packet.seeds}
    for seed_id, stage in stages.items():
        before = state.stages.get(seed_id)
        if before == stage:
            continue
        state = _enter(state, seed_id, heard=stage in _HEARD)
        if before == SeedStage.DORMANT and stage in ALIVE:
            state = _note_germination(state, seed_id)
        elif before in ALIVE and stage not in ALIVE and stage != SeedStage.FOSSILIZED:
            state = _note_cull(config, state, seed_id)
    known = {
        name: {key: value for key, value in getattr(state, name).items() if key in stages}
        for name in ("entered", "entry_loss", "harm", "asked", "grown")
    }
    return replace(state, stages=stages, **known)


def _enter(state: HeuristicState, seed_id: str, *, heard: bool) -> HeuristicState:
    """Record the stage that a seed enters, and the validation loss with which it is compared."""
    entry_loss = _drop_key(state.entry_loss, seed_id)
    if heard and state.validates and state.loss is not None:
        entry_loss[seed_id] = state.loss
    return replace(
        state,
        entered={**state.entered, seed_id: state.epoch},
        entry_loss=entry_loss,
        harm=_drop_key(state.harm, seed_id),
    )


def _note_germination(state: HeuristicState, seed_id: str) -> HeuristicState:
    grown = _drop_key(state.grown, seed_id)
    if seed_id in state.asked:
        grown[seed_id] = state.asked[seed_id]
    asked = _drop_key(state.asked, seed_id)
    return replace(state, turn=state.turn + 1, stalled=0, asked=asked, grown=grown)


def _note_cull(config: HeuristicConfig, state: HeuristicState, seed_id: str) -> HeuristicState:
    penalties = dict(state.penalties)
    if seed_id in state.grown:
        penalties[state.grown[seed_id]] = config.cull_penalty
    return replace(
        state, culled_at=state.epoch, penalties=penalties, grown=_drop_key(state.grown, seed_id)
    )


def _drop_key(mapping: Mapping[str, V], key: str) -> dict[str, V]:
    return {name: value for name, value in mapping.items() if name != key}


def _finite(value: float | None) -> float | None:
    return float(value) if value is not None and math.isfinite(value) else None
