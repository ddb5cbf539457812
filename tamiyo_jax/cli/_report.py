"""`tamiyo-jax report`, `status`, `watch` and `runs`: what runs did, for people."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer
from rich.live import Live

from tamiyo_jax.cli._directory import find_journal_home
from tamiyo_jax.cli._output import Json, console, print_json, print_lines
from tamiyo_jax.report import (
    RunReader,
    Urgency,
    find_runs,
    follow,
    list_findings,
    read_run,
    render_status,
    summarise_status,
    tabulate_runs,
    write_report,
)

__all__ = ["report", "runs", "status", "watch"]

_LAST = 8


def _with_journal(directories: Path | list[Path]) -> Path | list[Path]:
    for directory in directories if isinstance(directories, list) else [directories]:
        find_journal_home(directory)
    return directories


_RUN = {"exists": True, "file_okay": False, "callback": _with_journal}
RunDirectory = Annotated[
    Path, typer.Argument(metavar="RUN", help="A run directory, of a demo, Plug or Tamiyo.", **_RUN)
]
Last = Annotated[int, typer.Option(min=1, metavar="N", help="List the last N decisions.")]


def report(
    directories: Annotated[
        list[Path],
        typer.Argument(metavar="RUN...", help="Run directories; several are compared.", **_RUN),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="FILE", help="The page; report.html in the first run."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Write a page on a run, or a page that compares several: open it in a browser.

    The page is a single file that needs no network: what needs attention, what happened, and
    figures of losses, decisions, seeds, gradients, signals and latency. The journals are
    only read; a run may go on meanwhile.

    Example: tamiyo-jax report runs/20260314-092653
    """
    file = write_report(directories, output or directories[0] / "report.html")
    if as_json:
        print_json({"report": str(file), "bytes": file.stat().st_size})
    else:
        print_lines(str(file))


def status(directory: RunDirectory, last: Last = _LAST, as_json: Json = False) -> None:
    """Print what goes on in a run, what needs attention, and the last decisions and why.

    Exit status 1 if something is critical.

    Example: tamiyo-jax status runs/20260314-092653
    """
    run = read_run(directory)
    if as_json:
        print_json(summarise_status(run, last))
    else:
        console.print(render_status(run, last))
    if any(finding.urgency is Urgency.CRITICAL for finding in list_findings(run)):
        raise typer.Exit(1)


def watch(
    directory: RunDirectory,
    every: Annotated[
        float, typer.Option(min=0.1, metavar="SECONDS", help="Time between two looks.")
    ] = 2.0,
    last: Last = _LAST,
    as_json: Annotated[
        bool,
        typer.Option(
            "--json", metavar="", help="One JSON object per look and line, for a program."
        ),
    ] = False,
) -> None:
    """Show the same for as long as the run goes on; Ctrl-C ends it.

    A run goes on while a process of this machine holds its directory.

    Example: tamiyo-jax watch runs/20260314-092653
    """
    looks = follow(RunReader(directory), every)
    with suppress(KeyboardInterrupt):
        if as_json:
            for run in looks:
                print_json(summarise_status(run, last), indent=None)
            return
        with Live(console=console, auto_refresh=False, vertical_overflow="crop") as live:
            for run in looks:
                live.update(render_status(run, last), refresh=True)


def runs(
    directory: Annotated[
        Path, typer.Argument(metavar="DIR", exists=True, file_okay=False, help="Where runs are.")
    ],
    as_json: Json = False,
) -> None:
    """Print the runs below a directory: state, decisions, step, loss, actions, trouble.

    Exit status 1 if there is none.

    Example: tamiyo-jax runs runs
    """
    found = [read_run(path) for path in find_runs(directory)]
    table, facts = tabulate_runs(found, directory)
    if as_json:
        print_json(facts)
    elif found:
        console.print(table)
    else:
        print_lines(f"no run below {directory}")
    if not found:
        raise typer.Exit(1)
