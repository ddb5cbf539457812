"""`tamiyo-jax replay`: replay a journal's decisions, or ask another controller."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.table import Table

from tamiyo_jax.cli._config import ConfigFile
from tamiyo_jax.cli._directory import find_blueprints, find_journal_home
from tamiyo_jax.cli._files import MIB, check_file
from tamiyo_jax.cli._output import (
    Json,
    cell,
    console,
    print_json,
    print_lines,
    print_table,
    problems,
)
from tamiyo_jax.config import PolicyConfig, TamiyoConfig
from tamiyo_jax.contracts import (
    CircuitBreakerAdjustment,
    OptimizerAdjustment,
    Rollback,
    SeedAdjustment,
)
from tamiyo_jax.controller import Mode
from tamiyo_jax.inference import choose_policy
from tamiyo_jax.library import SqliteBlueprintLibrary
from tamiyo_jax.policy import load_params
from tamiyo_jax.replay import Comparison, Reply, read_history, what_if

__all__ = ["replay"]

_COLUMNS = ("epoch", "step", "on record", "because", "instead", "because")


def replay(
    directory: Annotated[
        Path,
        typer.Argument(
            metavar="DIR",
            exists=True,
            file_okay=False,
            help="The directory of a tamiyo-jax demo; with --what-if any run directory. Its "
            "journal is in it, or in its directory tamiyo.",
        ),
    ],
    keep: Annotated[
        Path | None,
        typer.Option("--directory", metavar="NEW", help="Directory for the network grown again."),
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
            exists=True,
            dir_okay=False,
            callback=check_file(8 * 1024 * MIB),
            help="Its parameters, as import-torch writes them.",
        ),
    ] = None,
    preset: Annotated[
        Literal["reference", "small"] | None,
        typer.Option(
            "--policy-preset", help="Widths of its network: reference 256/128, small 32/16."
        ),
    ] = None,
    mode: Annotated[
        Literal["act", "shadow", "guard"] | None,
        typer.Option(help="Its mode; by default act with --policy, else the recorded mode."),
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
    """Train the demo's network again with the decisions in its journal, and compare.

    Exit status 0 only if every packet and the accuracy are identical.
    With --what-if: list the steps at which another policy, mode or configuration decides
    differently on the same packets. DIR is only read. Packets without seeds are evaluated with
    packet.seedless on. Exit status 1 if every answer is an error.
    Example: tamiyo-jax replay runs/first --what-if --mode guard
    """
    others = {"--policy": policy, "--params": params, "--mode": mode, "--policy-preset": preset}
    others |= {"--file": config, "--library": library}
    if instead and keep is not None:
        raise typer.BadParameter("--what-if trains nothing, so it takes no --directory")
    if not instead:
        if given := [name for name, value in others.items() if value is not None]:
            raise typer.BadParameter(f"{', '.join(given)}: only with --what-if")
        _replay_demo(directory, keep, as_json)
        return
    run = find_journal_home(directory)
    blueprints = library or find_blueprints(run)
    settings = _load_settings(config, preset)
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
    _report(tuple(what_if(settings, history, opened, choice, mode=chosen_mode)), as_json)


def _load_settings(file: Path | None, preset: str | None) -> TamiyoConfig:
    if preset is None:
        return TamiyoConfig.load(file)
    widths = PolicyConfig.small() if preset == "small" else PolicyConfig.reference()
    return TamiyoConfig.load(
        file,
        policy={
            "sage_width": widths.sage_width,
            "gat_width": widths.gat_width,
            "heads": widths.heads,
        },
    )


def _replay_demo(directory: Path, keep: Path | None, as_json: bool) -> None:
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


def _report(compared: Sequence[Comparison], as_json: bool) -> None:
    _show(compared, as_json)
    if compared and all(comparison.instead.failed for comparison in compared):
        first = compared[0].instead
        problems.print(
            f"[red]every answer is an error[/red], the first {first.action}: {cell(first.reason)}",
            highlight=False,
            soft_wrap=True,
        )
        raise typer.Exit(1)


def _show(compared: Sequence[Comparison], as_json: bool) -> None:
    differing = [comparison for comparison in compared if not comparison.agrees]
    recorded = Counter(comparison.recorded.action for comparison in compared)
    instead = Counter(comparison.instead.action for comparison in compared)
    actions = sorted(recorded | instead)
    revised = sum(comparison.revised for comparison in compared)
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
                        "epoch": comparison.packet.current_epoch,
                        "step": comparison.packet.global_step,
                        "packet_id": comparison.packet.packet_id,
                        "recorded": comparison.recorded,
                        "instead": comparison.instead,
                    }
                    for comparison in differing
                ],
            }
        )
        return
    if differing:
        print_table(_differences(differing))
    summary = Table("action", "on record", "instead")
    for name in actions:
        summary.add_row(cell(name), str(recorded[name]), str(instead[name]))
    print_table(summary)
    print_lines(f"{len(differing)} of {len(compared)} decisions differ")
    if revised:
        problems.print(
            f"[yellow]{revised} were upon another revision of the blueprint than the library's"
        )


def _differences(differing: Sequence[Comparison]) -> Table:
    table = Table(*_COLUMNS)
    for comparison in differing:
        place = (str(comparison.packet.current_epoch), str(comparison.packet.global_step))
        replies = (
            _describe_reply(comparison.recorded),
            comparison.recorded.reason,
            _describe_reply(comparison.instead),
            comparison.instead.reason,
        )
        table.add_row(*place, *map(cell, replies))
    return table


def _describe_reply(reply: Reply) -> str:
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
