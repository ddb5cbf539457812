"""The table: a learned policy and its rivals on the same tasks, with paired intervals.

What a rival needs to have chosen, it chooses on tasks of `TRAINING` families before it meets a
held-out one. All contenders of a task share its data, its initial host and its batches.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np

from tamiyo_jax.config import HeuristicConfig
from tamiyo_jax.learn._contest import CHUNK, Outcome, contest, follow_network, follow_rules
from tamiyo_jax.learn._environment import HostEnv
from tamiyo_jax.learn._playing import Pilot
from tamiyo_jax.learn._rules import heuristic_rules, no_rules
from tamiyo_jax.learn._tasks import TRAINING, Family, draw_many
from tamiyo_jax.learn._tuning import (
    Schedule,
    drawn_heuristics,
    drawn_schedules,
    play_families,
    rate_schedules,
    rules_of,
)
from tamiyo_jax.policy import Params

__all__ = [
    "LEARNED",
    "Interval",
    "Rivals",
    "choose_rivals",
    "compare",
    "contenders",
    "evaluate",
    "evaluate_policy",
    "interval_over_seeds",
    "rivals_from_json",
    "summarise",
    "summarise_policy",
]

LEARNED = "learned"
FIRST_SEED = 100_000
"""Seeds of tasks of the table start here: no choice was made on these."""
RESAMPLES = 4000
STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
"""97.5 % points of Student's t for 2 to 10 values; more values are treated as 10."""


class Rivals(NamedTuple):
    """What was chosen on training tasks.

    Attributes:
      rates: the best learning-rate schedule without growth.
      growth: the best schedule with growth.
      heuristic: the best numbers of the heuristic.
      grown: row of the candidate that is best to hold everywhere from the start.
    """

    rates: Schedule
    growth: Schedule
    heuristic: HeuristicConfig
    grown: int


def rivals_from_json(text: str) -> Rivals:
    """Rivals that `tamiyo-jax evaluate --rivals` wrote."""
    fields = json.loads(text)
    return Rivals(
        Schedule(**fields["rates"]),
        Schedule(**fields["growth"]),
        HeuristicConfig(**fields["heuristic"]),
        fields["grown"],
    )


class Interval(NamedTuple):
    """A mean difference with its 95 % bootstrap interval."""

    mean: float
    low: float
    high: float


def choose_rivals(
    seed: int,
    *,
    tasks: int,
    candidates: int,
    families: Sequence[Family] | None = None,
    on_rivals: Callable[[str], object] | None = None,
) -> Rivals:
    """Choose each rival among many, by the mean log of the test loss over training tasks.

    Args:
      seed: draws the schedules and the heuristic's numbers.
      tasks: of each family.
      candidates: growth schedules, and settings of the heuristic, that are drawn.
      families: all of `TRAINING` by default; their runs are of one length.
      on_rivals: called with the name of what is chosen next.
    """
    generator = np.random.default_rng(seed)
    chosen_on = list(TRAINING.values()) if families is None else list(families)
    epochs = chosen_on[0].architecture.epochs

    def best(name: str, pilots: Sequence[Pilot]) -> int:
        if on_rivals is not None:
            on_rivals(name)
        scores = play_families(chosen_on, pilots, tasks=tasks)
        return int(np.argmin(scores.mean(axis=(0, 2))))

    rates = rate_schedules()
    growths = drawn_schedules(generator, candidates)
    heuristics = drawn_heuristics(generator, candidates)
    return Rivals(
        rates[best("rates", [follow_rules(rules_of(one, epochs)) for one in rates])],
        growths[best("growth", [follow_rules(rules_of(one, epochs)) for one in growths])],
        heuristics[
            best("heuristic", [follow_rules(heuristic_rules(one, epochs)) for one in heuristics])
        ],
        1 + best("grown", [follow_rules(no_rules(epochs), grown=row) for row in range(1, 5)]),
    )


