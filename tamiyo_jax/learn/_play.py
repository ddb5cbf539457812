"""Playing runs: one program that carries a batch of runs from one epoch to another."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from tamiyo_jax.graph import GraphsTuple, Normalizer, build, init_normalizer
from tamiyo_jax.learn._environment import EnvAction, EnvState, HostEnv
from tamiyo_jax.learn._rules import Memory, Rules, new_memory, rule_action, wait
from tamiyo_jax.learn._tasks import TaskData
from tamiyo_jax.policy import Legality, Params, apply, select

__all__ = ["Game", "look", "new_games", "play"]

RATE = 0.1


class Game(NamedTuple):
    """A run and who plays it; a leading axis on every leaf makes a batch.

    Attributes:
      state: the run.
      memory: of the rules.
      normalizer: of the graph policy.
      graph: of the newest epoch, normalised.
      action: what is to be done before the next epoch.
      losses: f32[epochs], test loss after each epoch; 0 after the newest.
      accuracies: f32[epochs], test accuracy likewise.
      validation: f32[epochs], validation loss likewise.
    """

    state: EnvState
    memory: Memory
    normalizer: Normalizer
    graph: GraphsTuple
    action: EnvAction
    losses: jax.Array
    accuracies: jax.Array
    validation: jax.Array


def new_games(env: HostEnv, keys: jax.Array, tasks: TaskData, grown: jax.Array) -> Game:
    """Runs before their first epoch.

    Args:
      env: of their architecture.
      keys: u32[E, 2], one per run.
      tasks: E of them.
      grown: i32[E], row of the blueprint that stands in all slots from the start; 0 for none.
    """
    return _new_games(env, keys, tasks, grown)


@partial(jax.jit, static_argnums=0)
def _new_games(env: HostEnv, keys: jax.Array, tasks: TaskData, grown: jax.Array) -> Game:
    def one(key: jax.Array, task: TaskData, grown: jax.Array) -> Game:
        state = env.initial(key, task)
        full = env.start_grown(state, grown)
        state = jax.tree.map(lambda a, b: jnp.where(grown > 0, a, b), full, state)
        normalizer = init_normalizer()
        _, graph = build(env.layout, normalizer, env.observe(state), rate=RATE)
        blank = jnp.zeros(env.epochs, jnp.float32)
        return Game(state, new_memory(env), normalizer, graph, wait(), blank, blank, blank)

    return jax.vmap(one)(keys, tasks, grown)


def play(
    env: HostEnv,
    games: Game,
    tasks: TaskData,
    rules: Rules,
    start: int,
    stop: int,
    params: Params | None = None,
) -> Game:
    """Play E runs from after epoch `start` to after epoch `stop`.

    Args:
      env: of their architecture.
      games: where they are; each begins with its `action`.
      tasks: E of them.
      rules: E of them; they choose unless there are `params`.
      start: epochs played.
      stop: epochs to have played.
      params: of a network that chooses.
    """
    span = (jnp.int32(start), jnp.int32(stop))
    return _play(env, games, tasks, rules, *span, params)


@partial(jax.jit, static_argnums=0)
def _play(
    env: HostEnv,
    games: Game,
    tasks: TaskData,
    rules: Rules,
    start: jax.Array,
    stop: jax.Array,
    params: Params | None,
) -> Game:
    def one(game: Game, task: TaskData, rules: Rules) -> Game:
        key = jax.random.PRNGKey(0)  # a run's own key is in its state
        raw, state, *_ = env.step(key, game.state, game.action, task)
        normalizer, graph = build(env.layout, game.normalizer, raw, rate=RATE)
        memory, action = rule_action(env, rules, game.memory, state)
        if params is not None:
            action = network_action(env, params, graph, env.legal(state))
        measured, at = state.measured, state.epochs - 1
        return Game(
            state,
            memory,
            normalizer,
            graph,
            action,
            game.losses.at[at].set(measured.test_loss),
            game.accuracies.at[at].set(measured.test_accuracy),
            game.validation.at[at].set(measured.validation_loss),
        )

    def epoch(_: jax.Array, games: Game) -> Game:
        return jax.vmap(one)(games, tasks, rules)

    return jax.lax.fori_loop(start, stop, epoch, games)


def network_action(
    env: HostEnv, params: Params, graph: GraphsTuple, legality: Legality
) -> EnvAction:
    """What the network chooses, as the product's `select` says."""
    outputs = apply(params, env.layout, graph)
    chosen = select(outputs, legality)
    return EnvAction(
        jnp.asarray(chosen.action),
        jnp.asarray(chosen.seed),
        jnp.asarray(chosen.blueprint),
        jnp.asarray(outputs.param_delta),
    )


@partial(jax.jit, static_argnums=0)
def look(env: HostEnv, games: Game) -> Legality:
    """What may be chosen in each of the games."""
    return jax.vmap(lambda game: env.legal(game.state))(games)
