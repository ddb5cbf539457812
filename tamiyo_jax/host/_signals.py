"""What the detector says of a step; `_detector` makes it."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32

from tamiyo_jax.host._packed import count, flag, number, pack, settle

__all__ = ["Signals", "make_signals", "no_signals", "worst"]


class Signals(NamedTuple):
    """A step beside the steps before it; with leading axes, each of many steps.

    Attributes:
      numbers: f32[21], all of the following.
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
      sustained_rise: f32[], of the median of the last `RECENT` losses over the lowest such, or over
        a hundredth of the first losses if that is more.
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
      refusable: bool[], not finite, or an outlier before which fewer than `REFUSALS_IN_ROW` were
        refused in a row, so that a run whose data has changed for good learns that.
      knows_loss: bool[], the loss was among what was compared.
    """

    numbers: Float32[Array, "*steps 21"]

    loss_z = number(0)
    loss_rise = number(1)
    high_losses = count(2)
    gradient_z = number(3)
    gradient_rise = number(4)
    layer_gradient_z = number(5)
    metric_z = number(6)
    update_rise = number(7)
    update_jump = number(8)
    high_updates = count(9)
    sustained_rise = number(10)
    sustained_z = number(11)
    high_gradients = count(12)
    steps_without_progress = count(13)
    nonfinite = flag(14)
    loss_outlier = flag(15)
    gradient_outlier = flag(16)
    update_outlier = flag(17)
    metric_outlier = flag(18)
    refusable = flag(19)
    knows_loss = flag(20)

    @property
    def outlier(self) -> Any:  # noqa: ANN401 - bool[] of JAX or of NumPy
        """bool[]: finite, but not to be trusted."""
        by_step = self.loss_outlier | self.gradient_outlier | self.update_outlier
        return by_step | self.metric_outlier


def make_signals(
    *,
    loss_z: jax.Array,
    loss_rise: jax.Array,
    high_losses: jax.Array,
    gradient_z: jax.Array,
    gradient_rise: jax.Array,
    layer_gradient_z: jax.Array,
    metric_z: jax.Array,
    update_rise: jax.Array,
    update_jump: jax.Array,
    high_updates: jax.Array,
    sustained_rise: jax.Array,
    sustained_z: jax.Array,
    high_gradients: jax.Array,
    steps_without_progress: jax.Array,
    nonfinite: jax.Array,
    loss_outlier: jax.Array,
    gradient_outlier: jax.Array,
    update_outlier: jax.Array,
    metric_outlier: jax.Array,
    refusable: jax.Array,
    knows_loss: bool,
) -> Signals:
    """The signals of one step; scalars, see `Signals`."""
    return Signals(
        settle(
            pack(
                loss_z,
                loss_rise,
                high_losses,
                gradient_z,
                gradient_rise,
                layer_gradient_z,
                metric_z,
                update_rise,
                update_jump,
                high_updates,
                sustained_rise,
                sustained_z,
                high_gradients,
                steps_without_progress,
                nonfinite,
                loss_outlier,
                gradient_outlier,
                update_outlier,
                metric_outlier,
                refusable,
                knows_loss,
            )
        )
    )


def no_signals() -> Signals:
    """Before the first step."""
    return Signals(jnp.zeros(21, jnp.float32))


def worst(earlier: Signals, later: Signals) -> Signals:
    """The larger of each signal, to look at several steps together."""
    return Signals(jnp.maximum(earlier.numbers, later.numbers))
