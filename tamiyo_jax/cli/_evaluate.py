"""`tamiyo-jax evaluate` and `headroom`: what a policy is worth, and what there is to gain."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from tamiyo_jax.cli._output import Json, print_json, print_table, problems
from tamiyo_jax.config import PolicyConfig

if TYPE_CHECKING:
    from tamiyo_jax.learn import Family, Outcome
    from tamiyo_jax.policy import Params

__all__ = ["evaluate", "headroom"]

BESIDE = ("never act", "heuristic, tuned")
"""Rivals that further policies are compared with."""


def evaluate(
    policy: Annotated[
        Path | None,
        typer.Option(
            exists=True,
            file_okay=False,
            help="Directory that `tamiyo-jax train` wrote; by default the policy shipped here.",
        ),
    ] = None,
    families: Annotated[
        list[str] | None,
        typer.Option(
            "--family",
            metavar="<name>",
            help="A family of tasks, more than once for more; by default all that are held out.",
        ),
    ] = None,
    tasks: Annotated[int, typer.Option(min=2, help="Tasks of each family.")] = 20,
    tuning_tasks: Annotated[
        int, typer.Option(min=2, help="Tasks of each training family to choose rivals on.")
    ] = 8,
    candidates: Annotated[
        int, typer.Option(min=1, help="Schedules and heuristics to choose rivals from.")
    ] = 24,
    rivals_file: Annotated[
        Path | None,
        typer.Option(
            "--rivals",
            dir_okay=False,
            help="Rivals that were chosen before; where there is no such file, it is written.",
        ),
    ] = None,
    also: Annotated[
        list[Path] | None,
        typer.Option(
            exists=True,
            file_okay=False,
            help="A further policy, such as of another training seed, more than once for more: "
            "its row says what it saves against never acting and the tuned heuristic.",
        ),
    ] = None,
    card: Annotated[
        bool, typer.Option("--card", help="Write what was found into the card of --policy.")
    ] = False,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the candidates.")] = 0,
    as_json: Json = False,
) -> None:
    """Compare a policy with its rivals on the same tasks.

    Rivals are chosen on training families. Example: tamiyo-jax evaluate --family rings
    """
    from tamiyo_jax import learn
    from tamiyo_jax.inference import shipped_params
    from tamiyo_jax.policy import load_params

    if card and policy is None:
        raise typer.BadParameter("--card needs --policy, the directory whose card is written")
    config = PolicyConfig.small()
    params = shipped_params() if policy is None else load_params(policy / learn.PARAMS, config)
    others = {path.name: load_params(path / learn.PARAMS, config) for path in also or ()}
    chosen = [learn.find_family(name) for name in families or learn.HELD_OUT]
    if rivals_file is not None and rivals_file.exists():
        rivals = learn.rivals_from_json(rivals_file.read_text(encoding="utf-8"))
    else:
        rivals = learn.choose_rivals(
            seed,
            tasks=tuning_tasks,
            candidates=candidates,
            on_rivals=lambda name: problems.print(f"choosing the best of: {name}"),
        )
    if rivals_file is not None:
        rivals_file.write_text(json.dumps(_plain(rivals), indent=1), encoding="utf-8")
    found: dict[str, Any] = {"rivals": _plain(rivals), "families": {}, "also": {}}
    for family in chosen:
        problems.print(f"playing {family.name}")
        outcomes = learn.evaluate(params, rivals, family, tasks=tasks)
        rows = found["families"][family.name] = learn.summarise(outcomes)
        if not as_json:
            print_table(_contest_table(family, rows))
        if others:
            more = found["also"][family.name] = _further(others, outcomes, family, tasks)
            if not as_json:
                print_table(_further_table(family, more))
    if card and policy is not None:
        learn.add_to_card(policy, {"name": policy.name, "evaluation": found})
    if as_json:
        print_json(found)


def _further(
    others: dict[str, Params], outcomes: Mapping[str, Outcome], family: Family, tasks: int
) -> dict[str, Any]:
    """Rows of further policies by name, and what all policies save with an interval over them."""
    from tamiyo_jax import learn

    rows: dict[str, Any] = {}
    saved = {name: [_mean_saved(outcomes, name)] for name in BESIDE}
    for name, params in others.items():
        outcome = learn.evaluate_policy(params, family, tasks=tasks)
        rows[name] = learn.summarise_policy(outcome, outcomes)
        for rival in BESIDE:
            saved[rival].append(rows[name]["loss_saved"][rival]["mean"])
    over_all = {rival: learn.interval_over_seeds(means)._asdict() for rival, means in saved.items()}
    return {"policies": rows, "all": over_all}


def _mean_saved(outcomes: Mapping[str, Outcome], rival: str) -> float:
    from tamiyo_jax import learn

    return learn.compare(outcomes[rival].loss, outcomes[learn.LEARNED].loss).mean


def headroom(
    families: Annotated[
        list[str] | None,
        typer.Option(
            "--family",
            metavar="<name>",
            help="A training family, more than once for more; by default all.",
        ),
    ] = None,
    tasks: Annotated[int, typer.Option(min=4, help="Tasks of each family.")] = 12,
    schedules: Annotated[int, typer.Option(min=1, help="Growth schedules to choose from.")] = 32,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the schedules.")] = 0,
    as_json: Json = False,
) -> None:
    """Print what choosing a schedule by family gains on the training families.

    The choice is made on one half of the tasks and measured on the other, in the
    logarithm of the test loss. Example: tamiyo-jax headroom --family spirals
    """
    import numpy as np

    from tamiyo_jax import learn

    chosen = [learn.find_family(name) for name in families or learn.TRAINING]
    drawn = learn.drawn_schedules(np.random.default_rng(seed), schedules)
    rows = learn.headroom(
        chosen,
        [*learn.rate_schedules(), *drawn],
        tasks=tasks,
        on_family=lambda name: problems.print(f"played {name}"),
    )
    if as_json:
        print_json([_plain(row) for row in rows])
        return
    table = Table(title="headroom, in the logarithm of the test loss")
    for name in ("family", "over never acting", "over the best fixed schedule", "its own best"):
        table.add_column(name, justify="left" if name in ("family", "its own best") else "right")
    for row in rows:
        best = ", ".join(f"{name} {value:g}" for name, value in row.best._asdict().items())
        over = f"{row.over_fixed:+.3f} ± {row.error:.3f}"
        table.add_row(row.family, f"{row.over_never:+.3f}", over, best)
    print_table(table)


def _plain(value: Any) -> Any:  # noqa: ANN401
    """Named tuples and settings as JSON's objects."""
    if hasattr(value, "model_dump"):
        return value.model_dump()
    if hasattr(value, "_asdict"):
        return {name: _plain(field) for name, field in value._asdict().items()}
    return value


