"""When to grow: at given steps, on a plateau, or when the next stage would return more.

All three read a curve of validation losses; the last reads a second one too, of the grown
network in a short trial from the same state.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from tamiyo_jax.errors import ConfigurationError

__all__ = ["Curve", "marginal_return", "next_stage", "on_plateau", "returns_more"]

_EXPONENTS = np.linspace(0.05, 2.0, 40)
_LEAST = 3


class Curve(NamedTuple):
    """Validation losses of one stage.

    Attributes:
      flops: f[n], spent in this stage until each measurement, above 0 and rising.
      losses: f[n].
    """

    flops: Sequence[float]
    losses: Sequence[float]


def next_stage(step: int, steps: Sequence[int]) -> int:
    """The stage that a step belongs to, of stages that begin at 0 and at each of `steps`."""
    return sum(begin <= step for begin in steps)


def on_plateau(losses: Sequence[float], *, patience: int, improvement: float) -> bool:
    """Whether the best of the last `patience` losses is hardly better than what was best before.

    Args:
      losses: in the order of their measurement.
      patience: how many measurements a plateau lasts.
      improvement: the share of the loss by which the best must fall, or it is a plateau.
    """
    before, last = losses[:-patience], losses[-patience:]
    return bool(before) and min(last) > min(before) * (1 - improvement)


def marginal_return(curve: Curve) -> float:
    """How much the loss falls for each further FLOP, at the end of a curve.

    The curve is fitted by E + A C^(−α), the form of scaling laws (Hestness et al. 2017, §3), by
    least squares over E and A for each of 40 exponents; its slope at the last point is
    −α A C^(−α−1). A curve that rises has no return.

    Raises:
      ConfigurationError: there are fewer than three points, or FLOPs that do not rise from 0.
    """
    flops, losses = np.asarray(curve.flops, float), np.asarray(curve.losses, float)
    if len(flops) < _LEAST or flops[0] <= 0 or not (np.diff(flops) > 0).all():
        raise ConfigurationError(
            f"a curve needs at least {_LEAST} points, with FLOPs that rise from above 0; it has "
            f"{flops.tolist()}",
            field="flops",
            value=flops.tolist(),
        )
    share = flops / flops[-1]
    fits: list[tuple[float, float]] = []
    for exponent in _EXPONENTS:
        terms = np.stack([np.ones_like(share), share**-exponent], axis=1)
        found, *_ = np.linalg.lstsq(terms, losses, rcond=None)
        residual = float(np.sum((terms @ found - losses) ** 2))
        fits.append((residual, float(exponent * found[1] / flops[-1])))
    return max(0.0, min(fits)[1])


def returns_more(present: Curve, trial: Curve) -> bool:
    """Whether a FLOP of the next stage lowers the loss by more than one of the present stage.

    Args:
      present: of the network as it is.
      trial: of the grown network, for some measurements from the same state on.
    """
    return marginal_return(trial) > marginal_return(present)
