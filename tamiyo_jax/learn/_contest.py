"""Contenders on the same tasks: whole runs, and what each of them ended with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tamiyo_jax.config import PolicyConfig
from tamiyo_jax.learn._environment import EnvAction, HostEnv
from tamiyo_jax.learn._playing import Pilot, Run, begin, play
from tamiyo_jax.learn._rules import Rules, no_rules, wait
from tamiyo_jax.learn._tasks import TaskData
from tamiyo_jax.policy import Params, init_params

__all__ = [
    "CHUNK",
    "Outcome",
    "contest",
    "follow_network",
    "follow_rules",
    "outcome_of",
    "play_many",
    "play_tasks",
]

CHUNK = 64
"""Runs of one call: what they hold at once bounds the memory."""


class Outcome(NamedTuple):
    """What runs ended with; one array over the runs each.

    Attributes:
      loss: f32, the test loss.
      accuracy: f32 in [0, 1], on the test examples.
      compute: f32, live parameters summed over epochs, in epochs of the bare host.
      live: f32, live parameters at the end, in sizes of the bare host.
      interventions: i32, decisions other than WAIT.
      counts: i32[..., 32], decisions by action.
    """

    loss: np.ndarray
    accuracy: np.ndarray
    compute: np.ndarray
    live: np.ndarray
    interventions: np.ndarray
    counts: np.ndarray


def follow_rules(rules: Rules, *, grown: int = 0, chance: float = 0.0) -> Pilot:
    """A pilot that follows rules; with `grown`, on a host that holds that candidate everywhere."""
    return Pilot(rules, jnp.bool_(False), jnp.float32(chance), jnp.int32(grown))


def follow_network(epochs: int, *, chance: float = 0.0) -> Pilot:
    """A pilot that follows the network in runs of so many epochs."""
    return Pilot(no_rules(epochs), jnp.bool_(True), jnp.float32(chance), jnp.int32(0))


def no_network() -> Params:
    """Parameters for contests in which nobody follows the network."""
    return init_params(PolicyConfig.small(), jax.random.key(0))


def outcome_of(env: HostEnv, runs: Run) -> Outcome:
    """The outcome of runs that are over."""
    state = runs.state
    return Outcome(
        np.asarray(state.measured.test_loss),
        np.asarray(state.measured.test_accuracy),
        np.asarray(state.compute),
        np.asarray(state.live) / np.float32(env.bare),
        np.asarray(state.interventions),
        np.asarray(runs.counts),
    )


def play_many(
    env: HostEnv,
    params: Params,
    pilots: Pilot,
    runs: Run,
    tasks: TaskData,
    forced: EnvAction,
    epochs: int,
    chunk: int = CHUNK,
) -> Run:
    """`play` for any number of runs, in chunks of one size, so that one program serves all."""
    given = (pilots, runs, tasks, forced)
    count = len(jax.tree.leaves(pilots)[0])
    parts: list[Run] = []
    for start in range(0, count, chunk):
        rows = np.minimum(np.arange(start, start + chunk), count - 1)  # the last fills the chunk
        part = play(env, params, *jax.tree.map(lambda x, rows=rows: x[rows], given), epochs)
        parts.append(jax.tree.map(lambda x, n=count - start: np.asarray(x[:n]), part))
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)


def undecided(count: int) -> EnvAction:
    """No decision is forced in any of so many runs."""
    action = wait()._replace(action=jnp.int32(-1))
    return jax.tree.map(lambda x: jnp.broadcast_to(x, (count, *x.shape)), action)


def play_tasks(
    env: HostEnv,
    params: Params,
    pilots: Pilot,
    keys: jax.Array,
    tasks: TaskData,
    epochs: int,
    chunk: int = CHUNK,
) -> Run:
    """Runs from their start, for so many epochs; all with a leading axis B."""
    count = len(keys)
    parts = [
        begin(env, *jax.tree.map(lambda x, rows=rows: x[rows], (pilots, keys, tasks)))
        for rows in (
            np.minimum(np.arange(start, start + chunk), count - 1)
            for start in range(0, count, chunk)
        )
    ]
    runs = jax.tree.map(lambda *leaves: np.concatenate(leaves)[:count], *parts)
    return play_many(env, params, pilots, runs, tasks, undecided(count), epochs, chunk)


def contest(
    env: HostEnv,
    params: Params,
    pilots: Mapping[str, Pilot],
    keys: jax.Array,
    tasks: TaskData,
    *,
    chunk: int = CHUNK,
) -> dict[str, Outcome]:
    """Let each contender train each of T tasks, with the same keys.

    Args:
      env: the environment.
      params: of the network, for those who follow it.
      pilots: the contenders, by name.
      keys: of the runs, [T].
      tasks: with a leading axis T.
      chunk: runs at once.

    Returns:
      The outcomes of each contender, arrays over the tasks.
    """
    count = len(keys)
    one = jax.tree.map(lambda *leaves: jnp.stack(leaves), *pilots.values())
    pilot = np.repeat(np.arange(len(pilots)), count)
    task = np.tile(np.arange(count), len(pilots))
    runs = play_tasks(
        env,
        params,
        jax.tree.map(lambda x: x[pilot], one),
        keys[task],
        jax.tree.map(lambda x: x[task], tasks),
        env.epochs,
        chunk,
    )
    found = outcome_of(env, runs)
    return {
        name: Outcome(*(field[pilot == row] for field in found)) for row, name in enumerate(pilots)
    }
