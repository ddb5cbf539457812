"""Adding up the measurements of steps on the device, and comparing each with those before it."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tamiyo_jax.host import Detector, Signals, StepMetrics, detect, new_detector, worst

__all__ = ["Accumulated", "accumulate", "is_finite", "mean_of", "restart", "summarize"]


class Accumulated(NamedTuple):
    """Measurements since the last decision, and the detector of the whole run; on the device.

    Attributes:
      total: sums of the steps' metrics; of the signals the worst, of the refusals the newest.
      detector: what is usual for the run. It knows the loss of every step, which an optimiser
        knows only where the step passes it to ``update``.
    """

    total: StepMetrics
    detector: Detector


def accumulate(before: Accumulated | None, measured: StepMetrics) -> Accumulated:
    """Add a step, or T steps with a leading axis T on every array, in buffers of its own.

    The steps' own buffers may be donated to the next step.
    """
    return _accumulate(before, measured)


def mean_of(accumulated: Accumulated, steps: int) -> StepMetrics:
    """The means over `steps` steps, as NumPy arrays; waits for the device."""
    total = jax.device_get(accumulated.total)
    mean = jax.tree.map(lambda figure: figure / steps, total)
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


def is_finite(accumulated: Accumulated) -> bool:
    """Whether all that was added up is finite; waits for the device."""
    return all(np.isfinite(figure).all() for figure in jax.tree.leaves(accumulated.total))


def restart(accumulated: Accumulated) -> Accumulated:
    """Nothing added up, and the same detector."""
    return accumulated._replace(total=jax.tree.map(jnp.zeros_like, accumulated.total))


@jax.jit
def _accumulate(before: Accumulated | None, measured: StepMetrics) -> Accumulated:
    stacked = measured
    if not jnp.ndim(measured.loss):
        stacked = jax.tree.map(lambda figure: jnp.asarray(figure)[None], measured)
    stacked = jax.tree.map(lambda figure: jnp.asarray(figure, jnp.float32), stacked)
    if before is None:
        first = jax.tree.map(lambda figures: figures[0], stacked)
        layers = first.statistics.gradient_norm.shape[0]
        before = Accumulated(jax.tree.map(jnp.zeros_like, first), new_detector(layers))
    return jax.lax.scan(_add, before, stacked)[0]


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
    signals = worst(before.total.statistics.signals, worst(wide, numbers.signals))
    summed = jax.tree.map(jnp.add, before.total, step)
    statistics = summed.statistics._replace(signals=signals, refusals=numbers.refusals)
    return Accumulated(summed._replace(statistics=statistics), detector), None
