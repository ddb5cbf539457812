"""A teacher that knows what the policy cannot see, and lessons from it.

For each family of training tasks the teacher holds the plan that did best there, and it knows the
task's learning rate, so that it sets a rate that is far off right at once. The network sees packets
alone; it is shown what the teacher would do in states that the teacher, chance and the network
itself lead to (Ross et al. 2011; Chen et al. 2020, "Learning by cheating"). A label costs one epoch
of one run, where branching costs a hundred.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tamiyo_jax.host import LIMITS
from tamiyo_jax.learn._branching import FLOOR, Prices
from tamiyo_jax.learn._contest import (
    Outcome,
    follow_rules,
    outcome_of,
    play_many,
    play_tasks,
    undecided,
)
from tamiyo_jax.learn._environment import EnvAction, HostEnv
from tamiyo_jax.learn._fitting import Examples, Targets
from tamiyo_jax.learn._imitation import RISK_HORIZON, rise_classes
from tamiyo_jax.learn._playing import Pilot, Run, see, stack
from tamiyo_jax.learn._rules import NEVER, Rules, rule_action
from tamiyo_jax.learn._tasks import Family, TaskData, draw_many
from tamiyo_jax.learn._tuning import Schedule, rules_of
from tamiyo_jax.policy import NUM_ACTIONS, Action, Params

__all__ = ["Plan", "choose_plans", "drawn_plans", "lessons", "teacher_pilots"]

FAR_OFF = 2.0
"""A learning rate that is off by less than this factor is left as it is at first."""
TOLERANCE = 0.12
"""The teacher does not correct a rate that is off its plan by less, relatively."""
ERROR_WEIGHT = 0.5
"""Of the logarithm of the test error beside that of the test loss, when plans are chosen."""
FINALISTS = 8
"""Plans of a family that are played on more tasks, after all were played on some."""


class Plan(NamedTuple):
    """What the teacher does in a family.

    Attributes:
      rate: the learning rate that it wants at first.
      hold: share of the run in which it stays there.
      decay: factor on it at each epoch after that.
      blueprint: row of the candidate to grow; 0 for none.
      train_epochs: that a seed trains before it blends.
      brake: how much the rate, and the plan of it, is lowered by once the validation loss has
        risen; see `Rules`.
      rising_epochs: how often in a row it must have risen for that.
    """

    rate: float = 0.012
    hold: float = 0.5
    decay: float = 0.8
    blueprint: int = 0
    train_epochs: int = 0
    brake: float = 0.5
    rising_epochs: int = NEVER


def drawn_plans(generator: np.random.Generator, count: int) -> list[Plan]:
    """Plans by chance."""
    return [
        Plan(
            rate=float(generator.choice([0.003, 0.006, 0.012, 0.024, 0.048])),
            hold=float(generator.choice([0.1, 0.25, 0.4, 0.55, 0.7])),
            decay=float(generator.choice([0.6, 0.75, 0.85, 1.0])),
            blueprint=int(generator.integers(0, 5)),
            train_epochs=int(generator.choice([0, 2])),
            brake=float(generator.choice([0.4, 0.7])),
            rising_epochs=int(generator.choice([1, 2, 3, NEVER, NEVER])),
        )
        for _ in range(count)
    ]


def teacher_rules(plan: Plan, epochs: int, learning_rate: float) -> Rules:
    """A plan as rules for a run with that learning rate."""
    growing = Schedule(blueprint=plan.blueprint, train_epochs=plan.train_epochs)
    off = plan.rate / learning_rate
    start = off if max(off, 1 / off) > FAR_OFF else 1.0
    age = np.maximum(np.arange(epochs) - round(plan.hold * epochs), 0)
    rates = np.clip(start * plan.decay**age, *LIMITS)
    return rules_of(growing, epochs)._replace(
        rates=jnp.asarray(rates, jnp.float32),
        tolerance=jnp.float32(TOLERANCE),
        brake=jnp.float32(plan.brake),
        rising_epochs=jnp.int32(plan.rising_epochs),
    )


def teacher_pilots(plans: Sequence[Plan], epochs: int, tasks: TaskData) -> Pilot:
    """The teacher at each of B tasks, with its plan for it."""
    rates = np.asarray(tasks.learning_rate)
    return stack(
        [
            follow_rules(teacher_rules(plan, epochs, float(rate)))
            for plan, rate in zip(plans, rates, strict=True)
        ]
    )


def choose_plans(
    env: HostEnv,
    families: Sequence[Family],
    params: Params,
    plans: Sequence[Plan],
    *,
    tasks: int,
    prices: Prices,
    on_family: Callable[[str], object] | None = None,
) -> dict[str, Plan]:
    """The plan of each family: the best mean over its tasks of `_score`.

    All plans are played on some tasks of the family; the best of them on as many others as all
    together had, and the best of these is taken.

    Args:
      env: of the families' architecture.
      families: training families.
      params: of any network; none is followed.
      plans: to choose from.
      tasks: of each family, from the seed 0, that all plans are played on.
      prices: of size and decisions.
      on_family: called with the name of each family when it is done.
    """
    found: dict[str, Plan] = {}
    some = min(FINALISTS, len(plans))
    more = len(plans) * tasks // some
    for family in families:
        first = _play_plans(env, params, family, plans, range(tasks), prices)
        best = [plans[int(row)] for row in np.argsort(first, kind="stable")[:some]]
        final = _play_plans(env, params, family, best, range(tasks, tasks + more), prices)
        found[family.name] = best[int(np.argmin(final))]
        if on_family is not None:
            on_family(family.name)
    return found


def _play_plans(
    env: HostEnv,
    params: Params,
    family: Family,
    plans: Sequence[Plan],
    seeds: range,
    prices: Prices,
) -> np.ndarray:
    """f32[P]: the mean score of each plan on tasks of the family."""
    tasks = len(seeds)
    keys = jax.vmap(jax.random.PRNGKey)(np.arange(seeds.start, seeds.stop))
    which, task = np.repeat(np.arange(len(plans)), tasks), np.tile(np.arange(tasks), len(plans))
    drawn = draw_many([family] * tasks, list(seeds))
    drawn = jax.tree.map(lambda x: np.asarray(x)[task], drawn)
    pilots = teacher_pilots([plans[int(row)] for row in which], env.epochs, drawn)
    ended = outcome_of(env, play_tasks(env, params, pilots, keys[task], drawn, env.epochs))
    return _score(ended, prices).reshape(len(plans), tasks).mean(axis=1)


def _score(ended: Outcome, prices: Prices) -> np.ndarray:
    """f32[T]: the logarithms of test loss and test error, and the prices; smaller is better."""
    loss = np.log(np.nan_to_num(ended.loss, nan=9.0, posinf=9.0) + FLOOR)
    error = np.log(1 - ended.accuracy + FLOOR)
    cost = prices.size * (ended.live - 1) + prices.decision * ended.interventions
    return loss + ERROR_WEIGHT * error + cost


def lessons(
    env: HostEnv,
    families: Sequence[Family],
    params: Params,
    plans: Mapping[str, Plan],
    generator: np.random.Generator,
    *,
    runs: int,
    own: float,
) -> Examples:
    """States of whole runs with what the teacher would do there.

    Args:
      env: of the families' architecture.
      families: training families, drawn alike.
      params: of the network.
      plans: of the families.
      generator: draws tasks, keys and who decides.
      runs: how many.
      own: share of the runs in which the network decides; in the others the teacher does. In
        half of both, chance decides in 15 % of the epochs.

    Returns:
      Graphs, legality and targets of ``runs × (epochs − 1)`` decisions.
    """
    family = generator.integers(0, len(families), runs)
    seeds = generator.integers(2**20, 2**31, runs)
    drawn = draw_many([families[row] for row in family], [int(seed) for seed in seeds])
    keys = jax.random.split(jax.random.PRNGKey(int(generator.integers(0, 2**31))), runs)
    chosen = [plans[families[row].name] for row in family]
    pilots = teacher_pilots(chosen, env.epochs, drawn)._replace(
        learned=generator.random(runs) < own,
        chance=np.where(generator.random(runs) < 0.5, 0.15, 0.0).astype(np.float32),
    )
    played = play_tasks(env, params, pilots, keys, drawn, 1)
    parts: list[tuple[object, ...]] = []
    losses: list[np.ndarray] = []
    for _ in range(env.epochs - 1):
        graphs, legality = see(env, played)
        parts.append((graphs, legality, _labels(env, pilots.rules, played)))
        losses.append(np.asarray(played.state.measured.validation_loss))
        played = play_many(env, params, pilots, played, drawn, undecided(runs), 1)
    losses.append(np.asarray(played.state.measured.validation_loss))
    graphs, legality, labels = jax.tree.map(lambda *x: np.concatenate(x), *parts)
    return graphs, legality, _targets(env, labels, np.stack(losses))


@partial(jax.jit, static_argnums=0)
def _labels(env: HostEnv, rules: Rules, runs: Run) -> EnvAction:
    """What the rules would decide in each of B runs."""
    return jax.vmap(lambda one, run: rule_action(env, one, run.memory, run.state)[1])(rules, runs)


def _targets(env: HostEnv, labels: EnvAction, losses: np.ndarray) -> Targets:
    """Targets of labels [(epochs − 1) · runs], losses f32[epochs, runs]."""
    epochs = len(losses)
    logs = np.log(np.nan_to_num(losses, nan=9.0, posinf=9.0) + FLOOR)
    value = (logs[:-1] - logs[-1:]).ravel()
    ahead = [
        losses[np.minimum(np.arange(1, epochs) + step, epochs - 1)] for step in range(RISK_HORIZON)
    ]
    following = np.stack(ahead, axis=-1).reshape(-1, RISK_HORIZON)
    turns = np.asarray(labels.action) == Action.OPTIMIZER

    def one_hot(rows: jax.Array, width: int) -> jax.Array:
        return jnp.asarray(np.asarray(rows)[:, None] == np.arange(width), jnp.float32)

    return Targets(
        action=one_hot(labels.action, NUM_ACTIONS),
        seed=one_hot(labels.seed, env.graph_config.max_seeds),
        blueprint=one_hot(labels.blueprint, env.graph_config.max_blueprints),
        lr_delta=jnp.asarray(np.where(turns, labels.lr_delta, 0.0), jnp.float32),
        turns=jnp.asarray(turns, jnp.float32),
        value=jnp.asarray(value, jnp.float32),
        risk=jnp.asarray(rise_classes(losses[:-1].ravel(), following)),
        weight=jnp.ones(len(value), jnp.float32),
    )
