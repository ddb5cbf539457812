"""Branching: from one state, every action, each to the end of the run.

All continuations of a state share their randomness, so the difference between two of them is what
the action made. What a continuation returns is the fall of the logarithm of the test loss, less the
rent; an action's advantage is its return less that of WAIT. Runs are played to the end, because
growth costs at first and pays late.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tamiyo_jax.graph import GraphsTuple
from tamiyo_jax.host import LIMITS, scale_of
from tamiyo_jax.learn._contest import play_many, play_tasks
from tamiyo_jax.learn._environment import EnvAction, HostEnv
from tamiyo_jax.learn._fitting import Targets
from tamiyo_jax.learn._imitation import RISK_HORIZON, rise_classes
from tamiyo_jax.learn._playing import Options, Pilot, Run, options_of, see
from tamiyo_jax.learn._tasks import Family, draw_many
from tamiyo_jax.policy import ACTIONS, NUM_ACTIONS, Action, Legality, Params

__all__ = ["Branches", "Prices", "Setting", "branch", "targets_of"]

FLOOR = 0.05
"""Added to the loss before its logarithm: below it, a smaller loss is hardly better."""


class Prices(NamedTuple):
    """What a return takes off the fall of the logarithm of the loss.

    Attributes:
      size: for ending a run with twice the size of the bare host.
      decision: for each decision other than WAIT.
    """

    size: float = 0.04
    decision: float = 0.001


class Setting(NamedTuple):
    """Where branches come from.

    Attributes:
      env: of the families' architecture.
      families: the tasks.
      behaviours: pilots that lead to the states, with a leading axis.
      continuations: pilots that go on from them, likewise.
    """

    env: HostEnv
    families: Sequence[Family]
    behaviours: Pilot
    continuations: Pilot


class Branches(NamedTuple):
    """T states with what their A options returned.

    Attributes:
      graphs: what the network is shown, with a leading axis T.
      legality: likewise.
      options: the actions, A rows; the first is WAIT.
      returns: f32[T, A]; NaN where the option was not tried.
      risk: i32[T], class of what the validation loss did after WAIT.
      family: i32[T], which of the families.
      epoch: i32[T].
    """

    graphs: GraphsTuple
    legality: Legality
    options: EnvAction
    returns: np.ndarray
    risk: np.ndarray
    family: np.ndarray
    epoch: np.ndarray


def branch(
    setting: Setting,
    params: Params,
    generator: np.random.Generator,
    *,
    states: int,
    epoch: int,
    prices: Prices,
) -> Branches:
    """Try the options in states after one epoch.

    Args:
      setting: tasks and pilots, which are drawn for each state.
      params: of the network, for pilots that follow it.
      generator: draws tasks, pilots, keys and which germinations are tried.
      states: T, how many.
      epoch: at which the states are; at least 1 and before the last.
      prices: of the return.
    """
    env = setting.env
    family = generator.integers(0, len(setting.families), states)
    seeds = generator.integers(0, 2**31, states)
    tasks = draw_many([setting.families[row] for row in family], [int(seed) for seed in seeds])
    keys = jax.random.split(jax.random.PRNGKey(int(generator.integers(0, 2**31))), states)
    behaviours = _draw(generator, setting.behaviours, states)
    runs = play_tasks(env, params, behaviours, keys, tasks, epoch)
    graphs, legality = jax.tree.map(np.asarray, see(env, runs))
    options = jax.tree.map(np.asarray, jax.vmap(lambda state: options_of(env, state))(runs.state))
    tried = _thin_out(generator, options)
    pilots = _from_here(_draw(generator, setting.continuations, states), runs, epoch)
    row, option = np.nonzero(tried)
    chosen = EnvAction(*(field[row, option] for field in options.actions))
    after = play_many(
        env,
        params,
        _keep_rates(jax.tree.map(lambda x: x[row], pilots), chosen),
        jax.tree.map(lambda x: x[row], runs),
        jax.tree.map(lambda x: x[row], tasks),
        chosen,
        env.epochs - epoch,
    )
    returns = np.full(tried.shape, np.nan, np.float32)
    returns[row, option] = _return(env, runs, after, row, prices)
    waits = option == 0
    return Branches(
        graphs,
        legality,
        EnvAction(*(field[0] for field in options.actions)),
        returns,
        _risk(np.asarray(after.losses)[waits], epoch),
        family.astype(np.int32),
        np.full(states, epoch, np.int32),
    )


def _draw(generator: np.random.Generator, pilots: Pilot, count: int) -> Pilot:
    rows = generator.integers(0, len(np.asarray(pilots.grown)), count)
    return jax.tree.map(lambda x: np.asarray(x)[rows], pilots)


def _thin_out(generator: np.random.Generator, options: Options) -> np.ndarray:
    """bool[T, A]: each candidate is germinated in one slot only, drawn from those that are free."""
    actions, legal = options.actions, np.array(options.is_legal)
    germinates = actions.action[0] == Action.GERMINATE
    order = np.where(legal & germinates, generator.random(legal.shape), 2.0)
    for blueprint in np.unique(actions.blueprint[0][germinates]):
        mine = germinates & (actions.blueprint[0] == blueprint)
        best = np.argmin(np.where(mine, order, 3.0), axis=1)
        others = mine & (np.arange(legal.shape[1]) != best[:, None])
        legal &= ~others
    return legal


def _from_here(pilots: Pilot, runs: Run, epoch: int) -> Pilot:
    """The pilots with their planned rates as multiples of each run's own rate of now."""
    scale = np.asarray(jax.vmap(lambda s: scale_of(s.host.opt_state))(runs.state))
    rates = np.asarray(pilots.rules.rates)
    now = rates[:, [min(epoch, rates.shape[1] - 1)]]
    relative = np.where(now > 0, scale[:, None] * rates / np.maximum(now, 1e-6), rates)
    return pilots._replace(rules=pilots.rules._replace(rates=relative.astype(np.float32)))


