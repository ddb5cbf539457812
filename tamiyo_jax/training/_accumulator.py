"""Adding up the measurements of steps on the device, and comparing each with those before it."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from tamiyo_jax.host import Detector, Signals, StepMetrics, detect, new_detector, worst

__all__ = ["Accumulated", "accumulate", "mean_of", "restart", "summarize"]


class Accumulated(NamedTuple):
    """Measurements since the last decision, and the detector of the whole run; on the device.

    Attributes:
      total: sums of the metrics of the steps that were applied, those of the newest interval
        with one; of the signals the worst, of the refusals the newest and their number.
      applied: f32[], how many steps that are.
      detector: what is usual for the run. It knows the loss of every step, which an optimiser
        knows only where the step passes it to ``update``.
    """

    total: StepMetrics
    applied: jax.Array
    detector: Detector


def accumulate(
    before: Accumulated | None, measured: StepMetrics, detector: Detector | None = None
) -> Accumulated:
    """Add a step, or T steps with a leading axis T on every array, in buffers of its own.

    The steps' own buffers may be donated to the next step. Where there is nothing before, the
    run begins, or goes on from what `detector` has seen.
    """
    return _accumulate(before, measured, detector)


def mean_of(accumulated: Accumulated) -> StepMetrics:
    """The means over the steps that were applied, as NumPy arrays; waits for the device.

    Where none was, those of the last interval with one: a refused step says nothing of the run.
    """
    total, applied = jax.device_get((accumulated.total, accumulated.applied))
    mean = jax.tree.map(lambda figure: figure / max(applied, 1), total)
    kept = {"signals": total.statistics.signals, "refusals": total.statistics.refusals}
    return mean._replace(statistics=mean.statistics._replace(**kept))


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


@partial(jax.jit, donate_argnums=0)
def restart(accumulated: Accumulated) -> Accumulated:
    """Nothing added up, and the same detector; the means stand until a step is applied."""
    total, applied, _ = accumulated
    mean = jax.tree.map(lambda figure: figure / jnp.maximum(applied, 1), total)
    statistics = total.statistics
    kept = mean.statistics._replace(
        signals=jax.tree.map(jnp.zeros_like, statistics.signals),
        refusals=statistics.refusals._replace(refused=jnp.float32(0)),
    )
    return accumulated._replace(total=mean._replace(statistics=kept), applied=jnp.float32(0))


@jax.jit
def _accumulate(
    before: Accumulated | None, measured: StepMetrics, detector: Detector | None
) -> Accumulated:
    stacked = measured
    if not jnp.ndim(measured.loss):
        stacked = jax.tree.map(lambda figure: jnp.asarray(figure)[None], measured)
    stacked = jax.tree.map(lambda figure: jnp.asarray(figure, jnp.float32), stacked)
    if before is None:
        first = jax.tree.map(lambda figures: figures[0], stacked)
        layers = first.statistics.gradient_norm.shape[0]
        seen = new_detector(layers) if detector is None else detector
        start: Accumulated = restart(Accumulated(first, jnp.float32(1), seen))
    else:
        start = before
    return jax.lax.scan(_add, start, stacked)[0]


def _add(before: Accumulated, step: StepMetrics) -> tuple[Accumulated, None]:
    numbers = step.statistics
    updates = numbers.update_ratio * numbers.weight_norm
    weights = jnp.linalg.norm(numbers.weight_norm)
    ratio = jnp.where(weights > 0, jnp.linalg.norm(updates) / jnp.where(weights > 0, weights, 1), 0)
    own, _, detector = detect(
        before.detector,
        loss=step.loss,
        gradient_norm=jnp.linalg.norm(numbers.gradient_norm),
        update_ratio=ratio,
        layer_gradient_norms=numbers.gradient_norm,
    )
    wide = Signals(*(jnp.asarray(signal, jnp.float32) for signal in own))
    earlier = before.total.statistics
    refused = numbers.refusals.refused > 0
    first = before.applied == 0

    def add(total: jax.Array, new: jax.Array) -> jax.Array:
        return jnp.where(refused, total, jnp.where(first, new, total + new))

    summed = jax.tree.map(add, before.total, step)
    statistics = summed.statistics._replace(
        signals=worst(earlier.signals, worst(wide, numbers.signals)),
        refusals=numbers.refusals._replace(
            refused=earlier.refusals.refused + numbers.refusals.refused
        ),
    )
    applied = before.applied + jnp.where(refused, 0.0, 1.0)
    return Accumulated(summed._replace(statistics=statistics), applied, detector), None
