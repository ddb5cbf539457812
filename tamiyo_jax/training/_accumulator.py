"""Adding up the measurements of steps on the device, and comparing each with those before it."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tamiyo_jax.host import (
    Detector,
    Refusals,
    Signals,
    StepMetrics,
    detect,
    new_detector,
    no_signals,
    worst,
)

__all__ = ["Accumulated", "Flags", "Reading", "accumulate", "summarize"]

ALARMING = 3
"""Updates in a row far above their usual size, which an alarm is about."""

SOUND_RISE, SOUND_Z = 0.2, 3.0
"""A sustained rise of the loss above both leaves a state unsound; rules ask for twice as much."""

CALM_GRADIENTS = 3
"""The most steps in a row with a high gradient that are calm; rules ask for more."""

BEFORE_MEANS = 5

_REFUSED = (np.arange(7) == 0).astype(np.float32)
"""The place of the number of refused steps in `Refusals`."""


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
    stacked = measured
    if not jnp.ndim(measured.loss):
        stacked = jax.tree.map(lambda figure: jnp.asarray(figure)[None], measured)
    stacked = jax.tree.map(lambda figure: jnp.asarray(figure, jnp.float32), stacked)
    first = jax.tree.map(lambda figures: figures[0], stacked)
    if before is None:
        layers = first.statistics.layers.shape[-1]
        seen = new_detector(layers) if detector is None else detector
        carry = _Sum(_cleared(first), jnp.float32(0), seen)
    else:
        total = _unravel(before.total, first)
        mean = _cleared(_mean(total, before.applied))
        total = jax.tree.map(lambda new, old: jnp.where(restart, new, old), mean, total)
        carry = _Sum(total, jnp.where(restart, 0, before.applied), before.detector)
    if len(stacked.loss) == 1:
        after = _add(carry, first)
    else:
        after, _ = jax.lax.scan(lambda carry, step: (_add(carry, step), None), carry, stacked)
    mean = _ravel(_mean(after.total, after.applied))
    numbers = jnp.concatenate([_flags(after), jnp.ravel(multiplier).astype(jnp.float32), mean])
    return Accumulated(_ravel(after.total), after.applied, after.detector), numbers


class _Sum(NamedTuple):
    """`Accumulated`, with the figures by name."""

    total: StepMetrics
    applied: jax.Array
    detector: Detector


def _ravel(metrics: StepMetrics) -> jax.Array:
    return jnp.concatenate([jnp.ravel(leaf) for leaf in jax.tree.leaves(metrics)])


def _unravel(numbers: jax.Array, like: StepMetrics) -> StepMetrics:
    leaves, structure = jax.tree.flatten(like)
    ends = np.cumsum([leaf.size for leaf in leaves])
    parts = jnp.split(numbers, ends[:-1])
    return structure.unflatten(
        part.reshape(leaf.shape) for part, leaf in zip(parts, leaves, strict=True)
    )


def _mean(total: StepMetrics, applied: jax.Array) -> StepMetrics:
    """The means over the steps that were applied; signals and refusals as they are."""
    mean = jax.tree.map(lambda figure: figure / jnp.maximum(applied, 1), total)
    kept = {"signals": total.statistics.signals, "refusals": total.statistics.refusals}
    return mean._replace(statistics=mean.statistics._replace(**kept))


def _cleared(mean: StepMetrics) -> StepMetrics:
    """The means, without signals, and without refusals of the interval."""
    statistics = mean.statistics._replace(
        signals=no_signals(),
        refusals=Refusals(mean.statistics.refusals.numbers * (1 - _REFUSED)),
    )
    return mean._replace(statistics=statistics)


def _flags(after: _Sum) -> jax.Array:
    """f32[4]: the flags, and how many steps were applied."""
    signals = after.total.statistics.signals
    broken = (after.applied > 0) & ~jnp.isfinite(after.total.loss)
    alarm = (signals.high_updates >= ALARMING) | broken
    unusual = signals.outlier | signals.nonfinite | (signals.high_updates > 0)
    rises = (signals.sustained_rise > SOUND_RISE) & (signals.sustained_z > SOUND_Z)
    sound = ~alarm & ~unusual & ~rises
    refused = after.total.statistics.refusals.refused
    calm = sound & ~refused & (signals.high_gradients <= CALM_GRADIENTS)
    return jnp.stack([*(flag.astype(jnp.float32) for flag in (alarm, sound, calm)), after.applied])


def _add(before: _Sum, step: StepMetrics) -> _Sum:
    earlier, newest = before.total.statistics, step.statistics
    own, detector = jax.lax.cond(
        newest.signals.knows_loss, lambda *_: (no_signals(), before.detector), _detect, before, step
    )
    refused, first = newest.refusals.refused, before.applied == 0

    def add(total: jax.Array, new: jax.Array) -> jax.Array:
        return jnp.where(refused, total, jnp.where(first, new, total + new))

    summed = jax.tree.map(add, before.total, step)
    statistics = summed.statistics._replace(
        signals=worst(earlier.signals, worst(own, newest.signals)),
        refusals=Refusals(newest.refusals.numbers + _REFUSED * earlier.refusals.numbers),
    )
    applied = before.applied + jnp.where(refused, 0.0, 1.0)
    return _Sum(summed._replace(statistics=statistics), applied, detector)


def _detect(before: _Sum, step: StepMetrics) -> tuple[Signals, Detector]:
    """The signals of a step whose optimiser was not told of the loss."""
    numbers = step.statistics
    updates = numbers.update_ratio * numbers.weight_norm
    weights = jnp.linalg.norm(numbers.weight_norm)
    ratio = jnp.where(weights > 0, jnp.linalg.norm(updates) / jnp.where(weights > 0, weights, 1), 0)
    return detect(
        before.detector,
        loss=step.loss,
        gradient_norm=jnp.linalg.norm(numbers.gradient_norm),
        update_ratio=ratio,
        layer_gradient_norms=numbers.gradient_norm,
    )
