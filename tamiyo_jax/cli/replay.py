"""`tamiyo-jax replay`: a journal's decisions once more, or what others would have decided."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.markup import escape
from rich.table import Table

from tamiyo_jax.cli.config import ConfigFile
from tamiyo_jax.cli.directory import blueprints_of, journal_home
from tamiyo_jax.cli.output import Json, console, print_json, print_lines, problems
from tamiyo_jax.config import TamiyoConfig
from tamiyo_jax.contracts import (
    CircuitBreakerAdjustment,
    OptimizerAdjustment,
    Rollback,
    SeedAdjustment,
)
from tamiyo_jax.controller import Mode
from tamiyo_jax.policy import load_params
from tamiyo_jax.runtime import SqliteBlueprintLibrary
from tamiyo_jax.runtime.history import read_history
from tamiyo_jax.runtime.policies import choose_policy
from tamiyo_jax.runtime.what_if import Comparison, Reply, what_if

__all__ = ["replay"]

_COLUMNS = ("epoch", "step", "on record", "because", "instead", "because")


def replay(
    directory: Annotated[
        Path,
        typer.Argument(
            metavar="DIR",
            exists=True,
            file_okay=False,
            help="What tamiyo-jax demo left behind; for --what-if any run directory too. Its "
            "journal is in it, or in its directory tamiyo.",
        ),
    ],
    keep: Annotated[
        Path | None,
        typer.Option("--directory", metavar="NEW", help="Where the network grown anew goes."),
    ] = None,
    instead: Annotated[
        bool,
        typer.Option("--what-if", help="Train nothing: ask another controller about the packets."),
    ] = False,
    policy: Annotated[
        str | None,
        typer.Option(help="Of the other controller: heuristic, graph or package.module:factory."),
    ] = None,
    params: Annotated[
        Path | None,
        typer.Option(
            exists=True, dir_okay=False, help="Its parameters, as import-torch writes them."
        ),
    ] = None,
    mode: Annotated[
        Literal["act", "shadow", "guard"] | None,
        typer.Option(help="Its mode; unless given act with --policy, else what is on record."),
    ] = None,
    config: ConfigFile = None,
    library: Annotated[
        Path | None,
        typer.Option(
            exists=True,
            dir_okay=False,
            help="The blueprints of the run, a SQLite file; by default blueprints.db beside its "
            "journal, or one directory above.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Train the demo's network again by the decisions in its journal, and compare.

    Exit status 0 only if every packet and the accuracy are identical.
    With --what-if: the steps at which another policy, mode or configuration would have decided
    otherwise upon the same packets. DIR is only read. A packet without seeds is asked about with
    packet.seedless on: without it, it would not have been decided upon. Exit status 1 if every
    answer is an error.
    Example: tamiyo-jax replay runs/first --what-if --mode guard
    """
    others = {"--policy": policy, "--params": params, "--mode": mode}
    others |= {"--file": config, "--library": library}
    if instead and keep is not None:
        raise typer.BadParameter("--what-if trains nothing, so it has no --directory to fill")
    if not instead:
        if given := [name for name, value in others.items() if value is not None]:
            raise typer.BadParameter(f"{', '.join(given)}: only with --what-if")
        _again(directory, keep, as_json)
        return
    run = journal_home(directory)
    blueprints = library or blueprints_of(run)
    settings = TamiyoConfig.load(config)
    asked = mode or (policy and "act")
    chosen_mode = Mode(asked) if asked else None
    choice = choose_policy(
        settings,
        policy or "heuristic",
        None if params is None else load_params(params, settings.policy),
        chosen_mode or Mode.ACT,
    )
    opened = SqliteBlueprintLibrary(blueprints, settings.graph)
    history = read_history(run)
    _compare(tuple(what_if(settings, history, opened, choice, mode=chosen_mode)), as_json)


def _again(directory: Path, keep: Path | None, as_json: bool) -> None:
    from tamiyo_jax.demo import RESULT, EpochProgress, replay_demo

    homes = (directory, directory.resolve().parent)
    root = next((home for home in homes if (home / RESULT).is_file()), directory)
    with EpochProgress(console if not as_json else problems) as progress:
        done = replay_demo(
            root, keep, lambda row, epochs: progress.show("grown by the journal", row, epochs)
        )
    if as_json:
        print_json(
            {
                "identical": done.identical,
                "decisions": done.decisions,
                "unused": done.unused,
                "differing": done.differing,
                "test_accuracy": {"recorded": done.recorded_accuracy, "now": done.test_accuracy},
            }
        )
    else:
        for epoch, names in done.differing.items():
            print_lines(f"epoch {epoch}: not as on record: {', '.join(names)}")
        print_lines(
            f"{done.decisions} decisions applied, {len(done.differing)} of their packets not as "
            f"on record, {done.unused} decisions unused",
            f"test accuracy {done.test_accuracy:.4f}, on record {done.recorded_accuracy:.4f}",
            "identical" if done.identical else "NOT identical",
        )
    if not done.identical:
        raise typer.Exit(1)


def _compare(compared: Sequence[Comparison], as_json: bool) -> None:
    _show(compared, as_json)
    if compared and all(one.instead.failed for one in compared):
        first = compared[0].instead
        problems.print(
            f"[red]every answer is an error[/red], the first {first.action}: "
            f"{escape(first.reason)}",
            highlight=False,
            soft_wrap=True,
        )
        raise typer.Exit(1)


def _show(compared: Sequence[Comparison], as_json: bool) -> None:
    differing = [one for one in compared if not one.agrees]
    recorded = Counter(one.recorded.action for one in compared)
    instead = Counter(one.instead.action for one in compared)
    actions = sorted(recorded | instead)
    revised = sum(one.revised for one in compared)
    if as_json:
        print_json(
            {
                "steps": len(compared),
                "differ": len(differing),
                "revised": revised,
                "actions": {
                    name: {"recorded": recorded[name], "instead": instead[name]} for name in actions
                },
                "differences": [
                    {
                        "epoch": one.packet.current_epoch,
                        "step": one.packet.global_step,
                        "packet_id": one.packet.packet_id,
                        "recorded": one.recorded,
                        "instead": one.instead,
                    }
                    for one in differing
                ],
            }
        )
        return
    if differing:
        console.print(_differences(differing))
    summary = Table("action", "on record", "instead")
    for name in actions:
        summary.add_row(escape(name), str(recorded[name]), str(instead[name]))
    console.print(summary)
    print_lines(f"{len(differing)} of {len(compared)} decisions differ")
    if revised:
        problems.print(
            f"[yellow]{revised} were upon another revision of the blueprint than the library's"
        )


def _differences(differing: Sequence[Comparison]) -> Table:
    table = Table(*_COLUMNS)
    for one in differing:
        place = (str(one.packet.current_epoch), str(one.packet.global_step))
        replies = (_said(one.recorded), one.recorded.reason, _said(one.instead), one.instead.reason)
        table.add_row(*place, *map(escape, replies))
    return table


def _said(reply: Reply) -> str:
    match reply.payload:
        case SeedAdjustment(blueprint_id=blueprint):
            grown = "" if blueprint is None else f" ← {blueprint}"
            return f"{reply.action} {reply.seed_id}{grown}"
        case OptimizerAdjustment(hyperparameters=changed):
            numbers = ", ".join(f"{name} {value:+.4g}" for name, value in changed.items())
            return f"{reply.action} {numbers}"
        case CircuitBreakerAdjustment(desired_state=desired):
            return f"{reply.action} {desired.name}"
        case Rollback(checkpoint):
            return f"{reply.action} to {checkpoint}"
        case None:
            return reply.action
