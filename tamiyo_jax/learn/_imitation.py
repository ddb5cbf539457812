"""Targets of imitation: what the policy on record chose, and how much each decision counts."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from tamiyo_jax.learn._dataset import Dataset
from tamiyo_jax.learn._fitting import Targets
from tamiyo_jax.policy import NUM_ACTIONS, Action

__all__ = ["RISK_BOUNDS", "RISK_HORIZON", "imitation_targets", "rise_classes", "risk_classes"]

RISK_HORIZON = 5
RAREST = 0.01  # no action is weighted as if it were rarer
RISK_BOUNDS = (0.02, 0.1, 0.3, 1.0)
"""Relative rises of the validation loss that separate the five classes of risk."""


def risk_classes(losses: np.ndarray, run: np.ndarray) -> np.ndarray:
    """i32[T]: the class of each step by the worst relative rise of the loss in the next 5 packets.

    Class 0 is a rise of at most 2 %, 4 one of more than 100 % or a loss that is not finite.
    """
    ahead = np.arange(1, 1 + RISK_HORIZON)[None, :] + np.arange(len(losses))[:, None]
    there = np.minimum(ahead, len(losses) - 1)
    mine = (ahead < len(losses)) & (run[there] == run[:, None])
    return rise_classes(losses, np.where(mine, losses[there], losses[:, None]))


def rise_classes(losses: np.ndarray, following: np.ndarray) -> np.ndarray:
    """i32[T]: the class of the worst of the losses f32[T, n] that follow upon f32[T]."""
    base = losses[:, None]
    with np.errstate(divide="ignore", invalid="ignore"):
        rises = np.where(base > 0, following / base - 1, 0.0)
    rises = np.where(np.isfinite(rises), rises, np.where(np.isfinite(base), np.inf, 0.0))
    worst = np.max(rises, axis=1, initial=0.0)
    return np.searchsorted(RISK_BOUNDS, worst).astype(np.int32)


def imitation_targets(data: Dataset, *, temperature: float | None) -> Targets:
    """Targets that imitate the policy on record.

    Args:
      data: the decisions.
      temperature: None weights all actions alike, however rare (behaviour cloning). Else
        decisions are weighted by exp(advantage / temperature), at most 20, the advantage being
        the return less its mean over the same epoch (Peng et al. 2019, eq. 11).
    """
    chosen, count = data.chosen, len(data.run)
    if temperature is None:
        frequency = np.bincount(chosen.action, minlength=NUM_ACTIONS)
        common = np.maximum(frequency, count * RAREST)
        weight = count / (np.count_nonzero(frequency) * common[chosen.action])
    else:
        weight = np.minimum(np.exp(_advantages(data) / temperature), 20.0)
    seeds, blueprints = data.legality.seeds.shape[2], data.legality.blueprints.shape[1]
    turns = chosen.action == Action.OPTIMIZER
    spread = np.std(data.returns) or 1.0
    return Targets(
        action=_one_hot(chosen.action, NUM_ACTIONS),
        seed=_one_hot(chosen.seed, seeds),
        blueprint=_one_hot(chosen.blueprint, blueprints),
        lr_delta=jnp.asarray(np.where(turns, chosen.lr_delta, 0.0), jnp.float32),
        turns=jnp.asarray(turns, jnp.float32),
        value=jnp.asarray(data.returns / spread, jnp.float32),
        risk=jnp.asarray(risk_classes(data.losses, data.run)),
        weight=jnp.asarray(weight, jnp.float32),
    )


def _advantages(data: Dataset) -> np.ndarray:
    ages = np.concatenate([np.arange(n) for n in np.unique(data.run, return_counts=True)[1]])
    totals = np.bincount(ages, data.returns)[ages]
    return data.returns - totals / np.bincount(ages)[ages]


def _one_hot(rows: np.ndarray, width: int) -> jax.Array:
    """f32[T, width]; zeros for -1."""
    return jnp.asarray(rows[:, None] == np.arange(width)[None, :], jnp.float32)
