"""Policies of rules: turn the choice of a rule into outputs that select exactly that choice."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from tamiyo_jax.config import PolicyConfig
from tamiyo_jax.policy._actions import Action
from tamiyo_jax.policy._network import NUM_BREAKER_LOGITS, NUM_PARAMS, NUM_RISK_CLASSES
from tamiyo_jax.policy._outputs import NUM_ACTIONS, Legality, Observation, PolicyOutputs, Rationale

__all__ = ["Choice", "first_legal", "outputs_for"]

_CONFIDENT = 20.0  # a logit that leaves the other classes about 1e-9 each


class Choice(NamedTuple):
    """What a rule chooses.

    Attributes:
      action: the action.
      seed: row of the seed in the packet; None for the first that the action may take, and
        for an action that takes none.
      blueprint: row of the blueprint, where the active one is row 0 and the packet's other
        candidates follow in their order; None likewise.
      lr_delta: relative change of the learning rate in [-1, 1], of OPTIMIZER.
      reason: short, stable id of the rule, such as ``mine:plateau``; empty for
        ``rule:<action>``.
      explanation: why, in words and with numbers, such as "no improvement for 3 epochs".
    """

    action: Action
    seed: int | None = None
    blueprint: int | None = None
    lr_delta: float = 0.0
    reason: str = ""
    explanation: str = ""


def first_legal(wanted: Iterable[Choice], legality: Legality) -> Choice:
    """The first choice that is legal; WAIT where there is none.

    Args:
      wanted: choices, the most urgent first; consumed up to the first that is legal.
      legality: what may be chosen; `Observation.legality`.
    """
    return next((choice for choice in wanted if _is_legal(choice, legality)), Choice(Action.WAIT))


def outputs_for(choice: Choice, observation: Observation, config: PolicyConfig) -> PolicyOutputs:
    """Outputs whose legal argmax is the choice: no risk, no value, the whole blend at once.

    Args:
      choice: a legal choice, as `first_legal` returns it.
      observation: the input of the decision; its masks have the sizes of the graph.
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
        rationale=Rationale(
            choice.reason or f"rule:{choice.action.name.lower()}",
            choice.explanation or f"a rule of the policy chose {choice.action.name}",
        ),
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
