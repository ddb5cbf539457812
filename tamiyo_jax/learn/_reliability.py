"""How far the value and the risk that a policy states can be believed."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import numpy as np

from tamiyo_jax.learn._branching import FLOOR
from tamiyo_jax.learn._contest import follow_network, play_many, play_tasks, undecided
from tamiyo_jax.learn._environment import HostEnv
from tamiyo_jax.learn._fitting import outputs_of
from tamiyo_jax.learn._imitation import RISK_HORIZON, rise_classes
from tamiyo_jax.learn._playing import Run, see, stack
from tamiyo_jax.learn._tasks import Family, draw_many
from tamiyo_jax.policy import Params

__all__ = ["Bin", "Reliability", "bins_of", "measure_reliability"]

BINS = 6


class Bin(NamedTuple):
    """What was stated and what came, in means over decisions that stated nearly the same."""

    stated: float
    came: float
    decisions: int


class Reliability(NamedTuple):
    """Of the value and of the risk, on runs that the policy decides in.

    Attributes:
      value: the stated fall of the log of the validation loss to the end of the run, and the
        fall that came; bins of equal counts.
      value_correlation: Pearson's, over all decisions.
      risk: the stated probability that the validation loss rises by more than 2 % within five
        epochs, and how often it did.
      risk_error: the mean of |stated − came| over the bins of risk, weighted by their counts
        (the expected calibration error of Naeini et al. 2015).
    """

    value: tuple[Bin, ...]
    value_correlation: float
    risk: tuple[Bin, ...]
    risk_error: float


@partial(jax.jit, static_argnums=0)
def _state(env: HostEnv, params: Params, runs: Run) -> tuple[jax.Array, jax.Array]:
    """Value f32[B] and probability f32[B] of a rise."""
    outputs = outputs_of(params, env.layout, see(env, runs)[0])
    return jax.numpy.asarray(outputs.value), 1 - jax.nn.softmax(outputs.risk_logits)[:, 0]


def measure_reliability(
    params: Params, families: Sequence[Family], *, tasks: int, first: int
) -> Reliability:
    """Play tasks of families of one architecture, and compare what was stated with what came.

    Args:
      params: of the policy, which decides.
      families: tasks are drawn from each.
      tasks: of each.
      first: seed of the first task; the others count up from it.
    """
    env = HostEnv(families[0].architecture)
    seeds = [first + index for index in range(tasks)] * len(families)
    drawn = draw_many([family for family in families for _ in range(tasks)], seeds)
    keys = jax.vmap(jax.random.PRNGKey)(np.array(seeds, np.uint32))
    pilots = stack([follow_network(env.epochs)] * len(seeds))
    runs = play_tasks(env, params, pilots, keys, drawn, 1)
    values: list[np.ndarray] = []
    risks: list[np.ndarray] = []
    for _ in range(env.epochs - 1):
        value, risk = _state(env, params, runs)
        values.append(np.asarray(value))
        risks.append(np.asarray(risk))
        runs = play_many(env, params, pilots, runs, drawn, undecided(len(seeds)), 1)
    losses = np.asarray(runs.losses).T
    logs = np.log(np.nan_to_num(losses, nan=9.0, posinf=9.0) + FLOOR)
    last = len(losses) - 1
    ahead = [losses[np.minimum(np.arange(1, last + 1) + i, last)] for i in range(RISK_HORIZON)]
    following = np.stack(ahead, axis=-1).reshape(-1, RISK_HORIZON)
    rose = rise_classes(losses[:-1].ravel(), following) > 0
    stated, came = np.concatenate(values), (logs[:-1] - logs[-1:]).ravel()
    of_risk = bins_of(np.concatenate(risks), rose.astype(np.float64))
    errors = [one.decisions * abs(one.stated - one.came) for one in of_risk]
    return Reliability(
        bins_of(stated, came),
        float(np.corrcoef(stated, came)[0, 1]),
        of_risk,
        sum(errors) / len(rose),
    )


def bins_of(stated: np.ndarray, came: np.ndarray) -> tuple[Bin, ...]:
    """Bins of equal counts, in the order of what was stated."""
    order = np.argsort(stated, kind="stable")
    return tuple(
        Bin(float(stated[rows].mean()), float(came[rows].mean()), len(rows))
        for rows in np.array_split(order, BINS)
        if len(rows)
    )
