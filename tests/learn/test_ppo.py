"""Proximal policy optimisation at a tiny size."""

from __future__ import annotations

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_learning import FAMILY, TINY

from tamiyo_jax.config import PolicyConfig
from tamiyo_jax.learn import EnvAction, HostEnv, PpoSettings, Prices, draw_many, improve
from tamiyo_jax.learn._drawing import log_probability
from tamiyo_jax.learn._ppo import advantages_of, roll_out
from tamiyo_jax.policy import Action, Legality, PolicyOutputs, init_params

pytestmark = pytest.mark.usefixtures("standard_promotion")

RUNS = 4
DEAR = Prices(size=0.0, decision=3.0)
SETTINGS = PpoSettings(iterations=12, tasks=2, group=2, passes=3, batch_size=8, learning_rate=3e-3)


@cache
def network():
    return init_params(PolicyConfig.small(), jax.random.key(0))


@cache
def improved():
    said: list[tuple[int, float]] = []
    env = HostEnv(TINY)
    found = improve(
        [(env, [FAMILY])],
        network(),
        np.random.default_rng(3),
        SETTINGS,
        prices=DEAR,
        on_iteration=lambda done, returned: said.append((done, returned)),
    )
    return found, said


def play(prices: Prices, params):
    env = HostEnv(TINY)
    keys = jax.vmap(jax.random.PRNGKey)(np.arange(RUNS))
    tasks = draw_many([FAMILY] * RUNS, list(range(RUNS)))
    return roll_out(env, params, keys, keys, tasks, prices, SETTINGS.spread)


def test_an_advantage_is_what_came_less_what_was_expected_and_decays_ahead() -> None:
    generator = np.random.default_rng(0)
    rewards, values = generator.normal(size=(2, 5, 3)).astype(np.float32)
    following = np.concatenate([values[1:], np.zeros((1, 3), np.float32)])
    errors = rewards + following - values
    for decay in (0.0, 0.9, 1.0):
        expected = [
            sum(decay**ahead * errors[step + ahead] for ahead in range(5 - step))
            for step in range(5)
        ]
        found = advantages_of(jnp.asarray(rewards), jnp.asarray(values), decay)
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_what_is_drawn_is_legal_and_has_the_probability_that_is_stated() -> None:
    played = play(DEAR, network())
    kinds = np.asarray(played.actions.action)
    assert kinds.shape == (TINY.epochs - 1, RUNS)
    legal = np.take_along_axis(np.asarray(played.legality.actions), kinds[..., None], axis=-1)
    assert legal.all()
    grows = kinds == Action.GERMINATE
    assert ((np.asarray(played.actions.blueprint) > 0) == grows).all()
    assert np.isfinite(played.log_probability).all()


def test_the_probabilities_of_all_choices_add_up_to_one() -> None:
    generator = np.random.default_rng(1)
    actions = np.zeros(32, np.bool_)
    actions[[Action.GERMINATE, Action.WAIT, Action.CULL]] = True
    seeds = np.zeros((32, 3), np.bool_)
    seeds[Action.GERMINATE, :2] = True
    seeds[Action.CULL, 2] = True
    legality = Legality(actions, seeds, np.array([False, True, True]))
    outputs = PolicyOutputs(
        **dict.fromkeys(PolicyOutputs._fields, jnp.float32(0))
        | {
            "policy_logits": jnp.asarray(generator.normal(size=32), jnp.float32),
            "seed_scores": jnp.asarray(generator.normal(size=3), jnp.float32),
            "blueprint_scores": jnp.asarray(generator.normal(size=3), jnp.float32),
        }
    )

    def probability(action: Action, seed: int, blueprint: int) -> float:
        chosen = EnvAction(*map(jnp.int32, (action, seed, blueprint)), jnp.float32(0))
        return float(jnp.exp(log_probability(outputs, legality, chosen, 0.1)))

    ways = [(Action.GERMINATE, seed, blueprint) for seed in (0, 1) for blueprint in (1, 2)]
    ways += [(Action.WAIT, -1, -1), (Action.CULL, 2, -1)]
    assert sum(probability(*way) for way in ways) == pytest.approx(1.0, abs=1e-5)


@pytest.mark.slow
def test_rewards_add_up_to_the_fall_of_the_loss_less_the_prices() -> None:
    free, dear = play(Prices(size=0.0, decision=0.0), network()), play(DEAR, network())
    decided = np.sum(np.asarray(dear.actions.action) != Action.WAIT, axis=0)
    assert decided.max() > 0
    np.testing.assert_allclose(
        np.sum(free.reward, axis=0) - np.sum(dear.reward, axis=0), 3.0 * decided, rtol=1e-4
    )


@pytest.mark.slow
def test_a_network_learns_to_wait_where_decisions_are_dear() -> None:
    before, after = play(DEAR, network()), play(DEAR, improved()[0])

    def decided(played) -> int:
        return int(np.sum(np.asarray(played.actions.action) != Action.WAIT))

    assert decided(after) < decided(before) / 2
    said = improved()[1]
    assert [done for done, _ in said] == list(range(1, 1 + SETTINGS.iterations))
    assert said[-1][1] > said[0][1]


@pytest.mark.slow
def test_the_same_generator_gives_the_same_parameters() -> None:
    again = improve(
        [(HostEnv(TINY), [FAMILY])], network(), np.random.default_rng(3), SETTINGS, prices=DEAR
    )
    jax.tree.map(np.testing.assert_array_equal, again, improved()[0])
