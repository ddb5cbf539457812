"""The heuristic policy, as stories of training runs."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from policy.worlds import ACTIVE, GROWN, OTHER, observation, packet, seed

from tamiyo_jax.config import HeuristicConfig, PolicyConfig
from tamiyo_jax.contracts import SeedStage
from tamiyo_jax.policy import Action, HeuristicPolicy, HeuristicState, propose, select

POLICY = PolicyConfig.small()
NODES = (ACTIVE, GROWN, OTHER)
DORMANT = seed("s0", SeedStage.DORMANT)


class Run:
    """A training run that reports to the policy and carries its state."""

    def __init__(self, **rules: float) -> None:
        self.policy = HeuristicPolicy(HeuristicConfig(**rules), POLICY)
        self.state = self.policy.initial_state()

    def step(self, epoch, loss, *seeds, nodes=NODES, **fields):
        of = packet(*(seeds or (DORMANT,)), current_epoch=epoch, validation_loss=loss, **fields)
        seen = observation(of, *nodes)
        self.state, outputs = self.policy.decide({}, self.state, seen)
        return propose(of, nodes, outputs, seen.legality, select(outputs, seen.legality), POLICY)

    def steps(self, epochs, loss, *seeds, **fields):
        return [self.step(epoch, loss, *seeds, **fields).action for epoch in epochs]


def plateau(run: Run, *seeds, last: int = 8) -> list[Action]:
    return run.steps(range(last + 1), 1.0, *seeds)


def test_a_plateau_germinates_the_first_dormant_seed():
    run = Run()
    assert plateau(run, last=4) == [Action.WAIT] * 5
    proposal = run.step(5, 1.0, seed("done", SeedStage.FOSSILIZED), DORMANT)
    assert (proposal.action, proposal.seed_id) == (Action.GERMINATE, "s0")
    assert proposal.blueprint_id == GROWN.blueprint_id
    assert (proposal.schedule_start, proposal.schedule_end) == (0.0, 1.0)
    assert proposal.risk_index == 0
    assert proposal.risk_score < 1e-6


def probed(seed_id: str, **norms: float):
    """A dormant seed, and what the host's probe found for it."""
    names = {"grown": GROWN.blueprint_id, "other": OTHER.blueprint_id}
    metrics = {f"probe/{names[name]}": norm for name, norm in norms.items()}
    return seed(seed_id, SeedStage.DORMANT, **metrics)


@pytest.mark.parametrize(
    ("seeds", "chosen"),
    [
        ((probed("s0", grown=1.0, other=2.0),), ("s0", OTHER)),
        ((probed("s0", grown=3.0, other=2.0),), ("s0", GROWN)),
        ((probed("s0", grown=1.0, other=2.0), probed("s1", grown=4.0, other=1.0)), ("s1", GROWN)),
        ((probed("s0", grown=float("nan"), other=0.5),), ("s0", OTHER)),
        ((DORMANT, probed("s1", other=0.1)), ("s1", OTHER)),
    ],
)
def test_the_pair_with_the_largest_gradient_in_the_host_s_probe_germinates(seeds, chosen):
    run = Run()
    plateau(run, *seeds, last=4)
    proposal = run.step(5, 1.0, *seeds)
    assert proposal.action is Action.GERMINATE
    assert (proposal.seed_id, proposal.blueprint_id) == (chosen[0], chosen[1].blueprint_id)


@pytest.mark.parametrize(
    ("ratio", "epoch", "action"),
    [
        (1.5, 5, Action.GERMINATE),  # the loss falls, and the seed would make it fall faster
        (0.5, 5, Action.WAIT),
        (1.5, 4, Action.WAIT),
        (float("nan"), 5, Action.WAIT),
    ],
)
def test_a_candidate_with_a_larger_gradient_than_the_network_does_not_wait_for_a_plateau(
    ratio, epoch, action
):
    run = Run()
    for earlier in range(epoch):
        run.step(earlier, 0.9**earlier, DORMANT)
    proposal = run.step(epoch, 0.9**epoch, probed("s0", grown=0.1, other=ratio))
    assert proposal.action is action
    if action is Action.GERMINATE:
        assert proposal.blueprint_id == OTHER.blueprint_id


@pytest.mark.parametrize("stage", [SeedStage.GERMINATED, SeedStage.TRAINING])
def test_a_seed_without_a_share_of_the_output_is_not_culled_for_what_it_cannot_have_done(stage):
    run = Run(train_epochs=20)
    run.step(0, 1.0)
    assert Action.CULL not in run.steps(range(1, 9), 1.5, seed("s0", stage))


def test_falling_losses_are_left_alone():
    run = Run()
    assert [run.step(e, 1.0 * 0.98**e).action for e in range(20)] == [Action.WAIT] * 20


def test_an_improvement_below_half_a_percent_is_none():
    run = Run()
    actions = [run.step(e, 1.0 - 1e-4 * e).action for e in range(6)]
    assert actions[-1] is Action.GERMINATE


def test_many_packets_of_one_epoch_count_once():
    run = Run()
    for epoch in range(3):
        assert run.steps([epoch] * 50, 1.0) == [Action.WAIT] * 50
    assert run.state.stalled == 2


