"""Adding up the measurements of steps on the device, and comparing each with those before it."""

from __future__ import annotations

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tamiyo_jax.host import (
    Detector,
    Signals,
    StepMetrics,
    detect,
    new_detector,
    no_signals,
)

__all__ = ["Accumulated", "Flags", "Reading", "accumulate", "summarize"]

ALARMING = 3
"""Updates in a row far above their usual size, which an alarm is about."""

SOUND_RISE, SOUND_Z = 0.2, 3.0
"""A sustained rise of the loss above both leaves a state unsound; rules ask for twice as much."""

CALM_GRADIENTS = 3
"""The most steps in a row with a high gradient that are calm; rules ask for more."""

BEFORE_MEANS = 5

_SUMMED, _WORST, _NEWEST, _COUNTED = range(4)
"""What becomes of a figure over several steps: its sum over those that were applied, the largest,
the newest, or its sum."""


class Accumulated(NamedTuple):
    """Measurements since the last decision, and the detector of the whole run; on the device.

    Attributes:
      total: f32[N], one after another the figures of a `StepMetrics`: sums over the steps that
        were applied, those of the newest interval with one; of the signals the worst, of the
        refusals the newest and their number. A single array, since each costs time at each step.
      applied: f32[], how many steps that are.
      detector: what is usual for the run, where the loop does not pass the loss to ``update``;
        else the optimiser knows it.
    """

    total: jax.Array
    applied: jax.Array
    detector: Detector


class Flags(NamedTuple):
    """What is known of an interval without a controller.

    Attributes:
      alarm: updates were far above their usual size three times in a row, or a loss that is not
        finite was applied.
      sound: no alarm, no outlier and no sustained rise: the state may be kept.
      calm: sound, nothing was refused, and gradients were high for three steps at most.
    """

    alarm: bool
    sound: bool
    calm: bool


class Reading(NamedTuple):
    """What is known of an interval after a step, on its way from the device.

    Attributes:
      numbers: f32[5 + N]: the flags, how many steps were applied, the multiplier, and the means as
        the figures of a `StepMetrics`.
      structure: of the `StepMetrics`.
      shapes: of its arrays.
    """

    numbers: jax.Array
    structure: Any
    shapes: tuple[tuple[int, ...], ...]

    def flags(self) -> Flags:
        """What is known without a controller; waits for the device."""
        return Flags(*np.asarray(self.numbers)[:3].astype(bool).tolist())

    def multiplier(self) -> float:
        """Of the learning rate, after the newest step; waits for the device."""
        return float(np.asarray(self.numbers)[4])

    def is_finite(self) -> bool:
        """Whether the steps that were applied are; waits for the device."""
        numbers = np.asarray(self.numbers)
        return not numbers[3] or bool(np.isfinite(numbers).all())

    def mean(self) -> StepMetrics:
        """The means, as numbers of the CPU; waits for the device.

        They are over the steps that were applied; where none was, those of the last interval
        with one: a refused step says nothing of the run.
        """
        numbers, start = np.asarray(self.numbers), BEFORE_MEANS
        figures: list[np.ndarray] = []
        for shape in self.shapes:
            end = start + math.prod(shape)
            figures.append(numbers[start:end].reshape(shape))
            start = end
        return jax.tree.unflatten(self.structure, figures)


def accumulate(
    before: Accumulated | None,
    measured: StepMetrics,
    multiplier: jax.Array,
    detector: Detector | None = None,
    *,
    restart: bool = False,
) -> tuple[Accumulated, Reading]:
    """Add a step, or T steps with a leading axis T on every array, in buffers of its own.

    The steps' own buffers may be donated to the next step.

    Args:
      before: after the step before; None begins the run.
      measured: of the step or of the steps.
      multiplier: f32[], of the learning rate after them.
      detector: of a run that goes on, where there is nothing before.
      restart: first forget the interval before; its means stand until a step is applied.
    """
    after, numbers = _accumulate(before, measured, multiplier, detector, np.bool_(restart))
    numbers.copy_to_host_async()
    leaves, structure = jax.tree.flatten(measured)
    stacked = int(jnp.ndim(measured.loss))
    return after, Reading(numbers, structure, tuple(jnp.shape(leaf)[stacked:] for leaf in leaves))


def summarize(steps: StepMetrics) -> StepMetrics:
    """The means of T steps, the worst of their signals and the newest of their refusals.

    Args:
      steps: with a leading axis T on every array, as `jax.lax.scan` stacks them.
    """
    mean = jax.tree.map(lambda figures: jnp.mean(figures, axis=0), steps)
    signals = jax.tree.map(lambda figures: jnp.max(figures, axis=0), steps.statistics.signals)
    refusals = jax.tree.map(lambda figures: figures[-1], steps.statistics.refusals)
    kept = mean.statistics._replace(signals=signals, refusals=refusals)
    return mean._replace(statistics=kept)


