"""`tamiyo-jax train`: train a policy on journals."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from tamiyo_jax.cli._directory import find_blueprints
from tamiyo_jax.cli._output import console, print_lines, print_table, problems
from tamiyo_jax.config import PolicyConfig, TamiyoConfig

if TYPE_CHECKING:
    from tamiyo_jax.learn import Agreement, Dataset

__all__ = ["train"]

UNSEEN = 6
"""Every so manieth run is kept for the comparison and not learned from."""


def train(
    output: Annotated[Path, typer.Option(help="Directory to write; it must not exist.")],
    from_journals: Annotated[
        Path,
        typer.Option(
            exists=True,
            file_okay=False,
            help="A run directory, or a directory of run directories.",
        ),
    ],
    library: Annotated[
        Path | None,
        typer.Option(
            exists=True,
            dir_okay=False,
            help="The runs' blueprints; by default blueprints.db in or beside the directory.",
        ),
    ] = None,
    temperature: Annotated[
        float | None,
        typer.Option(
            min=1e-6,
            help="Prefer logged decisions that went well: weigh them by exp(advantage / "
            "temperature); without it all are imitated alike.",
        ),
    ] = None,
    updates: Annotated[int, typer.Option(min=1, help="Optimiser steps of the policy.")] = 1500,
    seed: Annotated[int, typer.Option(min=0, help="Seed of everything.")] = 0,
) -> None:
    """Train a policy of the small widths on logged runs, and write it with its card.

    Every sixth run is left out, and the policy's choices there are compared with
    those on record. Example: tamiyo-jax train --from-journals runs --output policy
    """
    from tamiyo_jax import learn

    if output.exists():
        raise typer.BadParameter(f"{output} exists; name another --output, or delete it")
    facts: dict[str, object] = {"seed": seed, "updates": updates}
    fitting = learn.FitSettings(updates=updates)
    with _bar("fitting", updates) as advance:
        seen, unseen = _load(from_journals, library, facts)
        params = learn.clone(
            seen,
            seed,
            fitting,
            config=PolicyConfig.small(),
            temperature=temperature,
            on_update=advance,
        )
    rows = [] if unseen is None else learn.agreement(params, unseen)
    facts["agreement"] = [row._asdict() for row in rows]
    digest = learn.save_policy(output, params, facts)
    if rows:
        print_table(_table(rows))
    print_lines(f"{output / 'params.safetensors'}  sha256 {digest}")


def _load(
    root: Path, library: Path | None, facts: dict[str, object]
) -> tuple[Dataset, Dataset | None]:
    """The logged decisions of the runs to learn from, and of the others."""
    from tamiyo_jax import learn
    from tamiyo_jax.library import SqliteBlueprintLibrary

    single = (root / "journal").is_dir()
    directories = [root] if single else sorted(home.parent for home in root.glob("*/journal"))
    if not directories:
        raise typer.BadParameter(f"{root} holds neither a journal nor run directories")
    blueprints = library or find_blueprints(directories[0])
    data = learn.dataset(directories, SqliteBlueprintLibrary(blueprints), TamiyoConfig())
    runs = int(data.run.max()) + 1
    kept = [run for run in range(runs) if run % UNSEEN == UNSEEN - 1]
    seen = learn.select_runs(data, set(range(runs)) - set(kept))
    facts |= {"learner": "journals", "runs": runs - len(kept), "decisions": len(seen.run)}
    if len(data.policies) > 1:
        problems.print(
            f"[yellow]The journals hold decisions of {len(data.policies)} policies: "
            f"{', '.join(data.policies)}. The trained policy is a mixture of them.",
        )
    return seen, learn.select_runs(data, kept) if kept else None


class _bar:  # noqa: N801 - a context manager that reads as a function
    def __init__(self, name: str, total: int) -> None:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed}/{task.total} loss {task.fields[loss]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        self._progress = Progress(*columns, console=console)
        self._bar = self._progress.add_task(name, total=total, loss="")

    def __enter__(self) -> Callable[[int, float], None]:
        self._progress.start()

        def advance(done: int, loss: float) -> None:
            self._progress.update(self._bar, completed=done, loss=f"{loss:.4g}")

        return advance

    def __exit__(self, *_: object) -> None:
        self._progress.stop()


def _table(rows: list[Agreement]) -> Table:
    table = Table(title="choices in runs that were not learned from")
    for name in ("action", "on record", "recall", "precision", "same target"):
        table.add_column(name, justify="left" if name == "action" else "right")
    for row in rows:
        numbers = (row.recall, row.precision, row.targets)
        table.add_row(row.action, str(row.recorded), *(f"{number:.2f}" for number in numbers))
    return table
