"""What the detector says of a step; `_detector` makes it."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float32, Int32

__all__ = ["Signals", "no_signals", "worst"]


class Signals(NamedTuple):
    """A step beside the steps before it; scalars, so that they are cheap to read.

    Attributes:
      loss_z: f32[], see the module; 0 without a loss and in the first steps, like all z.
      loss_rise: f32[], about log(loss / its median).
      high_losses: i32[], steps in a row, up to this one, with a loss of more than ×4 and a z above
        4 of both loss and gradient.
      gradient_z: f32[], of the global gradient norm.
      gradient_rise: f32[].
      layer_gradient_z: f32[], the largest of any layer.
      metric_z: f32[], (x − m)/s, the largest of any metric that the loop hands over.
      update_rise: f32[], log of the update ratio over the run's highest median of it.
      update_jump: f32[], the same over its present median.
      high_updates: i32[], steps in a row, up to this one, with a jump of more than ×12 that is
        also ×2 over the highest median, or with a rise of more than ×16.
      sustained_rise: f32[], of the median of the last `RECENT` losses over the lowest such.
      sustained_z: f32[], that in units of the spread of single losses.
      high_gradients: i32[], steps in a row, up to this one, with a gradient_z above 4; those to
        be refused are left out.
      steps_without_progress: i32[], since that lowest median last fell by 1 %.
      nonfinite: bool[], the loss, the gradient or the update is NaN or infinite.
      loss_outlier: bool[], the loss is far above what is usual, alone or with the gradient, or it
        is the third high one in a row.
      gradient_outlier: bool[], the gradient alone is.
      update_outlier: bool[], the update is: it rose by more than ×16, or it is the third high
        one in a row.
      metric_outlier: bool[], a metric is above ×10 with a z above 9.
    """

    loss_z: Float32[Array, ""]
    loss_rise: Float32[Array, ""]
    high_losses: Int32[Array, ""]
    gradient_z: Float32[Array, ""]
    gradient_rise: Float32[Array, ""]
    layer_gradient_z: Float32[Array, ""]
    metric_z: Float32[Array, ""]
    update_rise: Float32[Array, ""]
    update_jump: Float32[Array, ""]
    high_updates: Int32[Array, ""]
    sustained_rise: Float32[Array, ""]
    sustained_z: Float32[Array, ""]
    high_gradients: Int32[Array, ""]
    steps_without_progress: Int32[Array, ""]
    nonfinite: Bool[Array, ""]
    loss_outlier: Bool[Array, ""]
    gradient_outlier: Bool[Array, ""]
    update_outlier: Bool[Array, ""]
    metric_outlier: Bool[Array, ""]

    @property
    def outlier(self) -> Bool[Array, ""]:
        """bool[]: finite, but not to be trusted."""
        by_step = self.loss_outlier | self.gradient_outlier | self.update_outlier
        return by_step | self.metric_outlier


def no_signals() -> Signals:
    """Before the first step."""
    zero, count, none = jnp.float32(0), jnp.int32(0), jnp.bool_(False)
    return Signals(
        loss_z=zero,
        loss_rise=zero,
        high_losses=count,
        gradient_z=zero,
        gradient_rise=zero,
        layer_gradient_z=zero,
        metric_z=zero,
        update_rise=zero,
        update_jump=zero,
        high_updates=count,
        sustained_rise=zero,
        sustained_z=zero,
        high_gradients=count,
        steps_without_progress=count,
        nonfinite=none,
        loss_outlier=none,
        gradient_outlier=none,
        update_outlier=none,
        metric_outlier=none,
    )


def worst(earlier: Signals, later: Signals) -> Signals:
    """The larger of each signal, to look at several steps together."""
    return jax.tree.map(jnp.maximum, earlier, later)
