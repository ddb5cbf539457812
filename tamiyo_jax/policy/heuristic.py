"""The heuristic policy: rules on losses and stages, for users without trained parameters.

Packets may come per batch while the rules count epochs, so a decision has two halves.
`observe` takes in what is new: it advances the counters once per epoch, on the first packet
of that epoch that brings a loss. `HeuristicPolicy.decide` then takes the first rule that has
something legal to do. Neither trusts that a command was applied: what became of a seed is
read off its stage in later packets.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from tamiyo_jax.config import HeuristicConfig, PolicyConfig
from tamiyo_jax.contracts.packet import SeedStage, SeedState, SystemStatePacket
from tamiyo_jax.policy.actions import Action
from tamiyo_jax.policy.choice import Choice, first_legal, outputs_for
from tamiyo_jax.policy.heuristic_state import ALIVE, HeuristicState, observe
from tamiyo_jax.policy.outputs import Legality, Observation, PolicyOutputs

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
        """Answer one observation with outputs whose legal argmax is the rules' choice.

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
        """What the rules want, most urgent first; the first that is legal is done."""
        for row, seed in enumerate(packet.seeds):
            if state.harm.get(seed.seed_id, 0) >= self._config.harm_epochs:
                yield Choice(Action.CULL, row)
        for row, seed in enumerate(packet.seeds):
            action = self._next_action(state, seed)
            if action is not None:
                yield Choice(action, row)
        if state.rises >= self._config.rising_epochs:
            yield Choice(Action.OPTIMIZER, lr_delta=-self._config.brake)
        if self._may_germinate(state, packet):
            yield from self._germinations(state, packet, legality)

    def _next_action(self, state: HeuristicState, seed: SeedState) -> Action | None:
        """What a seed's stage calls for, apart from harm."""
        match seed.stage:
            case SeedStage.GERMINATED:
                return Action.ADVANCE
            case SeedStage.TRAINING:
                trained = state.epoch - state.entered[seed.seed_id]
                return Action.ADVANCE if trained >= self._config.train_epochs else None
            case SeedStage.BLENDING:
                blended = seed.metrics.get("alpha", 0.0) >= _FULL_ALPHA
                return Action.ADVANCE if blended else None
            case SeedStage.PROBATIONARY:
                contribution = seed.metrics.get("contribution", float("nan"))
                if not np.isfinite(contribution):
                    return None
                return Action.FOSSILIZE if contribution > 0.0 else Action.CULL
            case _:
                return None

    def _may_germinate(self, state: HeuristicState, packet: SystemStatePacket) -> bool:
        embargoed = (
            state.culled_at is not None
            and state.epoch - state.culled_at < self._config.embargo_epochs
        )
        return (
            state.stalled >= self._config.plateau_epochs
            and state.epoch >= self._config.min_epochs
            and not embargoed
            and not any(seed.stage in ALIVE for seed in packet.seeds)
        )

    def _germinations(
        self, state: HeuristicState, packet: SystemStatePacket, legality: Legality
    ) -> Iterator[Choice]:
        """The next dormant seed with each blueprint in its turn, culled ones left out.

        Turns follow the rows of the blueprints, so that they need no ids: the packet's
        candidates follow the active blueprint, which is row 0.
        """
        rows = np.flatnonzero(legality.blueprints)
        ids = candidate_ids(packet)
        for seed in np.flatnonzero(legality.seeds[Action.GERMINATE])[:1]:
            for row in np.roll(rows, -(state.turn % max(len(rows), 1))):
                if state.penalties.get(ids[row], 0.0) <= self._config.penalty_skip:
                    yield Choice(Action.GERMINATE, int(seed), int(row))

    def _remember(
        self, state: HeuristicState, packet: SystemStatePacket, choice: Choice
    ) -> HeuristicState:
        """Note what was asked for, as far as later packets must be read in its light."""
        if choice.seed is not None and choice.blueprint is not None:
            seed_id = packet.seeds[choice.seed].seed_id
            asked = {**state.asked, seed_id: candidate_ids(packet)[choice.blueprint]}
            return replace(state, asked=asked)
        return replace(state, rises=0) if choice.action is Action.OPTIMIZER else state


def candidate_ids(packet: SystemStatePacket) -> tuple[str, ...]:
    """Ids of the blueprint nodes in the order of their rows: the active one, then the rest."""
    others = (one for one in packet.candidates if one != packet.blueprint_id)
    return (packet.blueprint_id, *others)
