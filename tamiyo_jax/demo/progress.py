"""What the terminal shows while the demonstration runs."""

from __future__ import annotations

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from tamiyo_jax.demo.run import Row

__all__ = ["EpochProgress"]


class EpochProgress:
    """A bar over the epochs of each network, and a line for each decision that does something.

    Nothing is printed before the first epoch, so that a refusal stands alone.
    """

    def __init__(self, target: Console) -> None:
        self._progress = Progress(
            TextColumn("{task.description:<22}"),
            BarColumn(),
            TextColumn("epoch {task.completed}"),
            TextColumn("{task.fields[facts]}"),
            TimeElapsedColumn(),
            console=target,
        )
        self._bars: dict[str, TaskID] = {}

    def __enter__(self) -> EpochProgress:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bars:
            self._progress.stop()

    def show(self, name: str, row: Row, epochs: int) -> None:
        """Take one epoch of one network."""
        self._progress.start()
        if name not in self._bars:
            self._bars[name] = self._progress.add_task(name, total=epochs, facts="")
        facts = f"accuracy {row.validation_accuracy:.3f}  {row.live_parameters:,} parameters"
        self._progress.update(self._bars[name], completed=row.epoch, facts=facts)
        if row.action not in {"", "WAIT"}:
            self._progress.console.print(
                f"  epoch {row.epoch:>3}  {row.action:<10} {row.target:<24} {row.reason}",
                highlight=False,
            )
