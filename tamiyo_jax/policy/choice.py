"""Deciding by rules: from what a rule wants to outputs that select exactly that.

A network fills every head of `PolicyOutputs`. A policy of rules has one thing to say, and
says it here.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from tamiyo_jax.config import PolicyConfig
from tamiyo_jax.policy.actions import Action
from tamiyo_jax.policy.network import NUM_BREAKER_LOGITS, NUM_PARAMS, NUM_RISK_CLASSES
from tamiyo_jax.policy.outputs import NUM_ACTIONS, Legality, Observation, PolicyOutputs

__all__ = ["Choice", "first_legal", "outputs_for"]

_CONFIDENT = 20.0  # a logit that leaves the other classes about 1e-9 each


class Choice(NamedTuple):
    """What a rule wants.

    Attributes:
      action: the action.
      seed: row of the seed in the packet; None for the first that the action may take, and
        for an action that takes none.
      blueprint: row of the blueprint, where the active one is row 0 and the packet's other
        candidates follow in their order; None likewise.
      lr_delta: relative change of the learning rate in [-1, 1], of OPTIMIZER.
    """

    action: Action
    seed: int | None = None
    blueprint: int | None = None
    lr_delta: float = 0.0


def first_legal(wanted: Iterable[Choice], legality: Legality) -> Choice:
    """The first choice that may be made, WAIT where there is none.

    Args:
      wanted: choices, the most urgent first; those after the first legal one are not asked
        for.
      legality: what may be chosen, as the observation says.
    """
    return next((one for one in wanted if _is_legal(one, legality)), Choice(Action.WAIT))


def outputs_for(choice: Choice, observation: Observation, config: PolicyConfig) -> PolicyOutputs:
    """Outputs whose legal argmax is the choice: no risk, no value, the whole blend at once.

    Args:
      choice: one that is legal, as `first_legal` gives it.
      observation: what was decided upon; its masks have the sizes of the graph.
      config: the shapes of the outputs.
    """
    legality = observation.legality
    logits = np.full(NUM_ACTIONS, -_CONFIDENT, np.float32)
    logits[Action.WAIT] = 0.0
    logits[choice.action] = _CONFIDENT
    risk = np.zeros(NUM_RISK_CLASSES, np.float32)
    risk[0] = _CONFIDENT
    params = np.zeros(NUM_PARAMS, np.float32)
    params[0] = choice.lr_delta
    packet = observation.packet
    blueprints = len({packet.blueprint_id, *packet.candidates})
    return PolicyOutputs(
        policy_logits=logits,
        policy_params=params,
        param_delta=np.asarray(params[0]),
        blending_logits=np.zeros(len(config.blending_methods), np.float32),
        risk_logits=risk,
        value=np.zeros((), np.float32),
        schedule_params=np.array([-1.0, 1.0], np.float32),
        breaker_logits=np.zeros(NUM_BREAKER_LOGITS, np.float32),
        seed_scores=_scores(legality.seeds.shape[1], len(packet.seeds), choice.seed),
        blueprint_scores=_scores(len(legality.blueprints), blueprints, choice.blueprint),
        graph_embedding=np.zeros(config.gat_width, np.float32),
    )


def _is_legal(choice: Choice, legality: Legality) -> bool:
    rows = (choice.seed, legality.seeds[choice.action]), (choice.blueprint, legality.blueprints)
    return bool(
        legality.actions[choice.action]
        and all(row is None or (row < len(mask) and mask[row]) for row, mask in rows)
    )


def _scores(rows: int, real: int, chosen: int | None) -> np.ndarray:
    """Scores f32[rows]: 1 for the chosen row, 0 for other real ones, -inf for padding."""
    scores = np.full(rows, -np.inf, np.float32)
    scores[:real] = 0.0
    if chosen is not None:
        scores[chosen] = 1.0
    return scores
