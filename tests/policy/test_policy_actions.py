"""Legality, selection and proposals."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from policy.worlds import ACTIVE, GROWN, MAX_BLUEPRINTS, MAX_SEEDS, OTHER, blueprint, legal, row_of
from policy.worlds import packet as packet_of
from policy.worlds import seed as seed_of

from tamiyo_jax.config import PolicyConfig
from tamiyo_jax.contracts import (
    CircuitBreakerState,
    CommandType,
    HandlingClass,
    HazardBand,
    SafetySheet,
    SeedOperation,
    SeedStage,
)
from tamiyo_jax.errors import NoLegalActionError, NonFiniteOutputError, NoSeedCandidatesError
from tamiyo_jax.policy import (
    NUM_ACTIONS,
    Action,
    Legality,
    PolicyOutputs,
    Proposal,
    Selection,
    propose,
    select,
)

DORMANT = seed_of("s0", SeedStage.DORMANT)
NODES = (ACTIVE, GROWN, OTHER)
CONFIG = PolicyConfig.small()


def outputs_with(**fields: object) -> PolicyOutputs:
    zeros = PolicyOutputs(
        policy_logits=np.zeros(NUM_ACTIONS, np.float32),
        policy_params=np.zeros(4, np.float32),
        param_delta=np.float32(0.0),
        blending_logits=np.zeros(3, np.float32),
        risk_logits=np.zeros(5, np.float32),
        value=np.float32(0.0),
        schedule_params=np.zeros(2, np.float32),
        breaker_logits=np.zeros(2, np.float32),
        seed_scores=np.zeros(MAX_SEEDS, np.float32),
        blueprint_scores=np.zeros(MAX_BLUEPRINTS, np.float32),
        graph_embedding=np.zeros(16, np.float32),
    )
    return zeros._replace(**{name: np.asarray(x, np.float32) for name, x in fields.items()})


def preferring(action: Action, **fields: object) -> PolicyOutputs:
    logits = np.zeros(NUM_ACTIONS, np.float32)
    logits[action] = 5.0
    return outputs_with(policy_logits=logits, **fields)


def decide(packet, outputs, *, nodes=NODES, config=CONFIG, **how) -> Proposal:
    mask = legal(packet, *nodes, **how)
    return propose(packet, nodes, outputs, mask, select(outputs, mask), config)


@pytest.mark.parametrize(
    ("stage", "actions"),
    [
        (SeedStage.DORMANT, {Action.GERMINATE}),
        (SeedStage.GERMINATED, {Action.ADVANCE, Action.CULL}),
        (SeedStage.TRAINING, {Action.ADVANCE, Action.CULL}),
        (SeedStage.BLENDING, {Action.ADVANCE, Action.CULL}),
        (SeedStage.SHADOWING, {Action.CULL}),
        (SeedStage.PROBATIONARY, {Action.CULL, Action.FOSSILIZE}),
        (SeedStage.FOSSILIZED, set()),
        (SeedStage.CULLED, set()),
        (SeedStage.EMBARGOED, set()),
        (SeedStage.RESETTING, set()),
        (SeedStage.TERMINATED, set()),
    ],
)
def test_a_seeds_stage_decides_which_seed_actions_are_legal(stage, actions):
    mask = legal(packet_of(seed_of("s0", stage)))
    always = {Action.OPTIMIZER, Action.PAUSE, Action.WAIT, Action.BREAKER_OPEN}
    assert set(np.flatnonzero(mask.actions)) == actions | always
    for action in actions:
        np.testing.assert_array_equal(mask.seeds[action], [True, False, False])


def test_reserved_actions_are_never_legal():
    assert not legal(packet_of(DORMANT)).actions[len(Action) :].any()


def test_optimizer_needs_an_optimizer_id():
    assert not legal(packet_of(DORMANT, optimizer_id=None)).actions[Action.OPTIMIZER]


@pytest.mark.parametrize(
    ("state", "actions"),
    [
        (CircuitBreakerState.CLOSED, {Action.BREAKER_OPEN}),
        (CircuitBreakerState.OPEN, {Action.BREAKER_CLOSE}),
        (CircuitBreakerState.HALF_OPEN, {Action.BREAKER_OPEN, Action.BREAKER_CLOSE}),
        (CircuitBreakerState.UNKNOWN, set()),
    ],
)
def test_the_breaker_can_only_be_asked_into_another_state(state, actions):
    mask = legal(packet_of(DORMANT), host_breaker=state)
    breaker = {Action.BREAKER_OPEN, Action.BREAKER_CLOSE}
    assert set(np.flatnonzero(mask.actions)) & breaker == actions


def test_the_active_blueprint_is_no_candidate_unless_the_packet_says_so():
    np.testing.assert_array_equal(legal(packet_of(DORMANT)).blueprints, [False, True, True])
    named = packet_of(DORMANT, candidate_blueprint_ids=("network", "other"))
    np.testing.assert_array_equal(legal(named, ACTIVE, OTHER).blueprints, [True, True, False])
    alone = packet_of(DORMANT, candidate_blueprint_ids=())
    np.testing.assert_array_equal(legal(alone, ACTIVE).blueprints, [True, False, False])


@pytest.mark.parametrize(
    "fields",
    [
        {"quarantine_only": True},
        {"approval_required": True, "approved": False},
        {"safety": SafetySheet(0.9, HazardBand.HIGH, HandlingClass.QUARANTINE)},
    ],
)
def test_germinate_is_illegal_without_a_blueprint_that_may_be_grown(fields):
    packet = packet_of(DORMANT, candidate_blueprint_ids=("module",))
    mask = legal(packet, ACTIVE, blueprint("module", **fields))
    assert not mask.blueprints.any()
    assert not mask.actions[Action.GERMINATE]


def test_a_packet_without_seeds_raises_instead_of_pausing():
    with pytest.raises(NoSeedCandidatesError, match="packet-7"):
        legal(packet_of())


def test_a_host_declared_seedless_may_only_adjust_pause_break_or_wait():
    mask = legal(packet_of(), seedless=True)
    assert set(np.flatnonzero(mask.actions)) == {
        Action.OPTIMIZER,
        Action.PAUSE,
        Action.BREAKER_OPEN,
        Action.WAIT,
    }


def test_seeds_beyond_the_graphs_rows_cannot_be_chosen():
    seeds = [seed_of(f"s{i}", SeedStage.CULLED) for i in range(MAX_SEEDS)]
    mask = legal(packet_of(*seeds, seed_of("late", SeedStage.DORMANT)))
    assert not mask.actions[Action.GERMINATE]


def test_wait_wins_among_equal_logits_and_then_the_lower_index():
    mask = legal(packet_of(DORMANT))
    assert int(select(outputs_with(), mask).action) == Action.WAIT
    below = outputs_with().policy_logits.copy()
    below[Action.WAIT] = -1.0
    assert int(select(outputs_with(policy_logits=below), mask).action) == Action.GERMINATE


def test_an_illegal_action_is_masked_before_the_argmax():
    mask = legal(packet_of(DORMANT))
    logits = np.arange(NUM_ACTIONS, dtype=np.float32)
    assert int(select(outputs_with(policy_logits=logits), mask).action) == Action.WAIT


def test_equal_seed_scores_go_to_the_first_legal_seed():
    seeds = (seed_of("culled", SeedStage.CULLED), DORMANT, seed_of("s2", SeedStage.DORMANT))
    proposal = decide(packet_of(*seeds), preferring(Action.GERMINATE, seed_scores=[9.0, 1.0, 1.0]))
    assert (proposal.seed_id, proposal.seed_index, proposal.seed_score) == ("s0", 1, 1.0)


masks = hnp.arrays(np.bool_, (8, NUM_ACTIONS))


@given(data=st.data(), actions=masks)
def test_rows_of_a_batch_with_different_masks_do_not_leak(data, actions):
    actions[:, Action.WAIT] = True
    rows = len(actions)
    seeds = data.draw(hnp.arrays(np.bool_, (rows, NUM_ACTIONS, MAX_SEEDS)))
    blueprints = data.draw(hnp.arrays(np.bool_, (rows, MAX_BLUEPRINTS)))
    logits = data.draw(
        hnp.arrays(np.float32, (rows, NUM_ACTIONS), elements=st.sampled_from([-1.0, 0.0, 0.5]))
    )
    batch = jax.tree.map(lambda x: np.stack([x] * rows), outputs_with())
    batch = batch._replace(policy_logits=logits)
    legality = Legality(actions, seeds, blueprints)
    together = _select_batch(batch, legality)
    for row in range(rows):
        alone = _select_one(row_of(batch, row), Legality(*(x[row] for x in legality)))
        chosen = tuple(int(x[row]) for x in together)
        assert chosen == tuple(int(x) for x in alone)
        assert actions[row, chosen[0]]
        legal_logits = logits[row][actions[row]]
        assert logits[row, chosen[0]] == legal_logits.max()


_select_batch = jax.jit(jax.vmap(select))
_select_one = jax.jit(select)


def test_germinate_names_the_packets_own_seed_and_blueprint():
    proposal = decide(
        packet_of(DORMANT),
        preferring(
            Action.GERMINATE,
            blueprint_scores=[9.0, 0.0, 2.0],
            param_delta=-0.25,
            blending_logits=[0.0, 3.0, 1.0],
            schedule_params=[0.5, -0.5],
        ),
    )
    assert proposal.command_type is CommandType.SEED
    assert proposal.operation is SeedOperation.GERMINATE
    assert (proposal.seed_id, proposal.blueprint_id) == ("s0", "other")
    assert proposal.blending_method == "cosine"
    assert proposal.parameters == {
        "alpha": 0.0,
        "blending_method_index": 1.0,
        "blending_schedule_start": 0.25,
        "blending_schedule_end": 0.75,
    }


def test_germinate_asks_for_an_alpha_of_a_tenth_plus_the_delta():
    proposal = decide(packet_of(DORMANT), preferring(Action.GERMINATE, param_delta=0.4))
    assert proposal.parameters["alpha"] == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("stage", "operation"),
    [
        (SeedStage.GERMINATED, SeedOperation.START_TRAINING),
        (SeedStage.TRAINING, SeedOperation.START_GRAFTING),
        (SeedStage.BLENDING, SeedOperation.STABILIZE),
    ],
)
def test_advance_does_what_the_seeds_stage_calls_for(stage, operation):
    proposal = decide(packet_of(seed_of("s0", stage)), preferring(Action.ADVANCE))
    assert (proposal.operation, proposal.blueprint_id) == (operation, None)


def test_optimizer_scales_the_packets_optimizer_and_touches_no_seed():
    proposal = decide(packet_of(DORMANT), preferring(Action.OPTIMIZER, param_delta=-0.5))
    assert proposal.parameters == {"lr_delta": -0.5}
    assert (proposal.optimizer_id, proposal.seed_id, proposal.seed_index) == ("adam", None, None)


def test_wait_and_pause_and_breaker_name_no_ids():
    for action, kind in (
        (Action.WAIT, None),
        (Action.PAUSE, CommandType.PAUSE),
        (Action.BREAKER_OPEN, CommandType.CIRCUIT_BREAKER),
    ):
        proposal = decide(packet_of(DORMANT), preferring(action))
        assert proposal.command_type is kind
        assert (proposal.seed_id, proposal.blueprint_id, proposal.optimizer_id) == (None,) * 3
    assert proposal.breaker is CircuitBreakerState.OPEN


def test_a_network_sure_that_all_is_well_has_no_risk():
    calm = outputs_with(risk_logits=[20.0, 0.0, 0.0, 0.0, 0.0])
    proposal = decide(packet_of(DORMANT), calm)
    assert proposal.risk_index == 0
    assert proposal.risk_score < 1e-6
    imported = CONFIG.model_copy(update={"risk_semantics": "max_probability"})
    assert decide(packet_of(DORMANT), calm, config=imported).risk_score > 0.999


def test_a_network_explains_its_choice_by_probabilities_and_its_lead_over_waiting():
    logits = np.full(NUM_ACTIONS, -9.0, np.float32)
    logits[[Action.GERMINATE, Action.WAIT]] = 1.0, 0.0
    proposal = decide(packet_of(DORMANT), outputs_with(policy_logits=logits))
    assert proposal.reason == "network:germinate"
    assert proposal.explanation == ("GERMINATE has probability 0.73, WAIT 0.27 (advantage 1)")


def test_a_network_that_waits_names_the_next_best_action():
    logits = np.full(NUM_ACTIONS, -9.0, np.float32)
    logits[[Action.PAUSE, Action.WAIT]] = 0.0, 1.0
    proposal = decide(packet_of(DORMANT), outputs_with(policy_logits=logits))
    assert proposal.reason == "network:wait"
    assert proposal.explanation == "WAIT has probability 0.73, PAUSE 0.27 (advantage 1)"


def test_risk_is_the_probability_of_the_two_severest_classes():
    proposal = decide(packet_of(DORMANT), outputs_with())
    assert proposal.risk_score == pytest.approx(0.4)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", outputs_with().named_arrays())
def test_outputs_that_are_not_finite_raise_by_name(name, bad):
    array = np.array(getattr(outputs_with(), name))
    array.reshape(-1)[0] = bad
    with pytest.raises(NonFiniteOutputError, match=name) as caught:
        decide(packet_of(DORMANT), outputs_with(**{name: array}))
    assert caught.value.outputs == [name]


def test_minus_infinity_on_padding_is_no_error():
    padded = outputs_with(seed_scores=[0.0, -np.inf, -np.inf])
    assert decide(packet_of(DORMANT), padded).action is Action.WAIT


@pytest.mark.parametrize(
    "selection",
    [
        (9, -1, -1),
        (-1, -1, -1),
        (Action.CULL, 0, -1),
        (Action.GERMINATE, 0, 0),
        (Action.GERMINATE, -1, 1),
        (Action.GERMINATE, 1, 1),
    ],
)
def test_a_selection_that_is_not_legal_is_refused_instead_of_invented_around(selection):
    packet = packet_of(DORMANT)
    chosen = Selection(*(np.int32(index) for index in selection))
    with pytest.raises(NoLegalActionError):
        propose(packet, NODES, outputs_with(), legal(packet), chosen, CONFIG)
