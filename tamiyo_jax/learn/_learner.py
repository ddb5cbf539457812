"""The learner: lessons, branching and policy optimisation, in rounds that are on disk between them.

Lessons come first: the teacher's plans are chosen, and the network is fitted to what the teacher
would do in states of the teacher and, from the second round on, of the network itself. Rounds of
branching follow. They start from states of the network, go on mostly by the network, and show it
what each action is worth to it in the end. Each fit goes on from the network of the one before,
with the examples of all rounds so far. In rounds of proximal policy optimisation the network then
learns from its own runs alone.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from tamiyo_jax.config import PolicyConfig
from tamiyo_jax.errors import ConfigurationError
from tamiyo_jax.graph import build, init_normalizer
from tamiyo_jax.learn._branching import Prices, Setting, branch, targets_of
from tamiyo_jax.learn._checkpoint import read_params, write_params
from tamiyo_jax.learn._contest import CHUNK, follow_network, follow_rules
from tamiyo_jax.learn._environment import HostEnv
from tamiyo_jax.learn._fitting import Examples, FitSettings, Targets, fit, fit_loss
from tamiyo_jax.learn._grounds import Ground, grounds_of
from tamiyo_jax.learn._playing import stack
from tamiyo_jax.learn._ppo import PpoSettings, improve
from tamiyo_jax.learn._tasks import TRAINING, Family
from tamiyo_jax.learn._teaching import Plan, choose_plans, drawn_plans, lessons
from tamiyo_jax.learn._tuning import Schedule, rules_of
from tamiyo_jax.policy import Action, Legality, Params, init_params

__all__ = ["LearnSettings", "hesitate", "learn"]

OWN_RUNS = 0.75
"""Share of the runs of a round of lessons, after the first, in which the network decides."""

OWN_SHARE = 4
"""How many times as many branches go on by the network as by the teacher's growth."""

PLAIN = (Plan(), Plan(blueprint=2), Plan(blueprint=4), Plan(blueprint=3))
"""Plans that are always among those that the teacher's are chosen from."""

PRICES = Prices()

PPO = PpoSettings()

PLANS = Path(__file__).with_name("plans.json")
"""The plans of the training families, chosen with 48 `plans` and the default `plan_tasks`."""

Progress = Callable[[str, int, int], object]


@dataclass(frozen=True, slots=True)
class LearnSettings:
    """How to learn.

    Attributes:
      plans: from which the teacher's are chosen, family by family, with the seed 0; at least 5.
        0 takes those that were chosen before, which are in ``plans.json`` of this package.
      plan_tasks: of each family, to choose on.
      lessons: rounds of lessons.
      runs: in each of them, over all families.
      branching: rounds of branching.
      ppo: rounds of proximal policy optimisation, of 40 iterations each.
      chunks: of states in each round of branching; the states of a chunk are of one epoch.
      states: in a chunk.
      updates: optimiser steps of each fit.
      weight_decay: of each fit.
      temperature: of the soft choice among branches, in logarithms of the loss; see
        `targets_of`.
      weight: of an example of branching beside one of a lesson.
      margin: added to the logit of WAIT at the end; see `hesitate`.
      prices: of returns.
    """

    plans: int = 0
    plan_tasks: int = 6
    lessons: int = 3
    runs: int = 384
    branching: int = 0
    ppo: int = 0
    chunks: int = 8
    states: int = 64
    updates: int = 1000
    weight_decay: float = 1e-2
    temperature: float = 0.05
    weight: float = 4.0
    margin: float = 0.0
    prices: Prices = PRICES


def hesitate(params: Params, margin: float) -> Params:
    """The network that waits unless another action leads by more than `margin` in its logit.

    A logit is an advantage over the temperature of the targets, so the margin says how much better
    an action must look than WAIT.
    """
    bias = jnp.asarray(params["policy_logits"]["bias"]).at[Action.WAIT].add(margin)
    return {**params, "policy_logits": {**params["policy_logits"], "bias": bias}}


