"""The heuristic policy: rules on losses and stages, for users without trained parameters.

Packets may arrive once per batch while the rules count epochs, so a decision has two halves.
`observe` updates the counters once per epoch, on the first packet of that epoch that carries a
loss. `HeuristicPolicy.decide` then takes the first rule whose action is legal. Neither assumes
that a command was applied: the fate of a seed is read from its stage in later packets.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from tamiyo_jax.config import HeuristicConfig, PolicyConfig
from tamiyo_jax.contracts import SeedStage, SeedState, SystemStatePacket
from tamiyo_jax.policy._actions import Action
from tamiyo_jax.policy._choice import Choice, first_legal, outputs_for
from tamiyo_jax.policy._heuristic_state import ALIVE, HeuristicState, observe
from tamiyo_jax.policy._outputs import Legality, Observation, PolicyOutputs

__all__ = ["HeuristicPolicy"]

_FULL_ALPHA = 1.0 - 1e-6


class HeuristicPolicy:
    """A pure policy of rules; its state is a `HeuristicState`, and it takes no parameters.

    Args:
      config: the rules' numbers.
      policy: shapes of the outputs (blending methods, embedding).
    """

    def __init__(self, config: HeuristicConfig, policy: PolicyConfig) -> None:
        self._config = config
        self._policy = policy

    def initial_state(self) -> HeuristicState:
        """State before the first decision."""
        return HeuristicState()

    def decide(
        self, params: object, policy_state: HeuristicState, observation: Observation
    ) -> tuple[HeuristicState, PolicyOutputs]:
        """Decide on one observation, with outputs whose legal argmax is the rules' choice.

        Args:
          params: not used; rules have none.
          policy_state: the counters.
          observation: the packet and its legality masks.
        """
        del params
        packet, legality = observation.packet, observation.legality
        state = observe(self._config, policy_state, packet)
        choice = first_legal(self._rules(state, packet, legality), legality)
        outputs = outputs_for(choice, observation, self._policy)
        return self._remember(state, packet, choice), outputs

    def _rules(
        self, state: HeuristicState, packet: SystemStatePacket, legality: Legality
    ) -> Iterator[Choice]:
        """The choices of the rules, most urgent first; the last is to wait."""
        config = self._config
        for row, seed in enumerate(packet.seeds):
            epochs = state.harm.get(seed.seed_id, 0)
            if epochs >= config.harm_epochs:
                before = state.entry_loss.get(seed.seed_id, math.nan)
                yield Choice(
                    Action.CULL,
                    row,
                    reason="heuristic:harm",
                    explanation=f"validation loss worse than {before:.4g} at the start of the "
                    f"seed's stage for {epochs} epochs (now {state.loss:.4g})",
                )
        for row, seed in enumerate(packet.seeds):
            yield from self._next_choice(state, row, seed)
        if state.rises >= config.rising_epochs:
            yield Choice(
                Action.OPTIMIZER,
                lr_delta=-config.brake,
                reason="heuristic:rising_loss",
                explanation=f"loss rose for {state.rises} epochs (now {state.loss:.4g}), "
                f"limit {config.rising_epochs}",
            )
        obstacle = self._find_obstacle(state, packet)
        if obstacle is None:
            yield from self._germinations(state, packet, legality)
            obstacle = self._explain_progress(state) or (
                f"{_explain_plateau(state)}, but no dormant seed has a candidate to grow"
            )
        yield Choice(Action.WAIT, reason="heuristic:wait", explanation=obstacle)

    def _next_choice(self, state: HeuristicState, row: int, seed: SeedState) -> Iterator[Choice]:
        """What a seed's stage calls for, apart from harm."""
        match seed.stage:
            case SeedStage.GERMINATED:
                action, reason, explanation = Action.ADVANCE, "germinated", "the seed germinated"
            case SeedStage.TRAINING:
                trained = state.epoch - state.entered[seed.seed_id]
                if trained < self._config.train_epochs:
                    return
                action, reason = Action.ADVANCE, "trained"
                explanation = (
                    f"the seed trained for {trained} epochs, limit {self._config.train_epochs}"
                )
            case SeedStage.BLENDING:
                alpha = seed.metrics.get("alpha", 0.0)
                if not alpha >= _FULL_ALPHA:
                    return
                action, reason, explanation = Action.ADVANCE, "blended", f"alpha is {alpha:.4g}"
            case SeedStage.PROBATIONARY:
                contribution = seed.metrics.get("contribution", math.nan)
                if not math.isfinite(contribution):
                    return
                useful = contribution > 0.0
                action = Action.FOSSILIZE if useful else Action.CULL
                reason = "contribution"
                explanation = (
                    f"contribution to the validation loss {contribution:.4g} "
                    f"{'is' if useful else 'is not'} positive"
                )
            case _:
                return
        yield Choice(action, row, reason=f"heuristic:{reason}", explanation=explanation)

    def _find_obstacle(self, state: HeuristicState, packet: SystemStatePacket) -> str | None:
        """Why no seed may germinate now; None where one may."""
        config = self._config
        alive = [seed for seed in packet.seeds if seed.stage in ALIVE]
        if alive:
            return f"seed {alive[0].seed_id} is {alive[0].stage.name}"
        if state.culled_at is not None:
            since = state.epoch - state.culled_at
            if since < config.embargo_epochs:
                return f"{since} epochs since a seed was culled, limit {config.embargo_epochs}"
        if state.epoch < config.min_epochs:
            return self._explain_progress(state) or (
                f"epoch {state.epoch} is before the first for germination, {config.min_epochs}"
            )
        return None

    def _explain_progress(self, state: HeuristicState) -> str | None:
        """Why this is no plateau; None where it is."""
        limit = self._config.plateau_epochs
        return f"{_explain_plateau(state)}, limit {limit}" if state.stalled < limit else None

    def _germinations(
        self, state: HeuristicState, packet: SystemStatePacket, legality: Legality
    ) -> Iterator[Choice]:
        """Pairs of a dormant seed and a blueprint, culled blueprints left out.

        A pair whose gradient in the host's probe is large beside the network's own germinates at
        once, any other at a plateau.
        """
        ids = candidate_ids(packet)
        for (seed, row), ratio in _ranked(state, packet, legality, ids).items():
            if state.penalties.get(ids[row], 0.0) > self._config.penalty_skip:
                continue
            if ratio >= self._config.probe_ratio:
                reason = "heuristic:probe"
                explanation = f"the gradient of {ids[row]} is {ratio:.4g} of the network's own"
            elif state.stalled >= self._config.plateau_epochs:
                reason, explanation = "heuristic:plateau", _explain_plateau(state)
            else:
                return
            yield Choice(Action.GERMINATE, seed, row, reason=reason, explanation=explanation)

    def _remember(
        self, state: HeuristicState, packet: SystemStatePacket, choice: Choice
    ) -> HeuristicState:
        """Note the choice, as far as later packets are read with it."""
        if choice.seed is not None and choice.blueprint is not None:
            seed_id = packet.seeds[choice.seed].seed_id
            asked = {**state.asked, seed_id: candidate_ids(packet)[choice.blueprint]}
            return replace(state, asked=asked)
        return replace(state, rises=0) if choice.action is Action.OPTIMIZER else state


