"""`tamiyo-jax evaluate`: a policy against schedules and rules, family by family."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from tamiyo_jax.cli._output import Json, print_json, print_lines, print_table
from tamiyo_jax.config import PolicyConfig

if TYPE_CHECKING:
    from tamiyo_jax.learn import Score

__all__ = ["evaluate"]

LEARNED = "learned"


def evaluate(
    policy: Annotated[
        Path | None,
        typer.Argument(
            exists=True,
            dir_okay=False,
            help="The policy's params.safetensors, of the small widths; without it the rivals are "
            "compared alone.",
        ),
    ] = None,
    families: Annotated[
        list[str] | None,
        typer.Option("--family", help="A family of tasks; by default every held-out one."),
    ] = None,
    seeds: Annotated[int, typer.Option(min=2, help="Tasks of each family.")] = 20,
    batch: Annotated[int, typer.Option(min=1, help="Runs that are trained at once.")] = 192,
    as_json: Json = False,
) -> None:
    """Compare a policy with schedules and rules, on the same tasks and the same randomness.

    The rivals' numbers are chosen on the training families first. Differences are paired, with
    95 % intervals.
    Example: tamiyo-jax evaluate policy/params.safetensors
    """
    from tamiyo_jax import learn
    from tamiyo_jax.policy import load_params

    params = None if policy is None else load_params(policy, PolicyConfig.small())
    chosen = [learn.find_family(name) for name in families or learn.HELD_OUT]
    environments = {
        shape: learn.HostEnv(shape) for shape in {family.architecture: None for family in chosen}
    }
    training = list(learn.TRAINING.values())
    tuning = learn.HostEnv(training[0].architecture)
    numbers = learn.tune(tuning, training, range(10_000, 10_000 + seeds), batch=batch)
    found: dict[str, dict[str, Score]] = {}
    for shape, env in environments.items():
        players = learn.contestants(env.epochs, numbers, params)
        mine = [family for family in chosen if family.architecture == shape]
        found |= learn.evaluate(env, mine, players, range(20_000, 20_000 + seeds), batch=batch)
    if as_json:
        print_json(
            {
                family: {name: score._asdict() for name, score in scores.items()}
                for family, scores in found.items()
            }
        )
        return
    print_lines(*(f"{name}: {values}" for name, values in numbers.items()))
    for family in chosen:
        print_table(_table(family.name, found[family.name]))


def _table(family: str, scores: dict[str, Score]) -> Table:
    from tamiyo_jax.learn import difference

    table = Table(title=f"{family}; differences are of the test loss")
    names = (
        "",
        "test loss",
        "accuracy",
        "compute",
        "live",
        "interventions",
        "learned − this",
    )
    for name in names:
        table.add_column(name, justify="right" if name else "left")
    learned = scores.get(LEARNED)
    for name, score in scores.items():
        paired = ""
        if learned is not None and name != LEARNED:
            mean, low, high = difference(learned.loss, score.loss)
            paired = f"{mean:+.3f} [{low:+.3f}, {high:+.3f}]"
        table.add_row(
            name,
            f"{score.loss.mean():.3f}",
            f"{100 * score.accuracy.mean():.1f} %",
            f"{score.compute.mean():.2f}",
            f"{score.live.mean():.2f}",
            f"{score.interventions.mean():.1f}",
            paired,
        )
    return table
