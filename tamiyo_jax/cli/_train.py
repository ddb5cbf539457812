"""`tamiyo-jax train`: train a policy in the environment, or on journals."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from tamiyo_jax.cli._directory import find_blueprints
from tamiyo_jax.cli._output import console, print_lines, print_table, problems
from tamiyo_jax.config import PolicyConfig, TamiyoConfig
from tamiyo_jax.errors import ConfigurationError

if TYPE_CHECKING:
    from tamiyo_jax.learn import Agreement, Dataset, LearnSettings

__all__ = ["train"]

UNSEEN = 6
"""Every so manieth run is kept for the comparison and not learned from."""
IMITATION_UPDATES = 1500
LIMITS = (
    "Trained on perceptrons and one-dimensional convolutions of 200 to 1,100 parameters, with two "
    "slots and four candidates, in runs of 24 epochs; nothing larger was in its lessons.",
    "One decision per epoch. The risk gate was not between it and the runs that it learned from.",
)
"""Of a policy that was trained in the environment; part of its card."""


def train(
    output: Annotated[Path, typer.Option(help="Directory to write; it must not exist.")],
    from_journals: Annotated[
        Path | None,
        typer.Option(
            exists=True,
            file_okay=False,
            help="Imitate logged runs instead: a run directory, or a directory of run directories.",
        ),
    ] = None,
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
            help="Of journals: prefer logged decisions that went well, by exp(advantage / "
            "temperature); without it all are imitated alike.",
        ),
    ] = None,
    plans: Annotated[
        int | None,
        typer.Option(
            min=5,
            help="Choose the teacher's plans anew, among so many; by default those are taken that "
            "`--plans 48` chose before.",
        ),
    ] = None,
    lessons: Annotated[
        int | None, typer.Option(min=1, help="Rounds of a teacher's lessons.")
    ] = None,
    runs: Annotated[int | None, typer.Option(min=1, help="Runs in each round of lessons.")] = None,
    branching: Annotated[int | None, typer.Option(min=0, help="Rounds of branching.")] = None,
    ppo: Annotated[
        int | None, typer.Option(min=0, help="Rounds of proximal policy optimisation.")
    ] = None,
    chunks: Annotated[
        int | None, typer.Option(min=1, help="Chunks of states to branch from, in each round.")
    ] = None,
    states: Annotated[int | None, typer.Option(min=1, help="States in a chunk.")] = None,
    updates: Annotated[
        int | None, typer.Option(min=1, help="Optimiser steps of the policy, in each round.")
    ] = None,
    work: Annotated[
        Path | None,
        typer.Option(
            file_okay=False,
            help="Directory of branches and checkpoints; a run that was ended goes on from what "
            "is there. By default OUTPUT.work.",
        ),
    ] = None,
    tensorboard: Annotated[
        Path | None, typer.Option(file_okay=False, help="Directory for curves; needs tensorboardX.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of everything.")] = 0,
) -> None:
    """Train a policy of the small widths, and write it with its card.

    By default it learns from a teacher on the training families of tasks; --branching and --ppo
    ask for rounds of these after it. With --from-journals it imitates logged runs; every sixth
    is left out, and the policy's choices there are compared with those on record.
    Example: tamiyo-jax train --output policy
    """
    if output.exists():
        raise typer.BadParameter(f"{output} exists; name another --output, or delete it")
    if from_journals is not None:
        fitted = updates or IMITATION_UPDATES
        _imitate(output, from_journals, library, temperature, fitted, seed)
        return
    given = {"plans": plans, "lessons": lessons, "runs": runs, "branching": branching, "ppo": ppo}
    given |= {"chunks": chunks, "states": states, "updates": updates}
    known = {name: number for name, number in given.items() if number is not None}
    _branch(output, known, work or output.with_name(f"{output.name}.work"), tensorboard, seed)


def _branch(
    output: Path, given: dict[str, int], work: Path, tensorboard: Path | None, seed: int
) -> None:
    from dataclasses import asdict

    from tamiyo_jax import learn

    settings = learn.LearnSettings(**given)  # pyright: ignore[reportArgumentType]
    began = time.monotonic()
    with _curves(tensorboard, settings.updates) as draw, _Steps() as advance:
        params = learn.learn(settings, seed, work, on_progress=advance, on_update=draw)
    facts = {
        "learner": _name_learner(settings),
        "seed": seed,
        **asdict(settings),
        "seconds": round(time.monotonic() - began),
        "families": list(learn.TRAINING),
        "limits": LIMITS,
    }
    digest = learn.save_policy(output, params, facts)
    print_lines(f"{output / 'params.safetensors'}  sha256 {digest}")


def _name_learner(settings: LearnSettings) -> str:
    rounds = {"branching": settings.branching, "policy optimisation": settings.ppo}
    return ", ".join(["lessons", *(name for name, count in rounds.items() if count)])


def _imitate(
    output: Path,
    from_journals: Path,
    library: Path | None,
    temperature: float | None,
    updates: int,
    seed: int,
) -> None:
    from tamiyo_jax import learn

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


class _Steps:
    """A bar for each part of the work, on stderr; lines where that is not a terminal."""

    def __init__(self) -> None:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed}/{task.total}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        self._progress = Progress(*columns, console=problems)
        self._bars: dict[str, Any] = {}

    def __enter__(self) -> Callable[[str, int, int], None]:
        if not problems.is_terminal:
            return lambda name, done, total: problems.print(f"{name}: {done} of {total}")
        self._progress.start()

        def advance(name: str, done: int, total: int) -> None:
            if name not in self._bars:
                self._bars[name] = self._progress.add_task(name, total=total)
            self._progress.update(self._bars[name], completed=done)

        return advance

    def __exit__(self, *_: object) -> None:
        self._progress.stop()


class _curves:  # noqa: N801 - a context manager that reads as a function
    """The loss of the fits as a curve of TensorBoard, or nowhere."""

    def __init__(self, directory: Path | None, updates: int) -> None:
        self._writer: Any = None
        self._updates = updates
        if directory is not None:
            try:
                from tensorboardX import SummaryWriter
            except ImportError as error:
                raise ConfigurationError(
                    "curves need tensorboardX; install tamiyo_jax[telemetry]", extra="telemetry"
                ) from error
            self._writer = SummaryWriter(str(directory))

    def __enter__(self) -> Callable[[int, int, float], None]:
        def draw(number: int, done: int, loss: float) -> None:
            if self._writer is not None:
                self._writer.add_scalar("learn/loss", loss, number * self._updates + done)

        return draw

    def __exit__(self, *_: object) -> None:
        if self._writer is not None:
            self._writer.close()


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
