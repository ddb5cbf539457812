"""Deciding by rules: what a rule wants is what is proposed, if it is legal."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from policy.worlds import ACTIVE, GROWN, OTHER, observation, packet, seed

from tamiyo_jax.config import PolicyConfig
from tamiyo_jax.contracts import SeedStage
from tamiyo_jax.policy import Action, Choice, Proposal, first_legal, outputs_for, propose, select

POLICY = PolicyConfig.small()
NODES = (ACTIVE, GROWN, OTHER)  # the active one is no candidate
WORLD = packet(
    seed("done", SeedStage.FOSSILIZED),
    seed("first", SeedStage.DORMANT),
    seed("second", SeedStage.DORMANT),
)


def proposed(*wanted: Choice) -> Proposal:
    seen = observation(WORLD, *NODES)
    outputs = outputs_for(first_legal(wanted, seen.legality), seen, POLICY)
    return propose(WORLD, NODES, outputs, seen.legality, select(outputs, seen.legality), POLICY)


@pytest.mark.parametrize(
    ("choice", "action", "seed_id", "blueprint_id"),
    [
        (Choice(Action.WAIT), Action.WAIT, None, None),
        (Choice(Action.PAUSE), Action.PAUSE, None, None),
        (Choice(Action.GERMINATE, 2, 2), Action.GERMINATE, "second", "other"),
        (Choice(Action.GERMINATE, 2), Action.GERMINATE, "second", "module"),
        (Choice(Action.GERMINATE), Action.GERMINATE, "first", "module"),
        # What is not legal is not done, and nothing like it either.
        (Choice(Action.GERMINATE, 0), Action.WAIT, None, None),
        (Choice(Action.GERMINATE, 1, 0), Action.WAIT, None, None),
        (Choice(Action.GERMINATE, 99), Action.WAIT, None, None),
        (Choice(Action.ADVANCE), Action.WAIT, None, None),
        (Choice(Action.BREAKER_CLOSE), Action.WAIT, None, None),
    ],
)
def test_a_legal_choice_is_what_is_proposed_and_any_other_is_to_wait(
    choice: Choice, action: Action, seed_id: str | None, blueprint_id: str | None
) -> None:
    proposal = proposed(choice)
    assert (proposal.action, proposal.seed_id) == (action, seed_id)
    assert proposal.blueprint_id == blueprint_id


def test_the_learning_rate_changes_by_what_was_chosen() -> None:
    proposal = proposed(Choice(Action.OPTIMIZER, lr_delta=-0.25))
    assert proposal.parameters == {"lr_delta": -0.25}
    assert proposal.optimizer_id == "adam"


def test_the_first_legal_choice_is_made_and_no_further_one_asked_for() -> None:
    def wanted() -> Iterator[Choice]:
        yield Choice(Action.CULL, 0)
        yield Choice(Action.GERMINATE, 1)
        raise AssertionError("asked for one more")

    chosen = first_legal(wanted(), observation(WORLD, *NODES).legality)
    assert chosen == Choice(Action.GERMINATE, 1)


def test_rules_claim_no_risk_so_that_the_gate_applies_its_own_rules() -> None:
    proposal = proposed(Choice(Action.GERMINATE))
    assert proposal.risk_score < 1e-6
    assert (proposal.schedule_start, proposal.schedule_end) == (0.0, 1.0)


def test_a_choice_without_a_reason_is_named_after_its_action() -> None:
    proposal = proposed(Choice(Action.PAUSE))
    assert proposal.reason == "rule:pause"
    assert proposal.explanation == "a rule of the policy chose PAUSE"
    named = proposed(Choice(Action.PAUSE, reason="mine:heat", explanation="42 °C, limit 40"))
    assert (named.reason, named.explanation) == ("mine:heat", "42 °C, limit 40")