@jax.jit
def _accumulate(
    before: Accumulated | None,
    measured: StepMetrics,
    multiplier: jax.Array,
    detector: Detector | None,
    restart: jax.Array,
) -> tuple[Accumulated, jax.Array]:
    is_one = not jnp.ndim(measured.loss)
    like = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape[0 if is_one else 1 :], jnp.float32), measured
    )
    kinds = _kinds_of(like)
    if before is None:
        seen = new_detector(like.statistics.layers.shape[-1]) if detector is None else detector
        carry = Accumulated(jnp.zeros(len(kinds), jnp.float32), jnp.float32(0), seen)
    else:
        mean = jnp.where(kinds == _SUMMED, _mean(before, kinds), 0)
        carry = Accumulated(
            jnp.where(restart, mean, before.total),
            jnp.where(restart, 0, before.applied),
            before.detector,
        )
    add = partial(_add, kinds=kinds, like=like)
    if is_one:
        after = add(carry, _ravel(measured))
    else:
        steps = jax.vmap(_ravel)(measured)
        after, _ = jax.lax.scan(lambda carry, step: (add(carry, step), None), carry, steps)
    numbers = [*_flags(after, like), after.applied, jnp.reshape(multiplier, ())]
    packed = jnp.stack([number.astype(jnp.float32) for number in numbers])
    return after, jnp.concatenate([packed, _mean(after, kinds)])


def _kinds_of(like: StepMetrics) -> np.ndarray:
    """What becomes of each figure over several steps; i64[N]."""
    kinds: list[np.ndarray] = []
    for leaf in jax.tree.leaves(like):
        kinds.append(np.full(leaf.size, _SUMMED))
        if leaf is like.statistics.signals.numbers:
            kinds[-1][:] = _WORST
        if leaf is like.statistics.refusals.numbers:
            kinds[-1][:] = [_COUNTED, *[_NEWEST] * (leaf.size - 1)]
    return np.concatenate(kinds)


def _ravel(metrics: StepMetrics) -> jax.Array:
    return jnp.concatenate(
        [jnp.ravel(leaf).astype(jnp.float32) for leaf in jax.tree.leaves(metrics)]
    )


def _unravel(numbers: jax.Array, like: StepMetrics) -> StepMetrics:
    leaves, structure = jax.tree.flatten(like)
    ends = np.cumsum([leaf.size for leaf in leaves])
    parts = jnp.split(numbers, ends[:-1])
    return structure.unflatten(
        part.reshape(leaf.shape) for part, leaf in zip(parts, leaves, strict=True)
    )


def _mean(total: Accumulated, kinds: np.ndarray) -> jax.Array:
    """f32[N]: what is summed, over the steps that were applied; the rest as it is."""
    return total.total / jnp.where(kinds == _SUMMED, jnp.maximum(total.applied, 1), 1)


def _flags(after: Accumulated, like: StepMetrics) -> tuple[jax.Array, jax.Array, jax.Array]:
    """See `Flags`; bool[] each."""
    total = _unravel(after.total, like)
    signals = total.statistics.signals
    broken = (after.applied > 0) & ~jnp.isfinite(total.loss)
    alarm = (signals.high_updates >= ALARMING) | broken
    unusual = signals.outlier | signals.nonfinite | (signals.high_updates > 0)
    rises = (signals.sustained_rise > SOUND_RISE) & (signals.sustained_z > SOUND_Z)
    sound = ~alarm & ~unusual & ~rises
    refused = total.statistics.refusals.refused
    return alarm, sound, sound & ~refused & (signals.high_gradients <= CALM_GRADIENTS)


def _add(
    before: Accumulated, step: jax.Array, *, kinds: np.ndarray, like: StepMetrics
) -> Accumulated:
    newest = _unravel(step, like)
    own, detector = jax.lax.cond(
        newest.statistics.signals.knows_loss,
        lambda *_: (no_signals(), before.detector),
        _detect,
        before.detector,
        newest,
    )
    first = int(np.argmax(kinds == _WORST))
    own = jnp.pad(own.numbers, (first, len(kinds) - first - len(own.numbers)))
    refused = newest.statistics.refusals.refused
    sums = jnp.where(before.applied == 0, step, before.total + step)
    total = jnp.where(refused, before.total, sums)
    for kind, figures in (
        (_WORST, jnp.maximum(before.total, jnp.maximum(step, own))),
        (_NEWEST, step),
        (_COUNTED, before.total + step),
    ):
        total = jnp.where(kinds == kind, figures, total)
    applied = before.applied + jnp.where(refused, 0.0, 1.0)
    return Accumulated(total, applied, detector)


def _detect(before: Detector, step: StepMetrics) -> tuple[Signals, Detector]:
    """The signals of a step whose optimiser was not told of the loss."""
    numbers = step.statistics
    updates = numbers.update_ratio * numbers.weight_norm
    weights = jnp.linalg.norm(numbers.weight_norm)
    ratio = jnp.where(weights > 0, jnp.linalg.norm(updates) / jnp.where(weights > 0, weights, 1), 0)
    return detect(
        before,
        loss=step.loss,
        gradient_norm=jnp.linalg.norm(numbers.gradient_norm),
        update_ratio=ratio,
        layer_gradient_norms=numbers.gradient_norm,
    )
