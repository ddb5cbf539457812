"""`tamiyo-jax demo`: train a network on real digits with Tamiyo."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Literal

import typer

from tamiyo_jax.cli._output import Json, console, print_json, problems
from tamiyo_jax.report import write_report

__all__ = ["DEMO_STEPS", "demo"]

DEMO_STEPS = 3300


def demo(
    directory: Annotated[
        Path | None,
        typer.Option(help="Run directory; by default a new one under runs/, named by the time."),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(
            min=1,
            help=f"Optimiser steps of each network; {DEMO_STEPS} by default, and with --resume "
            "those of the run.",
        ),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Seed of data split and parameters; 0 by default.")
    ] = None,
    policy: Annotated[
        Literal["heuristic", "graph"] | None,
        typer.Option(help="The policy that decides; the heuristic by default."),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue from the directory's last checkpoint.")
    ] = False,
    deterministic: Annotated[
        bool | None,
        typer.Option("--deterministic", help="Leave measured times out of the packets."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Train a small network on real digits, and let Tamiyo grow it.

    Compares it with the same network without growth, and with every slot grown from the
    start. A resumed run keeps its seed, policy, determinism and steps.
    Example: tamiyo-jax demo --seed 1
    """
    from tamiyo_jax.demo import (
        DemoSettings,
        EpochProgress,
        draw,
        load_planned_steps,
        load_settings,
        run_demo,
        summary_table,
    )

    if resume and directory is None:
        raise typer.BadParameter("--resume needs the --directory of the run to continue")
    root = directory or Path("runs") / time.strftime("%Y%m%d-%H%M%S")
    run_settings = load_settings(
        root, resume=resume, seed=seed, policy=policy, deterministic=deterministic
    )
    if steps is None:
        steps = (load_planned_steps(root) if resume else None) or DEMO_STEPS
    settings = DemoSettings(
        root, steps, run_settings.seed, run_settings.policy, resume, run_settings.deterministic
    )
    if run_settings.policy == "graph":
        problems.print(
            "[yellow]The graph policy was trained on small networks of other tasks; the heuristic, "
            "which is the default, knows this one better."
        )
    try:
        with EpochProgress(console if not as_json else problems) as progress:
            summary = run_demo(settings, progress.show, progress.announce)
    except KeyboardInterrupt:
        problems.print(
            f"interrupted: continue with tamiyo-jax demo --directory {root} --resume",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
        raise typer.Exit(1) from None
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
        "report": write_report([root], root / "report.html"),
    }
    for name, path in written.items():
        console.print(f"{name:<12}{path}", highlight=False)
