"""The last ordinary values of each number that a detector watches, and what is usual by them."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float32, Int32

from tamiyo_jax.host._packed import count, number, settle

__all__ = [
    "FIRST_LAYER",
    "GRADIENT",
    "LAYER",
    "LOSS",
    "METRIC",
    "RECENT",
    "UPDATE",
    "WARMUP",
    "WINDOW",
    "Detector",
    "Levels",
    "Usual",
    "find_usual",
    "keep",
    "new_detector",
]

WINDOW = 64
WARMUP = 32  # values, before a finite one can be unusual
RECENT = 16  # values, whose median is the present level of the loss
LEAST_SPREAD = 0.005  # of the median: a run that hardly varies is no reason for alarm
FALL = 1.5  # spreads, between the halves of the window, from which on a loss falls

LOSS, GRADIENT, UPDATE, LAYER, METRIC = range(5)  # kinds of numbers
FIRST_LAYER = LAYER  # rows: the first three, those of each layer, those of each metric


class Levels(NamedTuple):
    """What a detector remembers beside its windows.

    Attributes:
      numbers: f32[9], all of the following.
      first_loss: f32[], the median of the first `RECENT` losses.
      lowest_loss: f32[], the lowest median of `RECENT` losses after them.
      highest_update: f32[], the highest median of the window of update ratios.
      tail_share: f32[], moving share of steps with a loss_z above 3 that are no outliers.
      high_gradients: i32[].
      high_losses: i32[].
      high_updates: i32[].
      steps_without_progress: i32[].
      ruinous_in_row: i32[], steps up to the newest that were not finite or outliers.
    """

    numbers: Float32[Array, "9"]

    first_loss = number(0)
    lowest_loss = number(1)
    highest_update = number(2)
    tail_share = number(3)
    high_gradients = count(4)
    high_losses = count(5)
    high_updates = count(6)
    steps_without_progress = count(7)
    ruinous_in_row = count(8)


class Detector(NamedTuple):
    """What is remembered; 256 bytes for each of S watched numbers.

    Attributes:
      values: f32[S, WINDOW], a ring by row: the loss, the global gradient norm, the update
        ratio, the gradient norm of each layer, and the metrics; filled from the left at first.
      kept: i32[S], how many were.
      levels: of the run.
    """

    values: Float32[Array, "watched window"]
    kept: Int32[Array, " watched"]
    levels: Levels


def new_detector(layers: int, metrics: int = 0) -> Detector:
    """A detector that has seen nothing of so many layers and metrics."""
    rows = FIRST_LAYER + layers + metrics
    values = jnp.zeros((rows, WINDOW), jnp.float32)
    return Detector(values, jnp.zeros(rows, jnp.int32), Levels(jnp.zeros(9, jnp.float32)))


class Usual(NamedTuple):
    """What is usual before a step; NaN where nothing was kept yet.

    Attributes:
      middle: f32[S], the median of each window.
      spread: f32[S], its spread.
      older_loss: f32[], the median of the older half of the window of losses.
      recent_loss: f32[], the median of the last `RECENT` losses.
    """

    middle: Float32[Array, " watched"]
    spread: Float32[Array, " watched"]
    older_loss: Float32[Array, ""]
    recent_loss: Float32[Array, ""]


def find_usual(
    detector: Detector, first_metric: int, least_spreads: Float32[np.ndarray, " metrics"]
) -> Usual:
    """What is usual; of a falling loss, the newest value of the line that it falls along."""
    count = jnp.minimum(detector.kept[LOSS], WINDOW)
    age = (detector.kept[LOSS] - 1 - jnp.arange(WINDOW)) % WINDOW
    parts = jnp.stack([age < count // 2, (age >= count // 2) & (age < count), age < RECENT])
    losses = jnp.broadcast_to(detector.values[LOSS], parts.shape)
    newer, older, recent = _median(losses, parts & (age < count)[None])
    fallen = older - newer
    per_step = fallen / jnp.maximum(count / 2, 1)
    lost = jnp.where(age < count, per_step * age.astype(jnp.float32), 0)
    rows = jnp.concatenate([detector.values, (detector.values[LOSS] - lost)[None]])
    valid = jnp.arange(WINDOW)[None] < detector.kept[:, None]
    valid = jnp.concatenate([valid, valid[LOSS][None]])
    middle = _median(rows, valid)
    spread = 1.4826 * _median(jnp.abs(rows - middle[:, None]), valid)
    spread = jnp.maximum(spread, LEAST_SPREAD * jnp.abs(middle))
    falls = (count >= WARMUP) & (fallen > FALL * spread[-1])
    here = falls & (np.arange(len(rows) - 1) == LOSS)
    least = np.concatenate([np.full(first_metric, 0, np.float32), least_spreads])
    spread = jnp.maximum(jnp.where(here, spread[-1], spread[:-1]), least)
    middle = jnp.where(here, middle[-1], middle[:-1])
    middle, spread = settle(jnp.stack([middle, spread]))
    return Usual(middle, spread, older, recent)


def _median(
    values: Float32[Array, "rows window"], valid: Bool[Array, "rows window"]
) -> Float32[Array, " rows"]:
    """f32[S]: the lower of the middle valid values of each row; NaN where there are none.

    It is the least value that more than half of them, less one, do not exceed: 64 x 64 comparisons
    are faster than a sort.
    """
    numbers = jnp.where(valid, values, jnp.inf)
    up_to = jnp.sum(numbers[:, None, :] <= numbers[:, :, None], axis=2, dtype=jnp.float32)
    count = jnp.sum(valid, axis=1, dtype=jnp.float32)
    before = jnp.floor((count - 1) / 2)
    found = jnp.min(jnp.where(up_to > before[:, None], numbers, jnp.inf), axis=1)
    return jnp.where(count > 0, found, jnp.nan)


def keep(
    detector: Detector, new: Float32[Array, " watched"], kept: Bool[Array, " watched"]
) -> tuple[Float32[Array, "watched window"], Int32[Array, " watched"]]:
    """The windows with the new values in the place of their oldest, where they are kept."""
    here = jnp.arange(WINDOW)[None] == (detector.kept % WINDOW)[:, None]
    values = jnp.where(here & kept[:, None], new[:, None], detector.values)
    return values, detector.kept + kept.astype(jnp.int32)
