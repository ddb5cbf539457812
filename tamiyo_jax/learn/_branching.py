"""Branching: try actions from the same state, play each to the end of the run, learn the advantage.

Runs are played under rules drawn at random, so that many kinds of states occur. From a state the
action of the *base* (let seeds that live go on, and else wait) and some other legal actions are
each followed by the base to the end, under the same batches and the same initial seeds. The
difference of the final objectives is one sample of the action's advantage over the base.

The network's answers are fitted to these samples at a quantile below the middle (Koenker &
Bassett 1978), less a margin. So an action is chosen over the base only where most of what was
seen in such states speaks for it by more than the margin.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tamiyo_jax.config import HeuristicConfig, PolicyConfig
from tamiyo_jax.graph import GraphLayout
from tamiyo_jax.learn._environment import EnvAction, HostEnv
from tamiyo_jax.learn._fitting import FitSettings, fit, outputs_of
from tamiyo_jax.learn._imitation import RISK_BOUNDS, RISK_HORIZON
from tamiyo_jax.learn._play import Game, look, new_games, play
from tamiyo_jax.learn._rules import NEVER, Rules, heuristic_rules, no_rules, rule_action
from tamiyo_jax.learn._tasks import Family, TaskData, draw_many
from tamiyo_jax.policy import Action, Params, init_params

__all__ = [
    "BranchSettings",
    "Branches",
    "base_rules",
    "branch_loss",
    "collect",
    "learn",
    "objective",
]

SCALE = 20.0
"""Logits for one nat of advantage."""
LOSS_LIMIT = 3.0
NEVER_TRIED = (Action.PAUSE, Action.BREAKER_OPEN, Action.BREAKER_CLOSE)
NEVER_LEAD = 3.0
"""Logits by which what is never tried stays below the base."""
BRAKE = -0.5
GERMINATING = 0.6  # share of germinations among the alternatives, where one is legal
TRAIN_EPOCHS = 2


class BranchSettings(NamedTuple):
    """How to branch.

    Attributes:
      games: runs played at once, E.
      rounds: how often E runs are started.
      stops: epochs of each at which it branches.
      actions: alternatives to the base that are tried at each.
      quantile: of the advantages, at most 0.5.
      margin: in nats, what an alternative must be better by.
    """

    games: int = 192
    rounds: int = 6
    stops: int = 3
    actions: int = 3
    quantile: float = 0.4
    margin: float = 0.01


class Branches(NamedTuple):
    """T sampled advantages; rows of actions as in `EnvAction`.

    Attributes:
      base: the base's action.
      other: the action that was tried.
      advantage: f32[T], nats by which the end was better.
      value: f32[T], the base's own objective from here on, less the present loss.
      risk: i32[T], class of the worst rise of the validation loss under the base, 0 to 4.
    """

    base: EnvAction
    other: EnvAction
    advantage: jax.Array
    value: jax.Array
    risk: jax.Array


def base_rules(epochs: int) -> Rules:
    """Wait, but let seeds that live go on: train 2 epochs, blend, stay where they contribute."""
    return no_rules(epochs)._replace(train_epochs=jnp.int32(TRAIN_EPOCHS))


def objective(env: HostEnv, games: Game) -> jax.Array:
    """f32[E]: minus the test loss of the last two epochs, less the rent of the whole run."""
    losses = jnp.nan_to_num(games.losses[:, -2:], nan=LOSS_LIMIT, posinf=LOSS_LIMIT)
    loss = jnp.mean(jnp.minimum(losses, LOSS_LIMIT), axis=1)
    rent = env.rent.per_epoch * (games.state.compute - env.epochs)
    return -loss - rent - env.rent.per_action * games.state.interventions


def collect(
    env: HostEnv,
    families: list[Family],
    seed: int,
    settings: BranchSettings,
    *,
    on_stop: Callable[[int], object] | None = None,
) -> tuple[Any, Any, Branches]:
    """Branch from many states: graphs, legality and sampled advantages, T of each.

    Args:
      env: of the families' architecture.
      families: to draw tasks from, in turn.
      seed: of everything.
      settings: how to branch.
      on_stop: called with the number of examples after each stop.
    """
    generator = np.random.default_rng(seed)
    found: list[tuple[Any, Any, Branches]] = []
    for _ in range(settings.rounds):
        number = settings.games
        chosen = [families[i % len(families)] for i in range(number)]
        seeds = generator.integers(0, 2**31, number).tolist()
        tasks = draw_many(chosen, seeds)
        keys = jax.vmap(jax.random.PRNGKey)(jnp.asarray(generator.integers(0, 2**31, number)))
        games = new_games(env, keys, tasks, jnp.zeros(number, jnp.int32))
        rules = _random_rules(generator, number, env.epochs)
        stops = np.sort(
            generator.choice(np.arange(1, env.epochs - 1), settings.stops, replace=False)
        )
        before = 0
        for stop in stops.tolist():
            games = play(env, games, tasks, rules, before, stop)
            before = stop
            found += _branch(env, games, tasks, generator, stop, settings)
            if on_stop is not None:
                on_stop(len(found) * number)
    return jax.tree.map(lambda *parts: np.concatenate(parts), *found)


def _branch(
    env: HostEnv,
    games: Game,
    tasks: TaskData,
    generator: np.random.Generator,
    stop: int,
    settings: BranchSettings,
) -> list[tuple[Any, Any, Branches]]:
    number = settings.games
    base = _repeat(base_rules(env.epochs), number)
    first = _choose(env, base, games)
    ended = play(env, games._replace(action=first), tasks, base, stop, env.epochs)
    reference = objective(env, ended)
    now = np.nan_to_num(np.asarray(games.losses[:, stop - 1]), nan=LOSS_LIMIT)
    now = np.minimum(now, LOSS_LIMIT)
    validation = np.asarray(ended.validation)
    risk = _risk(validation[:, stop - 1], validation[:, stop : stop + RISK_HORIZON])
    legality = jax.tree.map(np.asarray, look(env, games))
    graphs = jax.tree.map(np.asarray, games.graph)
    parts: list[tuple[Any, Any, Branches]] = []
    for _ in range(settings.actions):
        other = _alternatives(env, generator, first, legality)
        tried = play(env, games._replace(action=other), tasks, base, stop, env.epochs)
        advantage = np.asarray(objective(env, tried) - reference)
        branches = Branches(first, other, advantage, np.asarray(reference) + now, risk)
        parts.append((graphs, legality, jax.tree.map(np.asarray, branches)))
    return parts


@partial(jax.jit, static_argnums=0)
def _choose(env: HostEnv, rules: Rules, games: Game) -> EnvAction:
    def one(rules: Rules, game: Game) -> EnvAction:
        return rule_action(env, rules, game.memory, game.state)[1]

    return jax.vmap(one)(rules, games)


def _risk(now: np.ndarray, ahead: np.ndarray) -> np.ndarray:
    """i32[E]: classes as `risk_classes` counts them."""
    rises = ahead / np.maximum(now, 1e-6)[:, None] - 1
    worst = np.max(np.where(np.isfinite(rises), rises, np.inf), axis=1, initial=0.0)
    return np.searchsorted(RISK_BOUNDS, worst).astype(np.int32)


def _alternatives(
    env: HostEnv,
    generator: np.random.Generator,
    base: EnvAction,
    legality: Any,  # noqa: ANN401
) -> EnvAction:
    """For each game a legal action other than the base's."""
    number, blueprints = len(legality.actions), env.graph_config.max_blueprints
    rows = np.full((3, number), -1, np.int32)
    for index in range(number):
        options = [(int(action), -1, -1) for action in (Action.WAIT, Action.OPTIMIZER)]
        for action in (Action.ADVANCE, Action.CULL, Action.FOSSILIZE):
            seeds = np.flatnonzero(legality.seeds[index, action]).tolist()
            options += [(int(action), seed, -1) for seed in seeds]
        growths = [
            (int(Action.GERMINATE), seed, row)
            for seed in np.flatnonzero(legality.seeds[index, Action.GERMINATE]).tolist()
            for row in range(1, blueprints)
        ]
        mine = (int(base.action[index]), int(base.seed[index]), int(base.blueprint[index]))
        options = [one for one in options if one != mine]
        pool = growths if growths and generator.random() < GERMINATING else options
        rows[:, index] = pool[generator.integers(len(pool))]
    return EnvAction(*map(jnp.asarray, rows), jnp.full(number, BRAKE, jnp.float32))


