"""The `tamiyo-jax` command.

Exit status: 0 for success, 1 if a check or the command fails, 2 for misuse.
"""

from __future__ import annotations

from importlib.metadata import version
from typing import Annotated

import typer

from tamiyo_jax.cli import _blueprint, _config, _journal
from tamiyo_jax.cli._conformance import conformance
from tamiyo_jax.cli._demo import demo
from tamiyo_jax.cli._evaluate import evaluate, headroom
from tamiyo_jax.cli._failures import run_app
from tamiyo_jax.cli._import_torch import import_torch
from tamiyo_jax.cli._output import print_lines
from tamiyo_jax.cli._replay import replay
from tamiyo_jax.cli._report import report, runs, status, watch
from tamiyo_jax.cli._serve import print_run_key, serve
from tamiyo_jax.cli._train import train

__all__ = ["app", "main"]

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    help="Tamiyo: a controller for neural-network training runs.",
    pretty_exceptions_enable=False,
)
app.command()(demo)
app.command()(report)
app.command()(status)
app.command()(watch)
app.command()(runs)
app.command()(replay)
app.command()(train)
app.command()(evaluate)
app.command()(headroom)
app.command()(serve)
app.command("run-key")(print_run_key)
app.command()(conformance)
app.command("import-torch")(import_torch)
app.add_typer(_journal.app, name="journal")
app.add_typer(_blueprint.app, name="blueprint")
app.add_typer(_config.app, name="config")


def _print_version(asked: bool) -> None:
    if asked:
        print_lines(f"tamiyo-jax {version('tamiyo_jax')}")
        raise typer.Exit


@app.callback()
def _options(
    show_version: Annotated[
        bool,
        typer.Option(
            "--version",
            metavar="",
            is_eager=True,
            callback=_print_version,
            help="Print the version.",
        ),
    ] = False,
) -> None:
    """Tamiyo: a controller for neural-network training runs."""


def main() -> None:
    """Entry point: every failure is a single line on stderr, and exit status 1 or 2."""
    raise SystemExit(run_app(app))
