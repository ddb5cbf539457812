"""`tamiyo-jax demo`: the main job on real data."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Literal

import typer

from tamiyo_jax.cli.output import Json, console, print_json, problems

__all__ = ["DEMO_STEPS", "demo"]

DEMO_STEPS = 3300


def demo(
    directory: Annotated[
        Path | None,
        typer.Option(help="Run directory; by default a new one under runs/, named by the time."),
    ] = None,
    steps: Annotated[
        int, typer.Option(min=1, help="Optimiser steps of each network.")
    ] = DEMO_STEPS,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Seed of data split and parameters; 0 unless given.")
    ] = None,
    policy: Annotated[
        Literal["heuristic", "graph"] | None,
        typer.Option(help="Who decides; the heuristic unless given."),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the directory's last checkpoint.")
    ] = False,
    deterministic: Annotated[
        bool | None,
        typer.Option("--deterministic", help="Leave measured times out of the packets."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Train a small network on real digits, and let Tamiyo grow it.

    Compares it with the same network without growth, and with every slot grown from the
    start. A resumed run keeps the seed, the policy and the determinism that it was begun with.
    Example: tamiyo-jax demo --seed 1
    """
    from tamiyo_jax.demo import (
        DemoSettings,
        EpochProgress,
        begun_with,
        draw,
        run_demo,
        summary_table,
    )

    if resume and directory is None:
        raise typer.BadParameter("--resume needs the --directory to go on with")
    root = directory or Path("runs") / time.strftime("%Y%m%d-%H%M%S")
    begun = begun_with(root, resume=resume, seed=seed, policy=policy, deterministic=deterministic)
    settings = DemoSettings(root, steps, begun.seed, begun.policy, resume, begun.deterministic)
    if begun.policy == "graph":
        problems.print("[yellow]The graph policy is untrained here: its decisions mean nothing.")
    with EpochProgress(console if not as_json else problems) as progress:
        summary = run_demo(settings, progress.show)
    picture = root / "demo.png"
    draw(summary, picture)
    if as_json:
        print_json(summary)
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
