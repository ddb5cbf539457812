"""Learning from logged decisions: behaviour cloning, weighted regression, and how well it went."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import numpy as np

from tamiyo_jax.config import PolicyConfig
from tamiyo_jax.graph import GraphLayout, GraphsTuple
from tamiyo_jax.learn._dataset import Dataset
from tamiyo_jax.learn._fitting import FitSettings, fit, fit_loss, outputs_of
from tamiyo_jax.learn._imitation import imitation_targets
from tamiyo_jax.policy import Action, Legality, Params, Selection, init_params, select

__all__ = ["Agreement", "agreement", "clone"]


class Agreement(NamedTuple):
    """How a policy answers to the logged decisions for one action.

    Attributes:
      action: its name.
      recorded: how often the policy on record chose it.
      recall: share of these in which this policy chooses it too.
      precision: share of this policy's choices of it in which the one on record did too; NaN
        where it never chooses it.
      targets: share of the recalled decisions with the same seed and blueprint.
    """

    action: str
    recorded: int
    recall: float
    precision: float
    targets: float


def clone(
    data: Dataset,
    seed: int,
    settings: FitSettings,
    *,
    config: PolicyConfig,
    temperature: float | None = None,
    on_update: Callable[[int, float], object] | None = None,
) -> Params:
    """Train a policy's network on logged decisions.

    Args:
      data: the decisions.
      seed: of the parameters and of the order of the examples.
      settings: how to fit.
      config: widths of the network.
      temperature: None imitates; a number prefers decisions that went well, see
        `imitation_targets`.
      on_update: see `fit`.
    """
    start, batches = jax.random.split(jax.random.key(seed))
    examples = (data.graphs, data.legality, imitation_targets(data, temperature=temperature))
    examples = jax.tree.map(jax.numpy.asarray, examples)
    params = init_params(config, start)
    return fit(params, data.layout, examples, batches, settings, loss=fit_loss, on_update=on_update)


def agreement(params: Params, data: Dataset) -> list[Agreement]:
    """Compare a policy's choices with the logged ones, action by action."""
    chosen = jax.tree.map(np.asarray, _choose(params, data.layout, data.graphs, data.legality))
    recorded = data.chosen
    rows: list[Agreement] = []
    for action in Action:
        logged, ours = recorded.action == action, chosen.action == action
        if not logged.any():
            continue
        both = logged & ours
        alike = (chosen.seed == recorded.seed) & (chosen.blueprint == recorded.blueprint)
        rows.append(
            Agreement(
                action.name,
                int(logged.sum()),
                float(both.sum() / logged.sum()),
                float(both.sum() / ours.sum()) if ours.any() else float("nan"),
                float((both & alike).sum() / both.sum()) if both.any() else float("nan"),
            )
        )
    return rows


@partial(jax.jit, static_argnums=1)
def _choose(
    params: Params, layout: GraphLayout, graphs: GraphsTuple, legality: Legality
) -> Selection:
    return jax.vmap(select)(outputs_of(params, layout, graphs), legality)
