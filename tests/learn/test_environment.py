"""The environment trains what the product trains, and observes what the product encodes."""

from __future__ import annotations

from functools import cache

import jax
import numpy as np
import pytest
from tiny_learning import FAMILY, action_of, tiny_env

from tamiyo_jax.contracts import CircuitBreakerState, SeedStage
from tamiyo_jax.graph import Registries, blueprint_order, encode
from tamiyo_jax.host import scale_of
from tamiyo_jax.learn import draw, packet_of
from tamiyo_jax.policy import Action, legality

pytestmark = pytest.mark.usefixtures("standard_promotion")

LIFE = (
    (Action.GERMINATE, 1, 2),
    (Action.WAIT, -1, -1),
    (Action.ADVANCE, 1, -1),
    (Action.PAUSE, -1, -1),
    (Action.ADVANCE, 1, -1),
    (Action.WAIT, -1, -1),
    (Action.ADVANCE, 1, -1),
    (Action.BREAKER_OPEN, -1, -1),
    (Action.CULL, 1, -1),
    (Action.OPTIMIZER, -1, -1),
)


@cache
def trained():
    """The states of a run in which a seed lives and is culled, with what was observed."""
    env, task, step, state = tiny_env()
    states = []
    for action, seed, blueprint in ((Action.WAIT, -1, -1), *LIFE):
        observation, state, *_ = step(state, action_of(action, seed, blueprint, -0.5))
        states.append((observation, state))
    return env, task, step, states


@pytest.mark.slow
def test_an_observation_is_the_graph_that_the_encoder_makes_of_the_packet() -> None:
    env, _, _, states = trained()
    registries = Registries.empty()
    for observed, state in states:
        packet = packet_of(env, state, "run")
        network = env.network
        expected, registries = encode(
            packet,
            network.blueprint,
            network.candidates,
            registries,
            env.layout,
            config=env.graph_config,
        )
        for name, array in expected._asdict().items():
            np.testing.assert_allclose(
                np.asarray(getattr(observed, name)), array, rtol=2e-6, atol=1e-7, err_msg=name
            )


@pytest.mark.slow
def test_what_is_legal_is_what_the_policy_may_choose_upon_the_packet() -> None:
    env, _, _, states = trained()
    for _, state in states:
        packet = packet_of(env, state, "run")
        opened = bool(state.host.breaker_open)
        expected = legality(
            packet,
            blueprint_order(env.network.blueprint, env.network.candidates),
            max_seeds=env.graph_config.max_seeds,
            max_blueprints=env.graph_config.max_blueprints,
            seedless=False,
            host_breaker=CircuitBreakerState.OPEN if opened else CircuitBreakerState.CLOSED,
        )
        for ours, theirs in zip(env.legal(state), expected, strict=True):
            np.testing.assert_array_equal(np.asarray(ours), theirs)


@pytest.mark.slow
def test_actions_move_a_seed_through_its_life() -> None:
    env, _, _, states = trained()
    name = env.slots[1]
    stages = [SeedStage(int(state.host.slots[name].state.stage)) for _, state in states]
    assert stages[:8] == [
        SeedStage.DORMANT,
        SeedStage.GERMINATED,
        SeedStage.GERMINATED,
        SeedStage.TRAINING,
        SeedStage.TRAINING,
        SeedStage.BLENDING,
        SeedStage.BLENDING,
        SeedStage.PROBATIONARY,
    ]
    assert stages[9] in (SeedStage.CULLED, SeedStage.EMBARGOED)
    other = env.slots[0]
    assert {int(s.host.slots[other].state.stage) for _, s in states} == {SeedStage.DORMANT}


def test_a_live_seed_is_paid_for() -> None:
    env, _, _, states = trained()
    live = [float(state.live) for _, state in states]
    assert live[0] == env.bare
    assert live[1] > env.bare
    assert live[9] == env.bare


def test_an_illegal_action_changes_nothing_but_the_count() -> None:
    _, _, step, states = trained()
    _, state = states[0]
    wait = action_of(Action.WAIT)
    illegal = action_of(Action.FOSSILIZE, 0)
    _, waited, *_ = step(state, wait)
    _, refused, *_ = step(state, illegal)
    assert int(refused.interventions) == int(waited.interventions) + 1
    jax.tree.map(np.testing.assert_array_equal, refused.host, waited.host)


def test_two_continuations_of_a_state_share_their_randomness() -> None:
    _, _, step, states = trained()
    wait = action_of(Action.WAIT)
    first, again = step(states[3][1], wait), step(states[3][1], wait)
    jax.tree.map(np.testing.assert_array_equal, first, again)


def test_a_halved_learning_rate_is_the_multiplier_of_the_host() -> None:
    _, _, _, states = trained()
    assert float(scale_of(states[-1][1].host)) == pytest.approx(0.5)


def test_equal_seeds_draw_equal_tasks_and_other_seeds_others() -> None:
    first, again, other = draw(FAMILY, 5), draw(FAMILY, 5), draw(FAMILY, 6)
    jax.tree.map(np.testing.assert_array_equal, first, again)
    assert not np.array_equal(first.train.inputs, other.train.inputs)
