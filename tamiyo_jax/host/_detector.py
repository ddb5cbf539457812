"""What is unusual for this run, from its own last steps.

A `Detector` keeps, for each watched number, its last `WINDOW` ordinary values. With their
median m, their median absolute deviation, and s = 1.4826 MAD (the standard deviation of a normal
sample; Hampel 1974), but at least `LEAST_SPREAD` |m|, a new value x has

    rise    asinh(x/s) − asinh(m/s)
    z       rise · √(1 + (m/s)²)

For m ≫ s this is log(x/m), and that in units of the spread of log x: spikes are rated by
their ratio, as a factor of 2 is the same trouble at a loss of 6 and of 0.06. About zero, where
losses of some tasks lie, it goes over into x/s, so a loss may have any sign. Values that are
not finite are not kept, nor are those of a step that was refused, so neither can make the next
spike look ordinary.

A loss that falls is compared with where it has fallen to: where the median of the older half of
its window is above that of the newer half by more than 1.5 spreads, the line through the two is
taken off before m and s are found. Metrics that the loop hands over are rated by (x − m)/s, for
many are zero most of the time.

A run that has learnt its data by heart, whose losses are below a hundredth of the first ones, is
not held to what is usual there: as long as a loss is below the first ones, neither it nor its
gradient is unusual.

The thresholds were chosen on public logs, see ``docs/detection.md``.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int32

from tamiyo_jax.host._packed import pack
from tamiyo_jax.host._signals import Signals, make_signals
from tamiyo_jax.host._windows import (
    FIRST_LAYER,
    GRADIENT,
    LAYER,
    LOSS,
    METRIC,
    UPDATE,
    WARMUP,
    Detector,
    Levels,
    Usual,
    find_usual,
    keep,
)

__all__ = ["REFUSALS_IN_ROW", "detect"]

LOSS_Z = 9.35
LOSS_Z_WITH_GRADIENT = 6.0  # where the gradient's z is above it as well
TAIL_Z = 3.0  # a loss above it lies in the tail, whether or not it is an outlier
SHORT_TAIL, LONG_TAIL = 0.03, 0.05  # shares of steps; a run of PPO lies above both
TAIL_RATE = 1 - 0.5 ** (1 / 300)  # of the moving share, whose half-life is 300 steps
BY_HEART = 0.01  # of the first loss: below it, losses and gradients jump by powers of ten
LOSS_RISE = math.log(1.25)
HIGH_Z = 4.0  # of the loss and of the gradient, with a rise of the loss above x 4
HIGH_RISE = math.log(4.0)
HIGH_LOSSES = 3  # in a row, before they are refused: a single one is often noise
GRADIENT_Z = 12.0
GRADIENT_RISE = math.log(1000.0)  # a smaller one that does not move the loss is often harmless
UPDATE_RISE = math.log(16.0)  # over the run's highest level: no warm-up or restart does that
UPDATE_JUMP = math.log(12.0)  # over the recent level: a stepwise warm-up of x 10 stays below
JUMP_ABOVE_HIGHEST = math.log(2.0)  # as well, which no restart of a schedule reaches
HIGH_UPDATES = 3  # in a row, before a jump is refused: a single one is often noise
HIGH_GRADIENT_Z = 4.0
METRIC_Z = 9.0
METRIC_RISE = math.log(10.0)
PROGRESS = 0.01  # relative, the least improvement of the loss that counts

REFUSALS_IN_ROW = 32
NO_METRICS = np.zeros(0, np.float32)


def detect(
    detector: Detector,
    *,
    loss: Float[Array, ""] | None,
    gradient_norm: Float32[Array, ""],
    update_ratio: Float32[Array, ""],
    layer_gradient_norms: Float32[Array, " layers"],
    metrics: Float32[Array | np.ndarray, " metrics"] = NO_METRICS,
    least_spreads: Float32[np.ndarray, " metrics"] = NO_METRICS,
) -> tuple[Signals, Detector]:
    """Compare a step with those before it; pure, of constant cost, for jit, scan and vmap.

    Args:
      detector: after the step before.
      loss: f32[] of the step; None where the loop does not say it.
      gradient_norm: f32[], global.
      update_ratio: f32[], global ‖update‖ / ‖weights‖; 0 says nothing (a step that only
        accumulates gradients).
      layer_gradient_norms: f32[L].
      metrics: f32[M], what else the loop watches, of which a high value is bad; NaN says nothing.
      least_spreads: f32[M], s of each metric is at least that.

    Returns:
      The step's signals, and the detector after it.
    """
    said = jnp.float32(jnp.nan) if loss is None else loss.astype(jnp.float32)
    first_metric = FIRST_LAYER + layer_gradient_norms.size
    new = jnp.concatenate(
        [jnp.stack([said, gradient_norm, update_ratio]), layer_gradient_norms, metrics]
    )
    usual = find_usual(detector, first_metric, least_spreads)
    rise, z = _compare(new, usual, detector.kept, first_metric)
    first, lowest, since, sustained, sustained_z = _progress(detector, usual)
    before = detector.levels
    highest = jnp.fmax(before.highest_update, usual.middle[UPDATE])
    known = (detector.kept[UPDATE] >= WARMUP) & (update_ratio > 0)
    update_rise = jnp.where(known, _log_ratio(update_ratio, highest), 0)
    update_jump = jnp.where(known, _log_ratio(update_ratio, usual.middle[UPDATE]), 0)
    jumped = (update_jump > UPDATE_JUMP) & (update_rise > JUMP_ABOVE_HIGHEST)
    counted = jnp.where(jumped | (update_rise > UPDATE_RISE), before.high_updates + 1, 0)
    high_updates = jnp.where(update_ratio > 0, counted, before.high_updates)
    both = (z[LOSS] > LOSS_Z_WITH_GRADIENT) & (z[GRADIENT] > LOSS_Z_WITH_GRADIENT)
    alone = z[LOSS] > LOSS_Z
    is_short, is_long = before.tail_share < SHORT_TAIL, before.tail_share > LONG_TAIL
    spiked = jnp.where(is_long, alone & both, alone | (both & is_short))
    by_heart = (first > 0) & (usual.middle[LOSS] < BY_HEART * first) & (said < first)
    spiked &= (rise[LOSS] > LOSS_RISE) & ~by_heart
    is_high = (z[LOSS] > HIGH_Z) & (z[GRADIENT] > HIGH_Z) & (rise[LOSS] > HIGH_RISE)
    high_losses = jnp.where(is_high & ~by_heart, before.high_losses + 1, 0)
    spiked |= (high_losses >= HIGH_LOSSES) & ~is_long
    finite = jnp.isfinite(gradient_norm) & jnp.isfinite(update_ratio)
    nonfinite = ~(finite if loss is None else finite & jnp.isfinite(said))
    gradient_outlier = (rise[GRADIENT] > GRADIENT_RISE) & (z[GRADIENT] > GRADIENT_Z) & ~by_heart
    update_outlier = (update_rise > UPDATE_RISE) | (jumped & (high_updates >= HIGH_UPDATES))
    metric_outlier = rise[METRIC] > METRIC_RISE
    outlier = spiked | gradient_outlier | update_outlier | metric_outlier
    refusable = nonfinite | (outlier & (before.ruinous_in_row < REFUSALS_IN_ROW))
    steep = (z[GRADIENT] > HIGH_GRADIENT_Z) & ~by_heart
    high_gradients = jnp.where(steep, before.high_gradients + 1, 0)
    high_gradients = jnp.where(refusable, before.high_gradients, high_gradients)
    signals = make_signals(
        loss_z=z[LOSS],
        loss_rise=rise[LOSS],
        high_losses=high_losses,
        gradient_z=z[GRADIENT],
        gradient_rise=rise[GRADIENT],
        layer_gradient_z=jnp.maximum(z[LAYER], 0),
        metric_z=jnp.maximum(z[METRIC], 0),
        update_rise=update_rise,
        update_jump=update_jump,
        high_updates=high_updates,
        sustained_rise=sustained,
        sustained_z=sustained_z,
        high_gradients=high_gradients,
        steps_without_progress=since,
        nonfinite=nonfinite,
        loss_outlier=spiked,
        gradient_outlier=gradient_outlier,
        update_outlier=update_outlier,
        metric_outlier=metric_outlier,
        refusable=refusable,
        knows_loss=loss is not None,
    )
    row = np.arange(new.size)
    may_be_zero = (row == LOSS) | (row >= first_metric)
    kept = jnp.isfinite(new) & ~signals.refusable & ((new != 0) | may_be_zero)
    kept &= ~(signals.update_outlier & (row == UPDATE))  # one that is accepted is scaled down
    values, counts = keep(detector, new, kept)
    in_tail = jnp.where((signals.loss_z > TAIL_Z) & ~signals.loss_outlier, TAIL_RATE, 0)
    is_ruinous = signals.nonfinite | signals.outlier
    levels = pack(
        first,
        lowest,
        highest,
        (1 - TAIL_RATE) * before.tail_share + in_tail,
        signals.high_gradients,
        signals.high_losses,
        signals.high_updates,
        signals.steps_without_progress,
        jnp.where(is_ruinous, before.ruinous_in_row + 1, 0),
    )
    return signals, Detector(values, counts, Levels(levels))


def _log_ratio(new: Float32[Array, ""], level: Float32[Array, ""]) -> Float32[Array, ""]:
    """f32[]: log(new / level); 0 where there is no level yet."""
    found = jnp.log(jnp.maximum(new, 1e-30)) - jnp.log(jnp.maximum(level, 1e-30))
    return jnp.where(level > 0, found, 0)


def _compare(
    new: Float32[Array, " watched"],
    usual: Usual,
    kept: Int32[Array, " watched"],
    first_metric: int,
) -> tuple[Float32[Array, "5"], Float32[Array, "5"]]:
    """Rise and z of the loss, the gradient, the update, the worst layer and the worst metric.

    0 in the first steps and where there is no number, −inf where there is no layer or metric.
    A metric has a rise only where its z is high as well.
    """
    row = np.arange(new.size)
    scale = jnp.maximum(usual.spread, 1e-30)
    rise = jnp.arcsinh(new / scale) - jnp.arcsinh(usual.middle / scale)
    is_metric = row >= first_metric
    slope = jnp.hypot(1, usual.middle / scale)
    z = jnp.where(is_metric, (new - usual.middle) / scale, rise * slope)
    known = (kept >= WARMUP) & jnp.isfinite(rise)
    z = jnp.where(known, z, 0)
    rise = jnp.where(known & ~(is_metric & (z <= METRIC_Z)), rise, 0)
    kind = np.where(is_metric, METRIC, np.minimum(row, LAYER))
    of_kind = kind[None, None] == np.arange(METRIC + 1)[None, :, None]
    # One reduction, since XLA would compute all of this again for each signal.
    worst = jnp.max(jnp.where(of_kind, jnp.stack([rise, z])[:, None], -jnp.inf), axis=2)
    return worst[0], worst[1]


def _progress(
    detector: Detector, usual: Usual
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array, jax.Array]:
    """The first and the lowest level of the loss, the steps since it fell, rise and z over it."""
    level = usual.recent_loss
    ready = detector.kept[LOSS] >= WARMUP
    best = detector.levels.lowest_loss
    fell = level < best - PROGRESS * jnp.abs(best)
    begins = detector.kept[LOSS] == WARMUP  # there is none to fall below
    fell = ready & (fell | begins)
    first = jnp.where(begins, usual.older_loss, detector.levels.first_loss)
    lowest = jnp.where(fell, level, best)
    scale = jnp.maximum(usual.spread[LOSS], 1e-30)
    least = jnp.where(first > 0, jnp.maximum(lowest, BY_HEART * first), lowest)
    rise = jnp.arcsinh(level / scale) - jnp.arcsinh(least / scale)
    rise = jnp.where(ready, jnp.maximum(rise, 0), 0)
    since = jnp.where(fell | ~ready, 0, detector.levels.steps_without_progress + 1)
    z = rise * jnp.hypot(1, usual.middle[LOSS] / scale)
    return first, lowest, since, rise, jnp.where(ready, z, 0)