def _random_rules(generator: np.random.Generator, number: int, epochs: int) -> Rules:
    """Rules of all kinds: early, late and no growth, of any candidate, and learning-rate plans."""
    rules = _repeat(heuristic_rules(HeuristicConfig(), epochs), number)
    plans = np.zeros((number, epochs), np.float32)
    for plan in plans[generator.random(number) < 0.4]:
        level = np.exp(generator.uniform(np.log(0.15), np.log(2.0)))
        plan[generator.integers(0, epochs) :] = level

    def whole(values: Any) -> jax.Array:  # noqa: ANN401
        return jnp.asarray(values, jnp.int32)

    return rules._replace(
        plateau_epochs=whole(generator.choice([0, 0, 1, 2, 3, NEVER], number)),
        min_epochs=whole(generator.integers(0, epochs, number)),
        train_epochs=whole(generator.integers(1, 4, number)),
        embargo_epochs=whole(generator.integers(1, 5, number)),
        rising_epochs=whole(generator.choice([2, 3, NEVER], number)),
        rates=jnp.asarray(plans),
        only=whole(generator.integers(0, 5, number)),
    )


def _repeat(tree: Any, number: int) -> Any:  # noqa: ANN401
    return jax.tree.map(lambda x: jnp.broadcast_to(x, (number, *x.shape)), tree)