def test_an_epochs_loss_may_come_after_its_first_packets():
    run = Run()
    for epoch in range(5):
        run.step(epoch, None)
        run.step(epoch, 1.0)
    assert run.state.stalled == 4


def test_without_validation_the_smoothed_training_loss_shows_the_plateau():
    run = Run()
    actions = [run.step(epoch, None, training_loss=1.0).action for epoch in range(6)]
    assert actions[-1] is Action.GERMINATE


def test_a_loss_that_is_not_a_number_is_no_epoch_of_a_plateau():
    run = Run()
    assert run.steps(range(20), float("nan")) == [Action.WAIT] * 20


def test_only_one_seed_trains_at_a_time():
    run = Run()
    growing = seed("s1", SeedStage.SHADOWING)
    assert Action.GERMINATE not in plateau(run, DORMANT, growing, last=12)


def test_no_candidate_that_may_be_grown_means_waiting():
    run = Run()
    barred = dataclasses.replace(GROWN, quarantine_only=True)
    lone = {"candidate_blueprint_ids": ("module",), "nodes": (ACTIVE, barred)}
    assert set(run.steps(range(12), 1.0, **lone)) == {Action.WAIT}


def test_a_seeds_life_from_dormant_to_fossilized():
    run = Run()
    assert plateau(run, last=5)[-1] is Action.GERMINATE
    assert run.step(6, 1.0, seed("s0", SeedStage.GERMINATED)).action is Action.ADVANCE
    training = [run.step(e, 1.0, seed("s0", SeedStage.TRAINING)).action for e in range(7, 11)]
    assert training == [Action.WAIT] * 3 + [Action.ADVANCE]
    assert run.step(11, 1.0, seed("s0", SeedStage.BLENDING, alpha=0.9)).action is Action.WAIT
    assert run.step(12, 1.0, seed("s0", SeedStage.BLENDING, alpha=1.0)).action is Action.ADVANCE
    assert run.step(13, 1.0, seed("s0", SeedStage.SHADOWING)).action is Action.WAIT
    assert run.step(14, 1.0, seed("s0", SeedStage.PROBATIONARY)).action is Action.WAIT
    useful = seed("s0", SeedStage.PROBATIONARY, contribution=0.01)
    assert run.step(15, 1.0, useful).action is Action.FOSSILIZE


@pytest.mark.parametrize("contribution", [0.0, -0.1])
def test_a_seed_that_contributes_nothing_is_culled_from_probation(contribution):
    on_trial = seed("s0", SeedStage.PROBATIONARY, contribution=contribution)
    assert Run().step(0, 1.0, on_trial).action is Action.CULL


def test_a_seed_that_harms_validation_for_three_epochs_is_culled():
    run = Run()
    run.step(0, 1.0)
    growing = seed("s0", SeedStage.BLENDING, alpha=0.5)
    assert run.step(1, 1.0, growing).action is Action.WAIT
    assert run.steps([2, 2, 3], 1.03, growing) == [Action.WAIT] * 3
    assert run.step(4, 1.03, growing).action is Action.CULL


def test_one_good_epoch_resets_the_count_of_harmful_epochs():
    run = Run()
    growing = seed("s0", SeedStage.BLENDING, alpha=0.5)
    run.step(0, 1.0, growing)
    losses = [1.03, 1.03, 1.01, 1.03, 1.03]
    actions = [run.step(e, loss, growing).action for e, loss in enumerate(losses, 1)]
    assert actions == [Action.WAIT] * 5


def test_harm_is_measured_from_the_entry_into_the_stage():
    run = Run()
    run.step(0, 1.0, seed("s0", SeedStage.TRAINING))
    run.step(1, 1.5, seed("s0", SeedStage.BLENDING, alpha=0.1))
    actions = run.steps(range(2, 8), 1.5, seed("s0", SeedStage.BLENDING, alpha=0.5))
    assert Action.CULL not in actions


def test_a_cull_imposes_an_embargo_and_sends_the_blueprint_to_the_back():
    run = Run()
    assert plateau(run, last=5)[-1] is Action.GERMINATE
    run.step(6, 1.0, seed("s0", SeedStage.GERMINATED))
    fresh = seed("s1", SeedStage.DORMANT)
    culled = seed("s0", SeedStage.CULLED)
    assert run.steps(range(7, 12), 1.0, culled, fresh) == [Action.WAIT] * 5
    proposal = run.step(12, 1.0, culled, fresh)
    assert (proposal.action, proposal.seed_id) == (Action.GERMINATE, "s1")
    assert proposal.blueprint_id == OTHER.blueprint_id


def test_a_culled_blueprint_waits_until_its_penalty_has_faded():
    run = Run(embargo_epochs=0)
    lone = {"candidate_blueprint_ids": ("module",), "nodes": (ACTIVE, GROWN)}
    assert run.steps(range(6), 1.0, **lone)[-1] is Action.GERMINATE
    run.step(6, 1.0, seed("s0", SeedStage.GERMINATED), **lone)
    run.step(7, 1.0, seed("s0", SeedStage.CULLED), **lone)
    assert run.state.penalties == {"module": 2.0}
    again = [seed("s0", SeedStage.CULLED), seed("s1", SeedStage.DORMANT)]
    actions = run.steps(range(8, 13), 1.0, *again, **lone)
    assert actions == [Action.WAIT] * 4 + [Action.GERMINATE]


