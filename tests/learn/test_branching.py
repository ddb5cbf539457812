"""Branching samples advantages under common randomness, and the same seed learns the same."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from tiny_learning import FAMILY, tiny_env

from tamiyo_jax.learn import (
    BranchSettings,
    FitSettings,
    collect,
    contestants,
    difference,
    evaluate,
    learn,
)
from tamiyo_jax.policy import Action

pytestmark = [pytest.mark.usefixtures("standard_promotion"), pytest.mark.slow]

NUMBERS = {"rates": (1.0, 0.0), "growth": (1.0, 2.0), "heuristic": (1.0, 1.0, 1.0)}
SETTINGS = BranchSettings(games=6, rounds=1, stops=2, actions=1)


def test_samples_are_legal_alternatives_to_the_base_with_finite_advantages() -> None:
    env, *_ = tiny_env()
    graphs, legality, branches = collect(env, [FAMILY], 0, SETTINGS)
    assert len(branches.advantage) == 12 == len(graphs.nodes["x"])
    assert np.isfinite(branches.advantage).all()
    rows = np.arange(12)
    assert legality.actions[rows, branches.other.action].all()
    same = [a == b for a, b in zip(branches.other[:3], branches.base[:3], strict=True)]
    assert not np.all(same, axis=0).any()
    assert set(branches.base.action.tolist()) <= {
        Action.WAIT,
        Action.ADVANCE,
        Action.CULL,
        Action.FOSSILIZE,
    }


def test_the_same_seed_trains_the_same_parameters_bit_for_bit() -> None:
    env, *_ = tiny_env()
    fitting = FitSettings(updates=3, batch_size=4)
    first, again = (learn(env, [FAMILY], 0, SETTINGS, fitting) for _ in range(2))
    jax.tree.map(np.testing.assert_array_equal, first, again)


def test_all_contestants_play_the_same_tasks() -> None:
    env, *_ = tiny_env()
    players = contestants(env.epochs, NUMBERS, None)
    scores = evaluate(env, [FAMILY], players, range(3), batch=6)[FAMILY.name]
    assert scores.keys() == players.keys()
    assert scores["never act"].interventions.tolist() == [0, 0, 0]
    assert (scores["everything from the start"].live > 1).all()
    np.testing.assert_allclose(scores["never act"].compute, 1)
    again = evaluate(env, [FAMILY], {"never act": players["never act"]}, range(3), batch=6)
    np.testing.assert_array_equal(again[FAMILY.name]["never act"].loss, scores["never act"].loss)


def test_an_interval_holds_the_mean_of_the_paired_differences() -> None:
    ours, theirs = np.array([1.0, 2.0, 3.0, 4.0]), np.array([0.0, 1.0, 2.0, 2.0])
    mean, low, high = difference(ours, theirs)
    assert low <= mean == 1.25 <= high
    assert difference(ours, ours) == (0.0, 0.0, 0.0)
