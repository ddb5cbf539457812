"""The table: a policy against schedules and rules, on the same tasks and the same randomness.

Every contestant plays the same tasks from the same keys, so differences are taken game by game.
Their intervals are percentile bootstraps over the tasks (Efron 1979).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tamiyo_jax.config import HeuristicConfig
from tamiyo_jax.learn._environment import HostEnv
from tamiyo_jax.learn._play import Game, new_games, play
from tamiyo_jax.learn._rules import Rules, heuristic_rules, no_rules
from tamiyo_jax.learn._tasks import Family, draw_many
from tamiyo_jax.policy import Params

__all__ = ["Contestant", "Score", "contestants", "difference", "evaluate", "rate_plan", "tune"]

RESAMPLES = 2000
LOSS_LIMIT = 3.0
WIDEST = 2
"""Row of the widest candidate, which everything-from-the-start grows in all slots."""


class Contestant(NamedTuple):
    """Who plays.

    Attributes:
      rules: that choose, unless there are `params`.
      grown: row of the blueprint that stands in all slots from the start; 0 for none.
      params: of a network.
    """

    rules: Rules
    grown: int = 0
    params: Params | None = None


class Score(NamedTuple):
    """The ends of n games of one contestant, f64[n] each.

    Attributes:
      loss: test loss, the mean of the last two epochs, at most 3.
      accuracy: test accuracy likewise, in [0, 1].
      compute: live parameters summed over epochs, in units of a bare host's run.
      live: live parameters at the end, in units of the bare host's.
      interventions: decisions other than WAIT.
    """

    loss: np.ndarray
    accuracy: np.ndarray
    compute: np.ndarray
    live: np.ndarray
    interventions: np.ndarray


def rate_plan(epochs: int, level: float, end: float) -> jax.Array:
    """f32[epochs]: multipliers that fall from `level` to `level · end` along a cosine."""
    share = (1 + jnp.cos(jnp.pi * jnp.arange(epochs) / epochs)) / 2
    return jnp.maximum(level * (end + (1 - end) * share), 0.1).astype(jnp.float32)


def growth_schedule(epochs: int, epoch: int, blueprint: int) -> Rules:
    """Germinate one candidate in every slot, the first at `epoch`, whatever the losses say."""
    rules = heuristic_rules(HeuristicConfig(min_epochs=epoch, harm_epochs=1000), epochs)
    never = jnp.int32(10_000)
    return rules._replace(
        plateau_epochs=jnp.int32(0), rising_epochs=never, only=jnp.int32(blueprint)
    )


def contestants(
    epochs: int, tuned: Mapping[str, Sequence[float]], params: Params | None
) -> dict[str, Contestant]:
    """All that the table compares.

    Args:
      epochs: length of a run.
      tuned: what `tune` chose on the training families.
      params: of the learned policy; None leaves it out.
    """
    level, end = tuned["rates"]
    epoch, blueprint = map(int, tuned["growth"])
    plateau, first, training = map(int, tuned["heuristic"])
    bare = no_rules(epochs)
    found = {
        "never act": Contestant(bare),
        "learning-rate schedule": Contestant(bare._replace(rates=rate_plan(epochs, level, end))),
        "everything from the start": Contestant(bare, grown=WIDEST),
        "growth schedule": Contestant(growth_schedule(epochs, epoch, blueprint)),
        "heuristic": Contestant(heuristic_rules(HeuristicConfig(), epochs)),
        "tuned heuristic": Contestant(_heuristic(epochs, plateau, first, training)),
        "random": Contestant(bare._replace(random=jnp.bool_(True))),
    }
    return found if params is None else {**found, "learned": Contestant(bare, params=params)}


def _heuristic(epochs: int, plateau: int, first: int, training: int) -> Rules:
    config = HeuristicConfig(plateau_epochs=plateau, min_epochs=first, train_epochs=training)
    return heuristic_rules(config, epochs)


def evaluate(
    env: HostEnv,
    families: Sequence[Family],
    players: Mapping[str, Contestant],
    seeds: Sequence[int],
    *,
    batch: int,
) -> dict[str, dict[str, Score]]:
    """Let all contestants play one task of each family and seed: scores by family and contestant.

    Args:
      env: of the families' architecture.
      families: of one architecture.
      players: by name.
      seeds: of the tasks, the initial values and the batches.
      batch: games played at once; each size is compiled for.
    """
    jobs = [(name, family, seed) for name in players for family in families for seed in seeds]
    scores: dict[tuple[str, str], list[np.ndarray]] = {}
    by_network = [job for job in jobs if players[job[0]].params is not None]
    by_rules = [job for job in jobs if players[job[0]].params is None]
    groups = [by_rules, *([job for job in by_network if job[0] == n] for n in players)]
    for group in groups:
        for start in range(0, len(group), batch):
            some = group[start : start + batch]
            padded = some + some[-1:] * (batch - len(some))
            rows = _play_jobs(env, padded, players)
            for (name, family, _), row in zip(some, rows, strict=False):
                scores.setdefault((family.name, name), []).append(row)
    return {
        family.name: {
            name: Score(*np.stack(scores[family.name, name]).astype(np.float64).T)
            for name in players
        }
        for family in families
    }


def _play_jobs(
    env: HostEnv, jobs: list[tuple[str, Family, int]], players: Mapping[str, Contestant]
) -> np.ndarray:
    """f64[n, 5]: the columns of `Score`."""
    seeds = [seed for _, _, seed in jobs]
    tasks = draw_many([family for _, family, _ in jobs], seeds)
    keys = jax.vmap(jax.random.PRNGKey)(jnp.asarray(seeds, jnp.int32))
    chosen = [players[name] for name, _, _ in jobs]
    rules = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(one.rules for one in chosen))
    games = new_games(env, keys, tasks, jnp.asarray([one.grown for one in chosen], jnp.int32))
    ended = play(env, games, tasks, rules, 0, env.epochs, chosen[0].params)
    return _columns(env, jax.device_get(ended))


def _columns(env: HostEnv, games: Game) -> np.ndarray:
    losses = np.nan_to_num(games.losses[:, -2:], nan=LOSS_LIMIT, posinf=LOSS_LIMIT)
    columns: list[Any] = [
        np.minimum(losses, LOSS_LIMIT).mean(axis=1),
        games.accuracies[:, -2:].mean(axis=1),
        games.state.compute / env.epochs,
        games.state.live / env.bare,
        games.state.interventions,
    ]
    return np.stack([np.asarray(column) for column in columns], axis=1)


def difference(ours: np.ndarray, theirs: np.ndarray) -> tuple[float, float, float]:
    """The mean of paired differences f64[n], and its 95 % bootstrap interval."""
    paired = ours - theirs
    generator = np.random.default_rng(0)
    means = paired[generator.integers(0, len(paired), (RESAMPLES, len(paired)))].mean(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(paired.mean()), float(low), float(high)


def tune(
    env: HostEnv, families: Sequence[Family], seeds: Sequence[int], *, batch: int
) -> dict[str, tuple[float, ...]]:
    """Choose each kind of rival by its mean test loss on training families.

    Returns:
      ``rates`` (level, end), ``growth`` (epoch, blueprint) and ``heuristic`` (plateau_epochs,
      min_epochs, train_epochs).
    """
    epochs, bare = env.epochs, no_rules(env.epochs)
    kinds: dict[str, dict[tuple[float, ...], Contestant]] = {
        "rates": {
            (level, end): Contestant(bare._replace(rates=rate_plan(epochs, level, end)))
            for level in (0.5, 1.0, 2.0)
            for end in (0.0, 0.3, 1.0)
        },
        "growth": {
            (epoch, row): Contestant(growth_schedule(epochs, epoch, row))
            for epoch in (1, 4, 8)
            for row in range(1, env.graph_config.max_blueprints)
        },
        "heuristic": {
            (plateau, first, training): Contestant(_heuristic(epochs, plateau, first, training))
            for plateau in (1, 2, 3)
            for first in (1, 5)
            for training in (1, 3)
        },
    }
    best: dict[str, tuple[float, ...]] = {}
    for kind, options in kinds.items():
        players = {str(numbers): one for numbers, one in options.items()}
        scores = evaluate(env, families, players, seeds, batch=batch)
        means = {
            numbers: np.mean([scores[family.name][str(numbers)].loss.mean() for family in families])
            for numbers in options
        }
        best[kind] = min(means, key=lambda numbers: means[numbers])
    return best
