"""The `tamiyo-jax` command.

Exit status: 0, 1 where the answer is no, 2 for misuse.
"""

from __future__ import annotations

import typer
from rich.markup import escape

from tamiyo_jax.cli import blueprint, config, journal
from tamiyo_jax.cli.conformance import conformance
from tamiyo_jax.cli.demo import DEMO_STEPS, demo
from tamiyo_jax.cli.import_torch import import_torch
from tamiyo_jax.cli.output import problems
from tamiyo_jax.cli.replay import replay
from tamiyo_jax.errors import TamiyoError

__all__ = ["DEMO_STEPS", "app", "main"]

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    help="Tamiyo: a controller for neural-network training runs.",
    pretty_exceptions_enable=False,
)
app.command()(demo)
app.command()(replay)
app.command()(conformance)
app.command("import-torch")(import_torch)
app.add_typer(journal.app, name="journal")
app.add_typer(blueprint.app, name="blueprint")
app.add_typer(config.app, name="config")


def main() -> None:
    """Entry point: a `TamiyoError` is one line on stderr and exit status 1."""
    try:
        app()
    except TamiyoError as error:
        name = type(error).__name__
        problems.print(f"[red]{name}[/red]: {escape(str(error))}", highlight=False, soft_wrap=True)
        raise SystemExit(1) from error