def _answer(outputs: Any, legality: Any, action: EnvAction) -> jax.Array:  # noqa: ANN401
    """f32[T]: what the network says for an action.

    That is its logit, less what its seed and blueprint are short of the best ones; `select`
    takes the best ones, so the logit alone stands for an action that is to be chosen.
    """
    rows = jnp.arange(len(action.action))
    logit = outputs.policy_logits[rows, action.action]
    seeds = _shortfall(outputs.seed_scores, legality.seeds[rows, action.action], action.seed)
    blueprints = _shortfall(outputs.blueprint_scores, legality.blueprints, action.blueprint)
    return logit + seeds + blueprints


def _shortfall(scores: jax.Array, legal: jax.Array, row: jax.Array) -> jax.Array:
    """f32[T]: the row's score less the best legal one; 0 where no row is taken."""
    real = jnp.where(legal & jnp.isfinite(scores), scores, jnp.float32(-1e9))
    taken = jnp.take_along_axis(real, jnp.maximum(row, 0)[:, None], axis=1)[:, 0]
    return jnp.where(row >= 0, taken - jnp.max(real, axis=1), 0)


def branch_loss(settings: BranchSettings) -> Callable[[Params, GraphLayout, Any], jax.Array]:
    """The loss of the advantages, of the value, of the risk classes and of the fixed heads."""

    def loss(params: Params, layout: GraphLayout, examples: Any) -> jax.Array:  # noqa: ANN401
        graphs, legality, branches = examples
        outputs = outputs_of(params, layout, graphs)
        wanted = jnp.clip(SCALE * (branches.advantage - settings.margin), -5.0, 5.0)
        base = _answer(outputs, legality, branches.base)
        error = wanted - (_answer(outputs, legality, branches.other) - base)
        pinball = jnp.maximum(settings.quantile * error, (settings.quantile - 1) * error)
        value = jnp.square(outputs.value - branches.value)
        logs = jax.nn.log_softmax(outputs.risk_logits, axis=-1)
        risk = -jnp.take_along_axis(logs, branches.risk[:, None], axis=1)[:, 0]
        never = outputs.policy_logits[:, jnp.array(NEVER_TRIED)] - base[:, None]
        never = jnp.sum(jnp.maximum(never + NEVER_LEAD, 0), axis=-1)
        delta = jnp.square(outputs.param_delta - BRAKE)
        schedule = jnp.sum(jnp.square(outputs.schedule_params - jnp.array([[-1.0, 1.0]])), axis=-1)
        blend = -jax.nn.log_softmax(outputs.blending_logits, axis=-1)[:, 0]
        return jnp.mean(pinball + never + 0.1 * (value + risk + delta + schedule + blend))

    return loss


def learn(
    env: HostEnv,
    families: list[Family],
    seed: int,
    settings: BranchSettings,
    fitting: FitSettings,
    *,
    on_stop: Callable[[int], object] | None = None,
    on_update: Callable[[int, float], object] | None = None,
) -> Params:
    """Train a policy by branching; the same arguments give the same parameters, bit for bit."""
    examples = collect(env, families, seed, settings, on_stop=on_stop)
    start, batches = jax.random.split(jax.random.key(seed))
    return fit(
        init_params(PolicyConfig.small(), start),
        env.layout,
        jax.tree.map(jnp.asarray, examples),
        batches,
        fitting,
        loss=branch_loss(settings),
        on_update=on_update,
    )
