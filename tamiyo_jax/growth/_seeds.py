"""The life of a seed: its state, the operations that move it, and what time does to it.

    DORMANT → GERMINATED → TRAINING → BLENDING → PROBATIONARY → FOSSILIZED
                   └───────────┴─────────┴────────────┴→ CULLED → EMBARGOED → RESETTING → DORMANT

Operations (commands) move a seed along the upper line and out of it; the way back to
DORMANT is timed by the host. Everything here works on arrays and traces under `jit` and
`vmap`, except `transition`, which must see the stage in order to refuse.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float32, Int32

from tamiyo_jax.contracts import SeedOperation, SeedStage
from tamiyo_jax.errors import IllegalTransitionError
from tamiyo_jax.growth._blending import BlendSchedule, alpha_at

__all__ = [
    "TRANSITIONS",
    "SlotState",
    "Timing",
    "dormant",
    "enter",
    "is_live",
    "tick",
    "transition",
]

_CULLABLE = (
    SeedStage.GERMINATED,
    SeedStage.TRAINING,
    SeedStage.BLENDING,
    SeedStage.PROBATIONARY,
)

TRANSITIONS: Mapping[SeedOperation, Mapping[SeedStage, SeedStage]] = MappingProxyType(
    {
        SeedOperation.GERMINATE: {SeedStage.DORMANT: SeedStage.GERMINATED},
        SeedOperation.START_TRAINING: {SeedStage.GERMINATED: SeedStage.TRAINING},
        SeedOperation.START_GRAFTING: {SeedStage.TRAINING: SeedStage.BLENDING},
        SeedOperation.STABILIZE: {SeedStage.BLENDING: SeedStage.PROBATIONARY},
        SeedOperation.FOSSILIZE: {SeedStage.PROBATIONARY: SeedStage.FOSSILIZED},
        SeedOperation.CULL: dict.fromkeys(_CULLABLE, SeedStage.CULLED),
    }
)
"""Where each operation leads, by the stage it starts from; every other pair is illegal."""


class Timing(NamedTuple):
    """What the host times itself, in optimiser steps.

    Attributes:
      blend_steps: length of the blend that a schedule's fractions refer to.
      embargo_steps: how long a culled seed stays EMBARGOED.
    """

    blend_steps: int
    embargo_steps: int


class SlotState(NamedTuple):
    """Where one slot's seed is in its life; all leaves are scalars.

    Attributes:
      stage: i32[], a `SeedStage`.
      blueprint: i32[], index of the grown blueprint in the bank's sorted ids.
      alpha: f32[] in [0, 1], the seed's share of the slot's output.
      stage_steps: i32[], steps in this stage.
      age_steps: i32[], steps since germination, 0 while dormant.
      schedule: how alpha rises while BLENDING.
    """

    stage: Int32[Array, "*slots"]
    blueprint: Int32[Array, "*slots"]
    alpha: Float32[Array, "*slots"]
    stage_steps: Int32[Array, "*slots"]
    age_steps: Int32[Array, "*slots"]
    schedule: BlendSchedule


def dormant() -> SlotState:
    """State of a slot in which nothing has grown."""
    return SlotState(
        stage=jnp.int32(SeedStage.DORMANT),
        blueprint=jnp.int32(0),
        alpha=jnp.float32(0),
        stage_steps=jnp.int32(0),
        age_steps=jnp.int32(0),
        schedule=BlendSchedule(jnp.int32(0), jnp.float32(0), jnp.float32(1)),
    )


def is_live(stage: Int32[Array, ""]) -> Bool[Array, ""]:
    """bool[]: whether a seed in `stage` learns: TRAINING to FOSSILIZED, SHADOWING excepted."""
    learning = (
        SeedStage.TRAINING,
        SeedStage.BLENDING,
        SeedStage.PROBATIONARY,
        SeedStage.FOSSILIZED,
    )
    return jnp.any(stage == jnp.array(learning, jnp.int32))


def enter(state: SlotState, stage: jax.Array | SeedStage) -> SlotState:
    """Put the seed at the beginning of `stage` (i32[], may be traced), legal or not.

    Alpha becomes 1 where the seed counts fully, and 0 everywhere else: a blend starts at 0.
    """
    stage = jnp.asarray(stage, jnp.int32)
    full = (stage == SeedStage.PROBATIONARY) | (stage == SeedStage.FOSSILIZED)
    return state._replace(
        stage=stage,
        alpha=full.astype(jnp.float32),
        stage_steps=jnp.zeros_like(state.stage_steps),
        age_steps=jnp.where(stage == SeedStage.DORMANT, 0, state.age_steps),
    )


def transition(state: SlotState, operation: SeedOperation) -> SlotState:
    """Apply an operation to a seed.

    Args:
      state: the slot's state; its stage must be concrete, so call this outside `jit`.
      operation: what to do.

    Returns:
      The state at the beginning of the stage that `TRANSITIONS` names.

    Raises:
      IllegalTransitionError: the seed's stage does not take this operation.
    """
    stage = SeedStage(int(state.stage))
    starts = TRANSITIONS.get(operation, {})
    if stage not in starts:
        allowed = ", ".join(start.name for start in starts) or "no stage of this host"
        raise IllegalTransitionError(
            f"operation {operation.name} is not possible in stage {stage.name}; "
            f"it starts from {allowed}",
            stage=stage,
            operation=operation,
        )
    return enter(state, jnp.int32(starts[stage]))


def tick(state: SlotState, timing: Timing) -> SlotState:
    """Let one optimiser step pass: alpha follows its schedule, a culled seed comes home.

    CULLED and RESETTING last one step each, EMBARGOED lasts `timing.embargo_steps`.
    """
    steps = state.stage_steps + 1
    age = jnp.where(state.stage == SeedStage.DORMANT, 0, state.age_steps + 1)
    blended = alpha_at(state.schedule, steps.astype(jnp.float32) / timing.blend_steps)
    alpha = jnp.where(state.stage == SeedStage.BLENDING, blended, state.alpha)
    stayed = state._replace(alpha=alpha, stage_steps=steps, age_steps=age)
    due = (
        (state.stage == SeedStage.CULLED)
        | (state.stage == SeedStage.RESETTING)
        | ((state.stage == SeedStage.EMBARGOED) & (steps >= timing.embargo_steps))
    )
    # CULLED, EMBARGOED and RESETTING are numbered in the order in which they are passed.
    following = jnp.where(
        state.stage == SeedStage.RESETTING, jnp.int32(SeedStage.DORMANT), state.stage + 1
    )
    return jax.tree.map(
        lambda moved, here: jnp.where(due, moved, here), enter(stayed, following), stayed
    )