def _keep_rates(pilots: Pilot, chosen: EnvAction) -> Pilot:
    """The pilots with the plan of those that change the rate moved along."""
    factor = np.where(chosen.action == Action.OPTIMIZER, 1 + chosen.lr_delta, 1.0)
    rates = np.asarray(pilots.rules.rates)
    moved = np.where(rates > 0, np.clip(rates * factor[:, None], *LIMITS), rates)
    return pilots._replace(rules=pilots.rules._replace(rates=moved.astype(np.float32)))


def _return(env: HostEnv, before: Run, after: Run, row: np.ndarray, prices: Prices) -> np.ndarray:
    """f32[n]: see the module; no loss counts as worse than twice that of a guess."""
    worst = np.log(env.network.architecture.classes) * 2

    def logarithm(run: Run) -> np.ndarray:
        loss = np.nan_to_num(np.asarray(run.state.measured.test_loss), nan=worst, posinf=worst)
        return np.log(np.minimum(loss, worst) + FLOOR)

    size = np.asarray(after.state.live) / env.bare - 1
    decided = np.asarray(after.state.interventions) - np.asarray(before.state.interventions)[row]
    cost = prices.size * size + prices.decision * decided
    return (logarithm(before)[row] - logarithm(after) - cost).astype(np.float32)


def _risk(losses: np.ndarray, epoch: int) -> np.ndarray:
    return rise_classes(losses[:, epoch - 1], losses[:, epoch : epoch + RISK_HORIZON])


def targets_of(branches: Branches, temperature: float) -> Targets:
    """Targets of the network: a soft choice among what was tried, exp(advantage / temperature).

    An action that takes a seed or a blueprint counts with its best; which that was is the target
    of the scores, weighted by how much the action is wanted. The value is the mean return of the
    soft choice.
    """
    returns, options = branches.returns, jax.tree.map(np.asarray, branches.options)
    tried = np.isfinite(returns)
    score = np.where(tried, returns - returns[:, :1], -np.inf) / temperature
    weight = np.exp(score - np.max(score, axis=1, keepdims=True))
    best = np.stack(
        [
            np.max(np.where(options.action == action, weight, 0.0), axis=1)
            for action in range(NUM_ACTIONS)
        ],
        axis=1,
    )
    action = best / np.sum(best, axis=1, keepdims=True)
    seeds = branches.legality.seeds.shape[2]
    blueprints = branches.legality.blueprints.shape[1]
    seed, taken = _share(weight, options.seed, seeds), action[:, _takes_seed()].sum(axis=1)
    grown = _share(weight, options.blueprint, blueprints)
    turns = np.where(options.action == Action.OPTIMIZER, weight, 0.0)
    total = np.sum(turns, axis=1)
    delta = turns @ options.lr_delta / np.maximum(total, 1e-9)
    wanted = action[:, Action.GERMINATE]
    chosen = weight / np.sum(weight, axis=1, keepdims=True)
    value = np.sum(np.where(tried, chosen * np.where(tried, returns, 0), 0), axis=1)
    return Targets(
        action=jnp.asarray(action, jnp.float32),
        seed=jnp.asarray(seed * taken[:, None], jnp.float32),
        blueprint=jnp.asarray(grown * wanted[:, None], jnp.float32),
        lr_delta=jnp.asarray(delta, jnp.float32),
        turns=jnp.asarray(action[:, Action.OPTIMIZER], jnp.float32),
        value=jnp.asarray(value, jnp.float32),
        risk=jnp.asarray(branches.risk),
        weight=jnp.ones(len(returns), jnp.float32),
    )


def _takes_seed() -> list[int]:
    return [int(action) for action, rule in ACTIONS.items() if rule.operations]


def _share(weight: np.ndarray, rows: np.ndarray, count: int) -> np.ndarray:
    """f64[T, count]: the weights of the options by the row that they take, as shares."""
    by_row = np.stack(
        [np.max(np.where(rows == row, weight, 0.0), axis=1) for row in range(count)], axis=1
    )
    return by_row / np.maximum(np.sum(by_row, axis=1, keepdims=True), 1e-9)