def learn(
    settings: LearnSettings,
    seed: int,
    directory: Path,
    *,
    families: Sequence[Family] = tuple(TRAINING.values()),
    on_progress: Progress | None = None,
    on_update: Callable[[int, int, float], object] | None = None,
) -> Params:
    """Learn a policy; what is finished in the directory is read and not made again.

    Args:
      settings: how.
      seed: of everything. The same seed and settings give the same parameters, bit for bit, on
        one machine.
      directory: for plans, examples and checkpoints; made if it is not there.
      families: to learn on; their runs are of one length.
      on_progress: called with what goes on, how much of it is done, and how much there is.
      on_update: called with the number of the fit, the updates done in it and the mean loss.

    Raises:
      ConfigurationError: the directory holds the work of another seed or of other settings, or
        no plans were chosen before for one of the families.
    """
    _claim(directory, settings, seed, families)
    tell = on_progress or (lambda *_: None)
    grounds = grounds_of(families)
    env = grounds[0].env
    params = init_params(PolicyConfig.small(), jax.random.key(seed))
    plans = _plans(grounds, params, settings, directory, tell)
    examples: list[Examples] = []
    taught = settings.lessons + settings.branching
    for number in range(taught):
        if number < settings.lessons:
            name, parts = f"lessons {number + 1}", _shares(grounds, settings.runs)
        else:
            branches = [(None, settings.states)] * settings.chunks
            name, parts = f"branching {number - settings.lessons + 1}", branches
        for part, (ground, runs) in enumerate(parts):
            tell(name, part, len(parts))
            where = directory / f"examples-{number}-{part}.npz"
            if not where.exists():
                generator = np.random.default_rng([seed, 1 + number, part])
                if ground is None:
                    made = _branch(grounds, params, plans, generator, settings)
                else:
                    own = OWN_RUNS if number else 0.0
                    made = lessons(*ground, params, plans, generator, runs=runs, own=own)
                _write(where, made)
            examples.append(_read(env, where))
        tell(name, len(parts), len(parts))
        kept = directory / f"params-{number}"
        if not kept.exists():
            found = _fit(env, params, examples, settings, seed, number, on_update)
            write_params(kept, found)
        params = read_params(kept, params)
    for number in range(1, 1 + settings.ppo):
        kept = directory / f"ppo-{taught}-{number}"
        generator = np.random.default_rng([seed, 1 + taught, number])
        show = partial(tell, f"policy optimisation {number}")
        params = _optimise(grounds, params, settings.prices, generator, kept, show)
    return hesitate(params, settings.margin)


def _shares(grounds: Sequence[Ground], runs: int) -> list[tuple[Ground, int]]:
    """Parts of at most `CHUNK` runs of one ground, by the number of its families."""
    total, parts = sum(len(one.families) for one in grounds), list[tuple[Ground, int]]()
    for ground in grounds:
        left = max(1, round(runs * len(ground.families) / total))
        while left > 0:
            parts.append((ground, min(CHUNK, left)))
            left -= CHUNK
    return parts


def _claim(directory: Path, settings: LearnSettings, seed: int, families: Sequence[Family]) -> None:
    """Write down whose work the directory holds, or compare."""
    directory.mkdir(parents=True, exist_ok=True)
    names = [family.name for family in families]
    facts = json.loads(json.dumps({"seed": seed, "families": names, **asdict(settings)}))
    for name in ("branching", "ppo", "margin"):  # more rounds go on from fewer
        del facts[name]
    path = directory / "settings.json"
    if not path.exists():
        path.write_text(json.dumps(facts, indent=1), encoding="utf-8")
    found = json.loads(path.read_text(encoding="utf-8"))
    other = sorted(name for name in facts if found.get(name) != facts[name])
    if other:
        raise ConfigurationError(
            f"{directory} holds the work of another {', '.join(other)}; name another directory, "
            "or delete it",
            field=other[0],
        )


