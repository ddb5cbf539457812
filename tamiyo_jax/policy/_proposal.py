"""From a selection to a proposal: rows of the graph become ids of the packet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tamiyo_jax.config import PolicyConfig
from tamiyo_jax.contracts import (
    Blueprint,
    CircuitBreakerState,
    CommandType,
    SeedOperation,
    SystemStatePacket,
)
from tamiyo_jax.errors import NoLegalActionError, NonFiniteOutputError
from tamiyo_jax.policy._actions import ACTIONS, Action, Selection
from tamiyo_jax.policy._outputs import Array, Legality, PolicyOutputs, Rationale

__all__ = ["Proposal", "propose"]

_BASE_ALPHA = 0.1  # what a germinated seed of a Leyline peer starts at, before param_delta
_SEVERE = 3  # risk classes from here on count towards the risk score


@dataclass(frozen=True, slots=True)
class Proposal:
    """What the policy proposes to the gate; it names only what the packet holds.

    Attributes:
      action: the action.
      reason: id of the policy's rule, ``network:<action>`` where the logits decided.
      explanation: why, in words and with numbers.
      command_type: the command, None for WAIT.
      operation: what to do to the seed, None where no seed is acted upon.
      seed_id: the seed, or None.
      blueprint_id: the blueprint to germinate, or None.
      optimizer_id: the optimiser to adjust, or None.
      breaker: the requested state of the host's breaker, or None.
      parameters: numbers that go with the command: of GERMINATE ``alpha``,
        ``blending_method_index``, ``blending_schedule_start`` and ``blending_schedule_end``,
        of OPTIMIZER ``lr_delta``.
      lr_delta: relative change of the learning rate in [-1, 1]; known of every proposal,
        since the gate may turn another command into OPTIMIZER.
      blending_index: index of the likeliest blending method.
      blending_method: its name.
      schedule_start: fraction in [0, 1] of the host's blending steps; never after the end.
      schedule_end: fraction in [0, 1].
      value: the value head's estimate.
      risk_index: the likeliest risk class, 0 to 4.
      risk_score: in [0, 1]; see `PolicyConfig.risk_semantics`.
      breaker_open_score: logit of opening the host's breaker.
      breaker_close_score: logit of closing it.
      seed_index: row of the seed, or None.
      seed_score: its score, or None.
      blueprint_index: row of the blueprint, or None.
      blueprint_score: its score, or None.
    """

    action: Action
    reason: str
    explanation: str
    command_type: CommandType | None
    operation: SeedOperation | None
    seed_id: str | None
    blueprint_id: str | None
    optimizer_id: str | None
    breaker: CircuitBreakerState | None
    parameters: Mapping[str, float]
    lr_delta: float
    blending_index: int
    blending_method: str
    schedule_start: float
    schedule_end: float
    value: float
    risk_index: int
    risk_score: float
    breaker_open_score: float
    breaker_close_score: float
    seed_index: int | None
    seed_score: float | None
    blueprint_index: int | None
    blueprint_score: float | None


def propose(
    packet: SystemStatePacket,
    candidates: Sequence[Blueprint],
    outputs: PolicyOutputs,
    legality: Legality,
    selection: Selection,
    config: PolicyConfig,
) -> Proposal:
    """Map a selection to the ids of its packet.

    Args:
      packet: the packet that the policy observed.
      candidates: the blueprints in the order of their nodes, the active one first.
      outputs: the policy's outputs for it, on the host and without a batch axis.
      legality: what may be chosen.
      selection: what was chosen.
      config: names of the blending methods, and the meaning of the risk score.

    Raises:
      NonFiniteOutputError: an output is NaN or infinite; padding scores of -inf are not
        outputs.
      NoLegalActionError: the selection is not legal.
    """
    _check_finite(outputs, seeds=len(packet.seeds), blueprints=len(candidates))
    action, seed, blueprint = _check_legal(selection, legality)
    rule = ACTIONS[action]
    method = int(np.argmax(outputs.blending_logits))
    start, end = sorted(float((x + 1.0) / 2.0) for x in outputs.schedule_params)
    risk_index, risk_score = _risk(outputs.risk_logits, config)
    lr_delta = float(outputs.param_delta)
    parameters: dict[str, float] = {}
    if action is Action.GERMINATE:
        parameters = {
            "alpha": max(0.0, _BASE_ALPHA + lr_delta),
            "blending_method_index": float(method),
            "blending_schedule_start": start,
            "blending_schedule_end": end,
        }
    elif action is Action.OPTIMIZER:
        parameters = {"lr_delta": lr_delta}
    rationale = outputs.rationale or _explain_logits(outputs, legality, action)
    return Proposal(
        action=action,
        reason=rationale.reason,
        explanation=rationale.explanation,
        command_type=rule.command_type,
        operation=None if seed is None else rule.operations[packet.seeds[seed].stage],
        seed_id=None if seed is None else packet.seeds[seed].seed_id,
        blueprint_id=None if blueprint is None else candidates[blueprint].blueprint_id,
        optimizer_id=packet.optimizer_id if action is Action.OPTIMIZER else None,
        breaker=rule.desired_breaker,
        parameters=parameters,
        lr_delta=lr_delta,
        blending_index=method,
        blending_method=config.blending_methods[method],
        schedule_start=start,
        schedule_end=end,
        value=float(outputs.value),
        risk_index=risk_index,
        risk_score=risk_score,
        breaker_open_score=float(outputs.breaker_logits[0]),
        breaker_close_score=float(outputs.breaker_logits[1]),
        seed_index=seed,
        seed_score=None if seed is None else float(outputs.seed_scores[seed]),
        blueprint_index=blueprint,
        blueprint_score=None if blueprint is None else float(outputs.blueprint_scores[blueprint]),
    )


def _check_finite(outputs: PolicyOutputs, *, seeds: int, blueprints: int) -> None:
    real = outputs._replace(
        seed_scores=outputs.seed_scores[:seeds],
        blueprint_scores=outputs.blueprint_scores[:blueprints],
    )
    arrays = real.named_arrays()
    if np.isfinite(np.concatenate([*arrays.values()], axis=None)).all():
        return
    bad = [name for name, array in arrays.items() if not np.all(np.isfinite(array))]
    raise NonFiniteOutputError(
        f"the policy's outputs {', '.join(bad)} hold NaN or infinity; check the parameters "
        "that were loaded",
        outputs=bad,
    )


def _check_legal(selection: Selection, legality: Legality) -> tuple[Action, int | None, int | None]:
    index, seed, blueprint = map(int, selection)
    legal = 0 <= index < len(ACTIONS) and bool(legality.actions[index])
    if legal and ACTIONS[Action(index)].operations:
        legal = seed >= 0 and bool(legality.seeds[index, seed])
    if legal and ACTIONS[Action(index)].needs_blueprint:
        legal = blueprint >= 0 and bool(legality.blueprints[blueprint])
    if not legal:
        allowed = [Action(int(index)).name for index in np.flatnonzero(legality.actions)]
        raise NoLegalActionError(
            f"action {index} with seed {seed} and blueprint {blueprint} is not legal here; "
            f"legal are {allowed}. Choose with select, which applies the mask",
            action=index,
            seed=seed,
            blueprint=blueprint,
        )
    rule = ACTIONS[Action(index)]
    return (
        Action(index),
        seed if rule.operations else None,
        blueprint if rule.needs_blueprint else None,
    )


def _explain_logits(outputs: PolicyOutputs, legality: Legality, action: Action) -> Rationale:
    """The chosen action's probability among the legal ones, and its lead in logits."""
    logits = np.where(legality.actions, outputs.policy_logits, -np.inf)
    weights = np.exp(logits - np.max(logits))
    shares = weights / np.sum(weights)
    others = np.where(np.arange(len(logits)) == action, -np.inf, logits)
    rival = Action.WAIT if action is not Action.WAIT else Action(int(np.argmax(others)))
    lead = logits[action] - logits[rival]
    return Rationale(
        f"network:{action.name.lower()}",
        f"{action.name} has probability {shares[action]:.2g}, {rival.name} "
        f"{shares[rival]:.2g} (advantage {lead:.2g})",
    )


def _risk(logits: Array, config: PolicyConfig) -> tuple[int, float]:
    """Risk class and score of f32[5] logits."""
    weights = np.exp(logits - np.max(logits))
    probabilities = weights / np.sum(weights)
    index = int(np.argmax(probabilities))
    if config.risk_semantics == "max_probability":
        return index, float(probabilities[index])
    return index, float(np.sum(probabilities[_SEVERE:]))
