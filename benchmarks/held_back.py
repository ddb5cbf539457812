"""Policies on tasks of the training families that no plan and no lesson has used.

    .venv/bin/python benchmarks/held_back.py POLICY POLICY ...

For a choice between policies, such as those of several training seeds, without a look at a held-out
family. Each POLICY is a directory that ``tamiyo-jax train`` wrote. Prints the mean logarithm of the
test loss, the test loss, the accuracy and the decisions, of each family and of all together, beside
never acting and the teacher with its plan of the family.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import numpy as np

from tamiyo_jax.config import PolicyConfig
from tamiyo_jax.learn import (
    PARAMS,
    TRAINING,
    Family,
    HostEnv,
    Outcome,
    Plan,
    contest,
    draw_many,
    follow_network,
    follow_rules,
    no_rules,
)
from tamiyo_jax.learn._contest import outcome_of, play_tasks
from tamiyo_jax.learn._grounds import grounds_of
from tamiyo_jax.learn._learner import PLANS
from tamiyo_jax.learn._teaching import teacher_pilots
from tamiyo_jax.learn._tuning import score
from tamiyo_jax.policy import Params, load_params

FIRST = 300_000


def play(
    env: HostEnv, family: Family, plan: Plan, policies: Mapping[str, Params], tasks: int
) -> dict[str, Outcome]:
    """The outcomes of never acting, the teacher and the policies, on the same tasks."""
    seeds = [FIRST + index for index in range(tasks)]
    keys = jax.vmap(jax.random.PRNGKey)(np.array(seeds, np.uint32))
    drawn = draw_many([family] * tasks, seeds)
    anyone = next(iter(policies.values()))
    never = {"never act": follow_rules(no_rules(env.epochs))}
    found = contest(env, anyone, never, keys, drawn)
    taught = teacher_pilots([plan] * tasks, env.epochs, drawn)
    found["teacher"] = outcome_of(env, play_tasks(env, anyone, taught, keys, drawn, env.epochs))
    for name, params in policies.items():
        found[name] = contest(env, params, {name: follow_network(env.epochs)}, keys, drawn)[name]
    return found


def row(outcome: Outcome) -> tuple[float, ...]:
    """The numbers that are printed."""
    numbers = (score(outcome), outcome.loss, outcome.accuracy, outcome.interventions)
    return tuple(float(np.mean(one)) for one in numbers)


def print_rows(title: str, rows: Mapping[str, Sequence[float]]) -> None:
    """Print a line for each contender."""
    print(title)
    for name, (log, loss, accuracy, decisions) in rows.items():
        print(f"  {name:<14} {log:+.3f}  {loss:.3f}  {100 * accuracy:.1f} %  {decisions:.1f}")


def main() -> None:
    """Play and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("policies", nargs="+", type=Path)
    parser.add_argument("--families", nargs="+", default=list(TRAINING))
    parser.add_argument("--tasks", type=int, default=16)
    arguments = parser.parse_args()
    config = PolicyConfig.small()
    policies = {path.name: load_params(path / PARAMS, config) for path in arguments.policies}
    plans = {name: Plan(**one) for name, one in json.loads(PLANS.read_text("utf-8")).items()}
    rows: dict[str, list[tuple[float, ...]]] = {}
    for env, families in grounds_of(list(TRAINING.values())):
        for family in (one for one in families if one.name in arguments.families):
            found = play(env, family, plans[family.name], policies, arguments.tasks)
            here = {name: row(outcome) for name, outcome in found.items()}
            print_rows(family.name, here)
            for name, numbers in here.items():
                rows.setdefault(name, []).append(numbers)
    print_rows("all", {name: np.mean(found, axis=0) for name, found in rows.items()})


if __name__ == "__main__":
    main()
