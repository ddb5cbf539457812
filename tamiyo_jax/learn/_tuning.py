"""Rivals chosen on training tasks: schedules, the heuristic's own numbers, and the headroom.

Every choice is made on tasks of `TRAINING` families. The headroom of a family is what its best
schedule, chosen on one half of its tasks and measured on the other, gains over never acting and
over the one schedule that is best for all families.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tamiyo_jax.config import HeuristicConfig
from tamiyo_jax.learn._contest import Outcome, contest, follow_rules, no_network
from tamiyo_jax.learn._environment import HostEnv
from tamiyo_jax.learn._playing import Pilot
from tamiyo_jax.learn._rules import NEVER, Rules, no_rules
from tamiyo_jax.learn._tasks import Family, draw_many

__all__ = [
    "Headroom",
    "Schedule",
    "drawn_heuristics",
    "drawn_schedules",
    "headroom",
    "play_families",
    "rate_schedules",
    "rules_of",
    "score",
]

FLOOR = 0.05


class Schedule(NamedTuple):
    """A fixed plan; `rules_of` makes rules of it for runs of any length.

    Attributes:
      rate: multiplier of the learning rate at the start.
      hold: share of the run in which it stays there.
      floor: multiplier of `rate` at the end, reached linearly; 1 changes nothing.
      blueprint: row of the only candidate to grow, one slot after another; 0 grows none.
      start: share of the run before the first germination.
      train_epochs: that a seed trains before it blends.
    """

    rate: float = 1.0
    hold: float = 1.0
    floor: float = 1.0
    blueprint: int = 0
    start: float = 0.0
    train_epochs: int = 1


def rules_of(schedule: Schedule, epochs: int) -> Rules:
    """The schedule as rules for runs of so many epochs."""
    time = np.arange(epochs) / epochs
    fall = (time - schedule.hold) / max(1 - schedule.hold, 1e-6)
    rates = schedule.rate * (1 - (1 - schedule.floor) * np.clip(fall, 0, 1))
    fixed = schedule.rate == schedule.floor == 1.0
    rules = no_rules(epochs)._replace(rates=jnp.asarray(rates * (not fixed), jnp.float32))
    if not schedule.blueprint:
        return rules
    return rules._replace(
        plateau_epochs=jnp.int32(0),
        min_epochs=jnp.int32(round(schedule.start * epochs)),
        embargo_epochs=jnp.int32(0),
        train_epochs=jnp.int32(schedule.train_epochs),
        harm_epochs=jnp.int32(NEVER),
        only=jnp.int32(schedule.blueprint),
    )


def rate_schedules() -> list[Schedule]:
    """The fixed learning-rate schedules: none, and starts, holds and floors in a grid."""
    return [
        Schedule(),
        *(
            Schedule(rate, hold, floor)
            for rate in (0.3, 1.0, 2.0, 4.0)
            for hold in (0.0, 0.5)
            for floor in (0.05, 0.3)
        ),
    ]


def drawn_schedules(generator: np.random.Generator, count: int) -> list[Schedule]:
    """Growth schedules by chance, with a schedule of the learning rate each."""
    rates = rate_schedules()
    return [
        rates[generator.integers(0, len(rates))]._replace(
            blueprint=int(generator.integers(1, 5)),
            start=float(generator.choice([0.0, 0.0, 0.2, 0.4])),
            train_epochs=int(generator.integers(0, 3)),
        )
        for _ in range(count)
    ]


def drawn_heuristics(generator: np.random.Generator, count: int) -> list[HeuristicConfig]:
    """The heuristic's own numbers, and others by chance."""
    choices: Mapping[str, Sequence[float]] = {
        "plateau_epochs": (1, 2, 3, 4),
        "plateau_improvement": (0.003, 0.01, 0.03, 0.1, 0.3),
        "min_epochs": (1, 3, 5),
        "train_epochs": (1, 2, 3),
        "embargo_epochs": (1, 3, 5),
        "harm_epochs": (2, 3, 5),
        "rising_epochs": (2, 3, 4),
        "brake": (0.3, 0.5, 0.7),
    }
    drawn: list[HeuristicConfig] = [HeuristicConfig()]
    for _ in range(count):
        numbers = {name: generator.choice(values).item() for name, values in choices.items()}
        drawn.append(HeuristicConfig(**numbers))
    return drawn


def score(outcome: Outcome) -> np.ndarray:
    """f32[T]: what rivals are chosen by, the mean log of the test loss; smaller is better."""
    return np.log(np.nan_to_num(outcome.loss, nan=9.0, posinf=9.0) + FLOOR)


def play_families(
    families: Sequence[Family], rivals: Mapping[str, Pilot] | Sequence[Pilot], *, tasks: int
) -> np.ndarray:
    """f32[F, R, tasks]: the score of each of R rivals on tasks of F families of one architecture.

    Task i is drawn from the seed i, and its run's key as well.
    """
    named = rivals if isinstance(rivals, Mapping) else {str(i): p for i, p in enumerate(rivals)}
    keys = jax.vmap(jax.random.PRNGKey)(np.arange(tasks))
    found: list[np.ndarray] = []
    for family in families:
        env = HostEnv(family.architecture)
        drawn = draw_many([family] * tasks, list(range(tasks)))
        outcomes = contest(env, no_network(), named, keys, drawn)
        found.append(np.stack([score(one) for one in outcomes.values()]))
    return np.stack(found)


class Headroom(NamedTuple):
    """What choosing for a family gains there, in the logarithm of the test loss.

    Attributes:
      family: its name.
      over_never: of the family's best schedule over never acting, cross-fitted.
      over_fixed: over the schedule that is best for all families, cross-fitted.
      error: half of the 95 % interval of `over_fixed`, from the tasks.
      best: the family's best schedule over all its tasks.
    """

    family: str
    over_never: float
    over_fixed: float
    error: float
    best: Schedule


def headroom(
    families: Sequence[Family],
    schedules: Sequence[Schedule],
    *,
    tasks: int,
    on_family: Callable[[str], object] | None = None,
) -> list[Headroom]:
    """Measure the headroom of families; the first of the schedules must be to never act."""
    scores: list[np.ndarray] = []
    for family in families:
        epochs = family.architecture.epochs
        rivals = [follow_rules(rules_of(one, epochs)) for one in schedules]
        scores.append(play_families([family], rivals, tasks=tasks)[0])
        if on_family is not None:
            on_family(family.name)
    return measure_headroom([one.name for one in families], schedules, np.stack(scores))


def measure_headroom(
    names: Sequence[str], schedules: Sequence[Schedule], scores: np.ndarray
) -> list[Headroom]:
    """The headroom from scores f32[F, R, T], of which row 0 never acts."""
    half = np.arange(scores.shape[2]) % 2 == 0
    rows: list[Headroom] = []
    for row, name in enumerate(names):
        gains: list[np.ndarray] = []
        nevers: list[np.ndarray] = []
        for chosen_on in (half, ~half):
            here, there = scores[row][:, chosen_on], scores[row][:, ~chosen_on]
            own = there[np.argmin(here.mean(axis=1))]
            fixed = there[np.argmin(scores[:, :, chosen_on].mean(axis=(0, 2)))]
            gains.append(fixed - own)
            nevers.append(there[0] - own)
        gain = np.concatenate(gains)
        error = 1.96 * float(np.std(gain, ddof=1)) / np.sqrt(len(gain))
        best = schedules[int(np.argmin(scores[row].mean(axis=1)))]
        rows.append(
            Headroom(name, float(np.mean(np.concatenate(nevers))), float(gain.mean()), error, best)
        )
    return rows