def contenders(rivals: Rivals, epochs: int) -> dict[str, Pilot]:
    """The rows of the table for runs of so many epochs; the last follows the network."""
    by_chance = heuristic_rules(HeuristicConfig(), epochs)._replace(random=np.bool_(True))
    return {
        "never act": follow_rules(no_rules(epochs)),
        "best learning-rate schedule": follow_rules(rules_of(rivals.rates, epochs)),
        "everything from the start": follow_rules(no_rules(epochs), grown=rivals.grown),
        "best growth schedule": follow_rules(rules_of(rivals.growth, epochs)),
        "heuristic": follow_rules(heuristic_rules(HeuristicConfig(), epochs)),
        "heuristic, tuned": follow_rules(heuristic_rules(rivals.heuristic, epochs)),
        "random": follow_rules(by_chance),
        LEARNED: follow_network(epochs),
    }


def evaluate(
    params: Params, rivals: Rivals, family: Family, *, tasks: int, first: int = FIRST_SEED
) -> dict[str, Outcome]:
    """The outcomes of all contenders on tasks of a family.

    Args:
      params: of the learned policy.
      rivals: see `choose_rivals`.
      family: may be held out.
      tasks: how many.
      first: seed of the first task; the others count up from it.
    """
    env = HostEnv(family.architecture)
    return _contest(env, params, family, contenders(rivals, env.epochs), tasks, first)


def evaluate_policy(
    params: Params, family: Family, *, tasks: int, first: int = FIRST_SEED
) -> Outcome:
    """The outcomes of a policy alone, on the tasks that `evaluate` plays; see there."""
    env = HostEnv(family.architecture)
    alone = {LEARNED: follow_network(env.epochs)}
    return _contest(env, params, family, alone, tasks, first)[LEARNED]


def _contest(
    env: HostEnv, params: Params, family: Family, pilots: dict[str, Pilot], tasks: int, first: int
) -> dict[str, Outcome]:
    seeds = [first + index for index in range(tasks)]
    keys = jax.vmap(jax.random.PRNGKey)(np.array(seeds, np.uint32))
    chunk = min(CHUNK, tasks)  # a policy alone, and policies in a row, share one program
    drawn = draw_many([family] * tasks, seeds)
    return contest(env, params, pilots, keys, drawn, chunk=chunk)


def compare(ours: np.ndarray, theirs: np.ndarray, seed: int = 0) -> Interval:
    """The mean of ours less theirs, paired by task, with the percentile bootstrap's interval.

    Efron and Tibshirani 1993, §13.3, with 4000 resamples of the tasks.
    """
    differences = np.asarray(ours, np.float64) - np.asarray(theirs, np.float64)
    generator = np.random.default_rng(seed)
    rows = generator.integers(0, len(differences), (RESAMPLES, len(differences)))
    low, high = np.percentile(differences[rows].mean(axis=1), (2.5, 97.5))
    return Interval(float(differences.mean()), float(low), float(high))


def summarise(outcomes: Mapping[str, Outcome]) -> list[dict[str, object]]:
    """Rows of the table as JSON: means, and how much better `LEARNED` is than each rival."""
    ours = outcomes[LEARNED]
    return [
        {
            "contender": name,
            **_means(one),
            "loss_saved": None if one is ours else compare(one.loss, ours.loss)._asdict(),
            "accuracy_gained": None
            if one is ours
            else compare(ours.accuracy, one.accuracy)._asdict(),
        }
        for name, one in outcomes.items()
    ]


def summarise_policy(outcome: Outcome, outcomes: Mapping[str, Outcome]) -> dict[str, object]:
    """A further policy's row as JSON: means, and the loss that it saves against each rival."""
    saved = {
        name: compare(rival.loss, outcome.loss)._asdict()
        for name, rival in outcomes.items()
        if name != LEARNED
    }
    return {**_means(outcome), "loss_saved": saved}


def _means(one: Outcome) -> dict[str, float]:
    return {
        "accuracy": float(one.accuracy.mean()),
        "loss": float(one.loss.mean()),
        "compute": float(one.compute.mean()),
        "live": float(one.live.mean()),
        "interventions": float(one.interventions.mean()),
    }


def interval_over_seeds(means: Sequence[float]) -> Interval:
    """The mean of what policies of several training seeds reached, with Student's 95 % interval.

    The tasks are the same for all, so this is how far training seeds differ, not tasks.
    """
    values = np.asarray(means, np.float64)
    quantile = STUDENT[min(len(values) - 2, len(STUDENT) - 1)]
    error = quantile * values.std(ddof=1) / np.sqrt(len(values))
    return Interval(
        float(values.mean()), float(values.mean() - error), float(values.mean() + error)
    )
