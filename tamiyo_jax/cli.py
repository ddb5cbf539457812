"""The `tamiyo-jax` command.

Exit status: 0, 1 where the answer is no, 2 for misuse.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console
from rich.table import Column, Table

from tamiyo_jax.errors import TamiyoError

__all__ = ["app", "main"]

DEMO_STEPS = 3300

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    help="Tamiyo: a controller for neural-network training runs.",
    pretty_exceptions_enable=False,
)
console = Console()
problems = Console(stderr=True)

Json = Annotated[bool, typer.Option("--json", help="Print JSON for a program to read.")]


@app.command()
def conformance(
    directory: Annotated[Path, typer.Argument(help="Directory of golden files.")],
    as_json: Json = False,
) -> None:
    """Run every golden file of a directory against this build.

    Example: tamiyo-jax conformance tests/golden
    """
    from tamiyo_jax.conformance.run import run_conformance

    if not directory.is_dir():
        raise typer.BadParameter(f"{directory} is not a directory")
    lines = list(run_conformance(directory))
    if not lines:
        raise typer.BadParameter(f"{directory} holds no golden file")
    if as_json:
        typer.echo(json.dumps([asdict(line) for line in lines], indent=1))
    else:
        table = Table(Column("file", no_wrap=True), "compared", "largest error", "holds")
        for line in lines:
            table.add_row(
                line.file, line.compared, f"{line.error:.2g}", "yes" if line.holds else "NO"
            )
        console.print(table)
    if not all(line.holds for line in lines):
        raise typer.Exit(1)


@app.command("import-torch")
def import_torch(
    file: Annotated[Path, typer.Argument(help="A state dict, .npz or .safetensors.")],
    output: Annotated[Path, typer.Option(help="Where to write our parameters.")] = Path(
        "policy.safetensors"
    ),
) -> None:
    """Turn a PyTorch state dict of the policy network into our parameters.

    Example: tamiyo-jax import-torch policy.npz --output policy.safetensors
    """
    from tamiyo_jax.policy import export_params, import_state_dict, load_state_dict

    config, params = import_state_dict(load_state_dict(file))
    export_params(params, output)
    console.print(f"{output}: widths {config.sage_width}/{config.gat_width}, {config.heads} heads")


@app.command()
def demo(
    directory: Annotated[
        Path | None,
        typer.Option(help="Run directory; by default a new one under runs/, named by the time."),
    ] = None,
    steps: Annotated[
        int, typer.Option(min=1, help="Optimiser steps of each network.")
    ] = DEMO_STEPS,
    seed: Annotated[int, typer.Option(min=0, help="Seed of data split and parameters.")] = 0,
    policy: Annotated[Literal["heuristic", "graph"], typer.Option(help="Who decides.")] = (
        "heuristic"
    ),
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the directory's last checkpoint.")
    ] = False,
    deterministic: Annotated[
        bool,
        typer.Option("--deterministic", help="Leave measured times out of the packets."),
    ] = False,
    as_json: Json = False,
) -> None:
    """Train a small network on real digits, and let Tamiyo grow it.

    Compares it with the same network without growth, and with every slot grown from the
    start. Example: tamiyo-jax demo --seed 1
    """
    from tamiyo_jax.demo import DemoSettings, EpochProgress, draw, run_demo, summary_table

    if resume and directory is None:
        raise typer.BadParameter("--resume needs the --directory to go on with")
    root = directory or Path("runs") / time.strftime("%Y%m%d-%H%M%S")
    settings = DemoSettings(root, steps, seed, policy, resume, deterministic)
    if policy == "graph":
        problems.print("[yellow]The graph policy is untrained here: its decisions mean nothing.")
    with EpochProgress(console if not as_json else problems) as progress:
        summary = run_demo(settings, progress.show)
    picture = root / "demo.png"
    draw(summary, picture)
    if as_json:
        typer.echo(json.dumps(asdict(summary), indent=1))
        return
    console.print(summary_table(summary))
    if summary.resumed_at is not None:
        console.print(f"resumed at epoch {summary.resumed_at}")
    written = {
        "picture": picture,
        "journal": root / "tamiyo" / "journal",
        "telemetry": root / "telemetry.jsonl",
        "checkpoints": root / "checkpoints",
        "blueprints": root / "blueprints.db",
    }
    for name, path in written.items():
        console.print(f"{name:<12}{path}", highlight=False)


def main() -> None:
    """Entry point: a `TamiyoError` is one line on stderr and exit status 1."""
    try:
        app()
    except TamiyoError as error:
        problems.print(f"[red]{type(error).__name__}[/red]: {error}", highlight=False)
        raise SystemExit(1) from error