def test_a_rising_loss_brakes_the_optimizer_once():
    run = Run()
    proposals = [run.step(e, 1.0 + 0.1 * e) for e in range(5)]
    assert [proposal.action for proposal in proposals[:4]] == [Action.WAIT] * 3 + [Action.OPTIMIZER]
    assert proposals[3].parameters == {"lr_delta": pytest.approx(-0.2)}
    assert proposals[4].action is Action.WAIT


def test_a_rising_loss_without_an_optimizer_is_only_watched():
    run = Run()
    actions = [run.step(e, 1.0 + 0.1 * e, optimizer_id=None).action for e in range(5)]
    assert actions == [Action.WAIT] * 5


def test_a_refused_germination_is_asked_for_again_and_counts_no_turn():
    run = Run()
    plateau(run, last=6)
    assert run.step(7, 1.0).action is Action.GERMINATE
    assert run.state.turn == 0


def test_the_state_is_plain_json_and_decides_the_same_after_a_restart():
    run = Run()
    run.step(0, 1.0, seed("s0", SeedStage.TRAINING))
    run.step(1, 1.03, seed("s0", SeedStage.TRAINING))
    restored = HeuristicState(**json.loads(json.dumps(dataclasses.asdict(run.state))))
    assert restored == run.state
    before = dataclasses.asdict(run.state)
    seen = observation(packet(DORMANT, current_epoch=2, validation_loss=1.0))
    one, other = (run.policy.decide({}, state, seen) for state in (run.state, restored))
    assert one[0] == other[0]
    assert all(np.array_equal(x, y) for x, y in zip(one[1], other[1], strict=True))
    assert dataclasses.asdict(run.state) == before


def test_huge_losses_never_become_infinite_in_the_state():
    run, huge = Run(smoothing=0.9), 1.7e308
    losses = [huge, -huge, huge, huge, -huge, 1.0, -huge]
    for epoch, loss in enumerate(losses):
        run.step(epoch, None, training_loss=loss)
        for name in ("smoothed", "loss", "best"):
            assert np.isfinite(getattr(run.state, name)), (epoch, name)
    json.dumps(dataclasses.asdict(run.state), allow_nan=False)


def test_a_huge_validation_loss_is_harm_and_does_not_stop_the_rules():
    run, huge = Run(), 1.7e308
    blending = seed("s0", SeedStage.BLENDING)
    run.step(0, -huge, blending)
    actions = run.steps(range(1, 4), huge, blending)
    assert actions[-1] is Action.CULL


# What each rule says of its decision: a run, and the last reason and explanation.
def grow(run: Run, *stages: dict[str, object]):
    plateau(run, last=5)
    return [run.step(6 + n, 1.0, seed("s0", **stage)) for n, stage in enumerate(stages)][-1]


GERMINATED, TRAINING, BLENDING, PROBATIONARY = (
    {"stage": SeedStage[name]} for name in ("GERMINATED", "TRAINING", "BLENDING", "PROBATIONARY")
)


@pytest.mark.parametrize(
    ("story", "reason", "explanation"),
    [
        (lambda run: run.step(0, 0.966), "wait", "loss improved to 0.966, limit 3"),
        (
            lambda run: [run.step(e, 0.966) for e in range(3)][-1],
            "wait",
            "no improvement for 2 epochs (best 0.966), limit 3",
        ),
        (
            lambda run: [run.step(e, 0.966) for e in range(4)][-1],
            "wait",
            "epoch 3 is before the first for germination, 5",
        ),
        (
            lambda run: [run.step(e, 0.966) for e in range(6)][-1],
            "plateau",
            "no improvement for 5 epochs (best 0.966)",
        ),
        (lambda run: grow(run, GERMINATED), "germinated", "the seed germinated"),
        (lambda run: grow(run, GERMINATED, TRAINING), "wait", "seed s0 is TRAINING"),
        (
            lambda run: grow(run, *[TRAINING] * 4),
            "trained",
            "the seed trained for 3 epochs, limit 3",
        ),
        (lambda run: grow(run, {**BLENDING, "alpha": 1.0}), "blended", "alpha is 1"),
        (
            lambda run: grow(run, {**PROBATIONARY, "contribution": 0.0125}),
            "contribution",
            "contribution to the validation loss 0.0125 is positive",
        ),
        (
            lambda run: [run.step(e, 1.0 + e, optimizer_id="adam") for e in range(4)][-1],
            "rising_loss",
            "loss rose for 3 epochs (now 4), limit 3",
        ),
    ],
)
def test_each_rule_explains_its_decision_with_its_numbers(story, reason, explanation):
    proposal = story(Run())
    assert (proposal.reason, proposal.explanation) == (f"heuristic:{reason}", explanation)