def _plans(
    grounds: Sequence[Ground],
    params: Params,
    settings: LearnSettings,
    directory: Path,
    tell: Progress,
) -> dict[str, Plan]:
    names = [family.name for ground in grounds for family in ground.families]
    path = directory / PLANS.name if settings.plans else PLANS
    if not path.exists():
        drawn = [*PLAIN, *drawn_plans(np.random.default_rng(0), settings.plans - len(PLAIN))]
        done: list[str] = []

        def count(name: str) -> None:
            done.append(name)
            tell("choosing plans", len(done), len(names))

        tell("choosing plans", 0, len(names))
        found: dict[str, Plan] = {}
        for ground in grounds:
            found |= choose_plans(
                *ground,
                params,
                drawn,
                tasks=settings.plan_tasks,
                prices=settings.prices,
                on_family=count,
            )
        asked = {name: plan._asdict() for name, plan in found.items()}
        path.write_text(json.dumps(asked, indent=1) + "\n", encoding="utf-8")
    plans = {name: Plan(**row) for name, row in json.loads(path.read_text("utf-8")).items()}
    missing = sorted(set(names) - set(plans))
    if missing:
        raise ConfigurationError(
            f"no plans were chosen before for {', '.join(missing)}; choose some, with --plans 48",
            field="plans",
        )
    return plans


def _branch(
    grounds: Sequence[Ground],
    params: Params,
    plans: Mapping[str, Plan],
    generator: np.random.Generator,
    settings: LearnSettings,
) -> Examples:
    """Branches from states of the network on one ground, which mostly goes on by itself."""
    share = np.array([len(ground.families) for ground in grounds], np.float64)
    env, families = grounds[int(generator.choice(len(grounds), p=share / share.sum()))]
    epochs = env.epochs
    behaviours = [follow_network(epochs, chance=chance) for chance in (0.0, 0.1, 0.2)]
    growing = [
        Schedule(blueprint=plan.blueprint, train_epochs=plan.train_epochs)
        for plan in plans.values()
    ]
    fixed = [follow_rules(rules_of(one, epochs)) for one in growing]
    continuations = [*fixed, *[follow_network(epochs)] * (OWN_SHARE * len(fixed))]
    made = branch(
        Setting(env, families, stack(behaviours), stack(continuations)),
        params,
        generator,
        states=settings.states,
        epoch=int(generator.integers(1, epochs)),
        prices=settings.prices,
    )
    targets = targets_of(made, settings.temperature)
    weighted = targets._replace(weight=targets.weight * settings.weight)
    return made.graphs, made.legality, weighted


def _optimise(
    grounds: Sequence[Ground],
    params: Params,
    prices: Prices,
    generator: np.random.Generator,
    kept: Path,
    tell: Callable[[int, int], object],
) -> Params:
    tell(0, PPO.iterations)
    if not kept.exists():
        found = improve(
            grounds,
            params,
            generator,
            PPO,
            prices=prices,
            on_iteration=lambda done, _: tell(done, PPO.iterations),
        )
        write_params(kept, found)
    tell(PPO.iterations, PPO.iterations)
    return read_params(kept, params)


def _write(where: Path, examples: Examples) -> None:
    unfinished = where.with_suffix(".unfinished.npz")
    np.savez(unfinished, *jax.tree.leaves(examples))
    unfinished.rename(where)


def _read(env: HostEnv, where: Path) -> Examples:
    graph = jax.eval_shape(partial(build, env.layout), init_normalizer(), env.observer.template)[1]
    leaf = jnp.zeros(0)
    shape = (graph, Legality(leaf, leaf, leaf), Targets(*(leaf,) * len(Targets._fields)))
    with np.load(where) as arrays:
        leaves = [arrays[f"arr_{index}"] for index in range(len(arrays.files))]
    return jax.tree.unflatten(jax.tree.structure(shape), leaves)


def _fit(
    env: HostEnv,
    params: Params,
    examples: Sequence[Examples],
    settings: LearnSettings,
    seed: int,
    number: int,
    on_update: Callable[[int, int, float], object] | None,
) -> Params:
    return fit(
        params,
        env.layout,
        jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *examples),
        jax.random.fold_in(jax.random.key(seed), number),
        FitSettings(updates=settings.updates, weight_decay=settings.weight_decay),
        loss=fit_loss,
        on_update=None if on_update is None else lambda done, loss: on_update(number, done, loss),
    )
