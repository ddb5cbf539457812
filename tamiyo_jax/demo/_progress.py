"""Progress of the demonstration on the terminal."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from tamiyo_jax.demo._results import Row

__all__ = ["EpochProgress"]


class EpochProgress:
    """A bar over the epochs of each network, and a line for each decision that does something.

    Nothing is printed before `announce`, so that an error stands alone.
    """

    def __init__(self, target: Console) -> None:
        self._progress = Progress(
            TextColumn("{task.description:<22}"),
            BarColumn(),
            TextColumn("epoch {task.completed}/{task.total}"),
            TextColumn("{task.fields[facts]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=target,
        )
        self._bars: dict[str, TaskID] = {}

    def __enter__(self) -> EpochProgress:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bars:
            self._progress.stop()

    def announce(self, directory: Path, epochs: int) -> None:
        """Say what begins, before the first epoch, whose compilation takes some seconds."""
        self._progress.console.print(
            f"training three networks for {epochs} epochs each in {directory}; compiling first",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )

    def show(self, name: str, row: Row, epochs: int) -> None:
        """Show an epoch of a network."""
        self._progress.start()
        if name not in self._bars:
            self._bars[name] = self._progress.add_task(name, total=epochs, facts="")
        facts = f"accuracy {row.validation_accuracy:.3f}  {row.live_parameters:,} parameters"
        self._progress.update(self._bars[name], completed=row.epoch, facts=facts)
        if row.action not in {"", "WAIT"}:
            self._progress.console.print(
                f"  epoch {row.epoch:>3}  {row.action:<10} {row.target:<24} "
                f"{row.explanation or row.reason}",
                highlight=False,
                markup=False,
            )
