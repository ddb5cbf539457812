"""Playing runs of the environment: rules, the policy's network and chance behind one function.

A batch of runs follows a batch of pilots, so that every contender of a comparison and every
continuation of a state goes through one compiled program.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tamiyo_jax.graph import GraphsTuple, Normalizer, build, init_normalizer
from tamiyo_jax.host import scale_of
from tamiyo_jax.learn._environment import EnvAction, EnvState, HostEnv
from tamiyo_jax.learn._rules import Memory, Rules, new_memory, rule_action, wait
from tamiyo_jax.learn._tasks import TaskData
from tamiyo_jax.policy import NUM_ACTIONS, Action, Legality, Params, apply, select

__all__ = ["Options", "Pilot", "Run", "begin", "look", "options_of", "play", "see", "stack"]

RATE_CHANGES = (-0.7, -0.3, 1.0)
"""Relative changes of the learning rate that are tried and explored."""


class Pilot(NamedTuple):
    """Who decides in a run; all are arrays, so that a batch may follow many pilots.

    Attributes:
      rules: followed where `learned` is False.
      learned: bool[], follow the network.
      chance: f32[] in [0, 1], the share of decisions that are drawn from the legal `Options`
        instead.
      grown: i32[], row of the candidate that every slot holds from the start; 0 for none.
    """

    rules: Rules
    learned: jax.Array
    chance: jax.Array
    grown: jax.Array


class Run(NamedTuple):
    """A run, and what its pilots remember of it.

    Attributes:
      state: of the environment.
      memory: of the rules.
      normalizer: of the network.
      losses: f32[epochs], the validation loss after each epoch; NaN ahead.
      counts: i32[32], decisions by action.
    """

    state: EnvState
    memory: Memory
    normalizer: Normalizer
    losses: jax.Array
    counts: jax.Array


class Options(NamedTuple):
    """A actions that branching tries, as rows of arrays with a leading axis A."""

    actions: EnvAction
    is_legal: jax.Array


@partial(jax.jit, static_argnums=0)
def begin(env: HostEnv, pilots: Pilot, keys: jax.Array, tasks: TaskData) -> Run:
    """Runs before their first epoch.

    Args:
      env: the environment.
      pilots: with a leading axis B.
      keys: of the runs, [B].
      tasks: with a leading axis B.
    """

    def one(pilot: Pilot, key: jax.Array, task: TaskData) -> Run:
        state = env.initial(key, task)
        grown = env.start_grown(state, pilot.grown)
        state = jax.tree.map(lambda a, b: jnp.where(pilot.grown > 0, a, b), grown, state)
        return Run(
            state,
            new_memory(env),
            init_normalizer(),
            jnp.full(env.epochs, jnp.nan, jnp.float32),
            jnp.zeros(NUM_ACTIONS, jnp.int32),
        )

    return jax.vmap(one)(pilots, keys, tasks)


@partial(jax.jit, static_argnums=0)
def play(
    env: HostEnv,
    params: Params,
    pilots: Pilot,
    runs: Run,
    tasks: TaskData,
    forced: EnvAction,
    epochs: jax.typing.ArrayLike,
) -> Run:
    """Go on with runs, one decision and one epoch at a time; one compilation serves any number.

    Args:
      env: the environment.
      params: of the network.
      pilots: with a leading axis B.
      runs: likewise; before their first epoch, or after any.
      tasks: likewise.
      forced: the first decisions, with a leading axis B; where the action is negative the pilot
        decides.
      epochs: i32[], how many to train.
    """
    one = partial(_advance, env, params)

    def body(index: jax.typing.ArrayLike, runs: Run) -> Run:
        action = jnp.where(index == 0, forced.action, -1)
        return jax.vmap(one)(pilots, runs, tasks, forced._replace(action=action))

    return _test(env, jax.lax.fori_loop(0, epochs, body, runs), tasks)


def _test(env: HostEnv, runs: Run, tasks: TaskData) -> Run:
    """Measure on the test examples: once, for no pilot sees them."""
    loss, accuracy = jax.vmap(env.test)(runs.state.host, tasks)
    measured = runs.state.measured._replace(test_loss=loss, test_accuracy=accuracy)
    return runs._replace(state=runs.state._replace(measured=measured))


def _advance(
    env: HostEnv, params: Params, pilot: Pilot, run: Run, task: TaskData, forced: EnvAction
) -> Run:
    began = run.state.epochs > 0  # before its first epoch there is nothing to decide upon
    memory, by_rule = rule_action(env, pilot.rules, run.memory, run.state)
    normalizer, graph, legality = look(env, run.normalizer, run.state)
    by_network = _network_action(env, params, graph, legality)
    by_chance, explores = _explore(env, run.state, pilot.chance)
    action = _either(pilot.learned, by_network, by_rule)
    action = _either(explores, by_chance, action)
    action = _either(forced.action >= 0, forced, action)
    action = _either(began, action, wait())
    memory = jax.tree.map(lambda new, old: jnp.where(began, new, old), memory, run.memory)
    normalizer = jax.tree.map(
        lambda new, old: jnp.where(began, new, old), normalizer, run.normalizer
    )
    _, state, *_ = env.step(run.state.host.rng, run.state, action, task)
    unmeasured = state.measured._replace(test_loss=jnp.float32(0), test_accuracy=jnp.float32(0))
    return Run(
        state._replace(measured=unmeasured),  # so the compiler drops what nobody reads
        memory,
        normalizer,
        run.losses.at[run.state.epochs].set(state.measured.validation_loss),
        run.counts.at[action.action].add(began.astype(jnp.int32)),
    )


def _either(first: jax.Array, one: EnvAction, other: EnvAction) -> EnvAction:
    return EnvAction(*(jnp.where(first, a, b) for a, b in zip(one, other, strict=True)))


def look(
    env: HostEnv, normalizer: Normalizer, state: EnvState
) -> tuple[Normalizer, GraphsTuple, Legality]:
    rate = env.graph_config.normalizer_rate
    normalizer, graph = build(env.layout, normalizer, env.observe(state), rate=rate)
    return normalizer, graph, env.legal(state)


@partial(jax.jit, static_argnums=0)
def see(env: HostEnv, runs: Run) -> tuple[GraphsTuple, Legality]:
    """What the network would be shown of B runs, and what is legal there."""

    def one(run: Run) -> tuple[GraphsTuple, Legality]:
        return look(env, run.normalizer, run.state)[1:]

    return jax.vmap(one)(runs)


def _network_action(
    env: HostEnv, params: Params, graph: GraphsTuple, legality: Legality
) -> EnvAction:
    outputs = apply(params, env.layout, graph)
    chosen = select(outputs, legality)
    return EnvAction(
        *(jnp.asarray(row) for row in chosen), lr_delta=jnp.asarray(outputs.param_delta)
    )


def options_of(env: HostEnv, state: EnvState) -> Options:
    """All actions that branching tries, and which of them are legal in one state."""
    legality = env.legal(state)
    rows: list[tuple[Action, int, int, float]] = [(Action.WAIT, -1, -1, 0.0)]
    for seed in range(len(env.slots)):
        rows += [
            (Action.GERMINATE, seed, blueprint, 0.0)
            for blueprint in range(1, env.graph_config.max_blueprints)
        ]
        rows += [(a, seed, -1, 0.0) for a in (Action.ADVANCE, Action.CULL, Action.FOSSILIZE)]
    rows += [(Action.OPTIMIZER, -1, -1, change) for change in RATE_CHANGES]
    kinds, seeds, blueprints, changes = zip(*rows, strict=True)
    kinds, seeds = np.array(kinds, np.int32), np.array(seeds, np.int32)
    actions = EnvAction(
        jnp.asarray(kinds),
        jnp.asarray(seeds),
        jnp.asarray(blueprints, jnp.int32),
        jnp.asarray(changes, jnp.float32),
    )
    takes = jnp.asarray(legality.seeds)[kinds, np.maximum(seeds, 0)] | (seeds < 0)
    free = kinds != Action.OPTIMIZER
    scale = scale_of(state.host.opt_state)  # a change that the bounds would undo is not tried
    changed = scale * (1 + actions.lr_delta)
    return Options(actions, takes & (free | ((changed >= 0.1) & (changed <= 10.0))))


def _explore(env: HostEnv, state: EnvState, share: jax.Array) -> tuple[EnvAction, jax.Array]:
    key = jax.random.fold_in(state.host.rng, -1 - state.epochs)
    for_share, for_row = jax.random.split(key)
    options = options_of(env, state)
    scores = jax.random.uniform(for_row, options.is_legal.shape)
    row = jnp.argmax(jnp.where(options.is_legal, scores, -1.0))
    explores = jax.random.uniform(for_share) < share
    return EnvAction(*(x[row] for x in options.actions)), explores


def stack(pilots: list[Pilot]) -> Pilot:
    """Pilots as one batch."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *pilots)