def _ranked(
    state: HeuristicState, packet: SystemStatePacket, legality: Legality, ids: tuple[str, ...]
) -> dict[tuple[int, int], float]:
    """The probe's ratios by rows of a dormant seed and a blueprint, the pair to grow first.

    Where the packet brings a probe, the largest ratio is first. Else it is the first dormant seed,
    and the blueprints have their turns, by their rows, so that they need no ids: the packet's
    candidates follow the active blueprint, which is row 0.
    """
    rows = np.flatnonzero(legality.blueprints).tolist()
    seeds = np.flatnonzero(legality.seeds[Action.GERMINATE]).tolist()
    probed = {
        (seed, row): float(np.nan_to_num(packet.seeds[seed].metrics[f"probe/{ids[row]}"]))
        for seed in seeds
        for row in rows
        if f"probe/{ids[row]}" in packet.seeds[seed].metrics
    }
    if probed:
        return dict(sorted(probed.items(), key=lambda item: -item[1]))
    turns = np.roll(rows, -(state.turn % max(len(rows), 1))).tolist()
    return {(seed, row): 0.0 for seed in seeds[:1] for row in turns}


def _explain_plateau(state: HeuristicState) -> str:
    if state.best is None:
        return "no finite loss was reported yet"
    if not state.stalled:
        return f"loss improved to {state.best:.4g}"
    epochs = "epoch" if state.stalled == 1 else "epochs"
    return f"no improvement for {state.stalled} {epochs} (best {state.best:.4g})"


def candidate_ids(packet: SystemStatePacket) -> tuple[str, ...]:
    """Ids of the blueprint nodes in the order of their rows: the active one, then the rest."""
    others = (name for name in packet.candidates if name != packet.blueprint_id)
    return (packet.blueprint_id, *others)
