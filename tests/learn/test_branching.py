"""Contests, branching and the learner, at a tiny size; they share what they compile."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from pathlib import Path

import jax
import numpy as np
import pytest
from tiny_learning import FAMILY, TINY

from tamiyo_jax.config import HeuristicConfig, PolicyConfig
from tamiyo_jax.errors import ConfigurationError
from tamiyo_jax.learn import (
    LEARNED,
    HostEnv,
    LearnSettings,
    PpoSettings,
    Prices,
    Rivals,
    Schedule,
    Setting,
    _learner,
    bins_of,
    branch,
    compare,
    contest,
    draw_many,
    evaluate,
    evaluate_policy,
    follow_network,
    follow_rules,
    hesitate,
    interval_over_seeds,
    learn,
    measure_reliability,
    no_rules,
    rules_of,
    summarise,
    summarise_policy,
    targets_of,
)
from tamiyo_jax.learn._playing import stack
from tamiyo_jax.learn._tuning import measure_headroom
from tamiyo_jax.policy import NUM_ACTIONS, Action, init_params

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("standard_promotion")]

EPOCHS = TINY.epochs
GROWING = Schedule(blueprint=2, train_epochs=0)


@cache
def network():
    return init_params(PolicyConfig.small(), jax.random.key(0))


@cache
def played():
    """Four tasks under five pilots."""
    env = HostEnv(TINY)
    keys = jax.vmap(jax.random.PRNGKey)(np.arange(4))
    pilots = {
        "never": follow_rules(no_rules(EPOCHS)),
        "grown": follow_rules(no_rules(EPOCHS), grown=2),
        "growing": follow_rules(rules_of(GROWING, EPOCHS)),
        "braking": follow_rules(rules_of(Schedule(rate=0.5, floor=0.5), EPOCHS)),
        "network": follow_network(EPOCHS),
    }
    return contest(env, network(), pilots, keys, draw_many([FAMILY] * 4, [0, 1, 2, 3]))


def test_a_pilot_that_never_acts_leaves_the_host_as_it_is() -> None:
    never = played()["never"]
    assert never.interventions.tolist() == [0] * 4
    np.testing.assert_allclose(never.live, 1.0)
    np.testing.assert_allclose(never.compute, EPOCHS)


def test_growth_from_the_start_is_paid_for_in_every_epoch() -> None:
    grown = played()["grown"]
    assert (grown.live > 1).all()
    np.testing.assert_allclose(grown.compute, EPOCHS * grown.live, rtol=1e-5)
    assert (grown.interventions == 0).all()


def test_a_growth_schedule_germinates_and_moves_its_seeds_on() -> None:
    counts = played()["growing"].counts
    assert (counts[:, Action.GERMINATE] >= 1).all()
    assert (counts[:, Action.ADVANCE] >= 3).all()
    assert (counts.sum(axis=1) == EPOCHS - 1).all()


def test_a_schedule_of_the_learning_rate_changes_it_once_where_it_is_constant() -> None:
    braking = played()["braking"]
    assert braking.counts[:, Action.OPTIMIZER].tolist() == [1] * 4
    assert not np.allclose(braking.loss, played()["never"].loss)


def test_an_untrained_network_germinates_where_it_can() -> None:
    assert (played()["network"].counts[:, Action.GERMINATE] >= 1).all()


@cache
def branched():
    setting = Setting(
        HostEnv(TINY),
        [FAMILY],
        stack([follow_rules(rules_of(GROWING, EPOCHS), chance=0.3)]),
        stack([follow_rules(no_rules(EPOCHS)), follow_rules(rules_of(GROWING, EPOCHS))]),
    )
    return branch(setting, network(), np.random.default_rng(0), states=6, epoch=4, prices=Prices())


def test_every_legal_kind_of_action_is_tried_and_nothing_else() -> None:
    branches = branched()
    tried = np.isfinite(branches.returns)
    kinds = np.asarray(branches.options.action)
    for row in range(6):
        legal = set(np.flatnonzero(branches.legality.actions[row]))
        untried = {Action.PAUSE, Action.BREAKER_OPEN, Action.BREAKER_CLOSE}
        assert set(kinds[tried[row]]) == legal - untried
        grown = np.asarray(branches.options.blueprint)[tried[row] & (kinds == Action.GERMINATE)]
        assert len(set(grown)) == len(grown)  # each candidate in one slot only


def test_targets_prefer_what_returned_most() -> None:
    branches = branched()
    targets = targets_of(branches, 0.01)
    np.testing.assert_allclose(np.sum(np.asarray(targets.action), axis=1), 1.0, rtol=1e-5)
    assert targets.action.shape == (6, NUM_ACTIONS)
    best = np.asarray(branches.options.action)[np.nanargmax(branches.returns, axis=1)]
    np.testing.assert_array_equal(np.argmax(np.asarray(targets.action), axis=1), best)


def test_a_network_that_hesitates_waits() -> None:
    env = HostEnv(TINY)
    keys = jax.vmap(jax.random.PRNGKey)(np.arange(4))
    tasks = draw_many([FAMILY] * 4, [0, 1, 2, 3])
    waiting = hesitate(network(), 1e3)
    found = contest(env, waiting, {"network": follow_network(EPOCHS)}, keys, tasks)["network"]
    assert found.interventions.tolist() == [0] * 4
    np.testing.assert_array_equal(found.loss, played()["never"].loss)


TEACHING = LearnSettings(
    plans=5, plan_tasks=2, lessons=2, runs=6, branching=1, chunks=1, states=4, updates=20
)


def test_learning_twice_gives_the_same_parameters_and_goes_on_from_what_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[tuple[str, int, int]] = []
    first = learn(
        TEACHING, 3, tmp_path / "a", families=[FAMILY], on_progress=lambda *x: said.append(x)
    )
    assert [name for name, done, total in said if done == total] == [
        "choosing plans",
        "lessons 1",
        "lessons 2",
        "branching 1",
    ]
    again = learn(TEACHING, 3, tmp_path / "b", families=[FAMILY])
    jax.tree.map(np.testing.assert_array_equal, first, again)
    for path in (tmp_path / "b").glob("*-2*"):  # as if it had been ended in the last round
        if path.is_file():
            path.unlink()
    (tmp_path / "b" / "params-2").rename(tmp_path / "gone")
    resumed = learn(TEACHING, 3, tmp_path / "b", families=[FAMILY])
    jax.tree.map(np.testing.assert_array_equal, first, resumed)
    moved = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), first, network())
    assert max(jax.tree.leaves(moved)) > 0
    with pytest.raises(ConfigurationError, match="another seed"):
        learn(TEACHING, 4, tmp_path / "b", families=[FAMILY])
    few = PpoSettings(iterations=2, tasks=2, group=2, passes=1, batch_size=8)
    monkeypatch.setattr(_learner, "PPO", few)
    said.clear()
    further = replace(TEACHING, ppo=1)
    optimised = learn(
        further, 3, tmp_path / "a", families=[FAMILY], on_progress=lambda *x: said.append(x)
    )
    assert said[-1] == ("policy optimisation 1", 2, 2)
    moved = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), first, optimised)
    assert max(jax.tree.leaves(moved)) > 0
    from_disk = learn(further, 3, tmp_path / "a", families=[FAMILY])
    jax.tree.map(np.testing.assert_array_equal, optimised, from_disk)


def test_the_table_compares_the_policy_with_every_rival_on_the_same_tasks() -> None:
    rivals = Rivals(Schedule(rate=2.0), GROWING, HeuristicConfig(), 1)
    outcomes = evaluate(hesitate(network(), 1e3), rivals, FAMILY, tasks=4)
    rows = summarise(outcomes)
    by_name = {row["contender"]: row for row in rows}
    assert len(by_name) == 8
    assert by_name[LEARNED]["loss"] == by_name["never act"]["loss"]
    saved = by_name["never act"]["loss_saved"]
    assert saved == {"mean": 0.0, "low": 0.0, "high": 0.0}
    assert json.dumps(rows)
    further = summarise_policy(evaluate_policy(hesitate(network(), 1e3), FAMILY, tasks=4), outcomes)
    assert further["loss"] == by_name[LEARNED]["loss"]
    assert further["loss_saved"]["random"] == by_name["random"]["loss_saved"]


def test_the_interval_over_seeds_is_that_of_student() -> None:
    """For 1 to 5: mean 3, deviation sqrt(2.5), t(0.975, 4) = 2.776."""
    found = interval_over_seeds([1.0, 2.0, 3.0, 4.0, 5.0])
    np.testing.assert_allclose(found, (3.0, 3 - 1.963, 3 + 1.963), rtol=1e-3)


def test_an_interval_is_paired_and_holds_the_mean() -> None:
    generator = np.random.default_rng(0)
    hard = generator.normal(size=40) * 10
    found = compare(hard + 1 + 0.1 * generator.normal(size=40), hard)
    assert found.low < found.mean < found.high
    assert found.low > 0.9
    assert found.high < 1.1


def test_headroom_is_what_choosing_by_family_gains_on_the_other_half_of_the_tasks() -> None:
    scores = np.zeros((2, 3, 8), np.float32)
    scores[0, 1], scores[1, 1] = -2.0, 1.0  # row 1 is best for the first family,
    scores[0, 2], scores[1, 2] = 0.5, -1.0  # row 2 for the second; row 1 for both together
    rows = measure_headroom(
        ["a", "b"], [Schedule(), Schedule(rate=2.0), Schedule(rate=3.0)], scores
    )
    assert [row.over_never for row in rows] == [2.0, 1.0]
    assert [row.over_fixed for row in rows] == [0.0, 2.0]
    assert [row.best.rate for row in rows] == [2.0, 3.0]


def test_what_is_stated_is_compared_with_what_came_in_runs_of_the_policy() -> None:
    found = measure_reliability(network(), [FAMILY], tasks=4, first=0)
    decisions = 4 * (EPOCHS - 1)
    assert sum(one.decisions for one in found.value) == decisions
    assert [one.stated for one in found.risk] == sorted(one.stated for one in found.risk)
    assert all(0 <= one.came <= 1 for one in found.risk)
    assert 0 <= found.risk_error <= 1


def test_bins_are_of_equal_counts_in_the_order_of_what_was_stated() -> None:
    stated = np.arange(60)[::-1] / 60
    bins = bins_of(stated, 2 * stated)
    assert [one.decisions for one in bins] == [10] * 6
    np.testing.assert_allclose([one.came for one in bins], [2 * one.stated for one in bins])