def _contest_table(family: Family, rows: list[dict[str, Any]]) -> Table:
    table = Table(title=f"{family.name}: means over tasks; differences paired, with 95 % intervals")
    names = ("contender", "accuracy", "loss", "compute", "live", "interventions", "loss saved")
    for name in names:
        table.add_column(name, justify="left" if name == "contender" else "right")
    for row in rows:
        saved = row["loss_saved"]
        table.add_row(
            row["contender"],
            f"{100 * row['accuracy']:.1f} %",
            f"{row['loss']:.3f}",
            f"{row['compute']:.1f}",
            f"{row['live']:.2f}",
            f"{row['interventions']:.1f}",
            "" if saved is None else _interval(saved),
        )
    return table


def _further_table(family: Family, found: dict[str, Any]) -> Table:
    table = Table(title=f"{family.name}: loss that further policies save; all with that of above")
    for name in ("policy", "accuracy", "loss", *(f"over {rival}" for rival in BESIDE)):
        table.add_column(name, justify="left" if name == "policy" else "right")
    for name, row in found["policies"].items():
        saved = [_interval(row["loss_saved"][rival]) for rival in BESIDE]
        table.add_row(name, f"{100 * row['accuracy']:.1f} %", f"{row['loss']:.3f}", *saved)
    table.add_row("all", "", "", *(_interval(found["all"][rival]) for rival in BESIDE))
    return table


def _interval(found: dict[str, float]) -> str:
    return f"{found['mean']:+.3f} [{found['low']:+.3f}, {found['high']:+.3f}]"
