"""Public logs of real training runs, one array of losses and of gradient norms by run.

Read from the directory that its own README describes; the project does not contain it.
"""

from __future__ import annotations

import csv
import gzip
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

__all__ = ["Event", "Run", "read_runs"]

SOURCES = ("algoperf", "mlperf", "modded_nanogpt", "step_back")

Key = tuple[str, str, str]


@dataclass(frozen=True, slots=True)
class Event:
    """Rows `first` to `last` of a run in which something happened.

    Attributes:
      kind: ``outlier`` and ``restart`` are no faults; every other kind is one.
      first: index of a row.
      last: index of a row, inclusive.
    """

    kind: str
    first: int
    last: int

    @property
    def is_fault(self) -> bool:
        """A detector should raise an alarm."""
        return self.kind not in ("outlier", "restart")


@dataclass(frozen=True, slots=True)
class Run:
    """One training run; R rows that logged a training loss, in order.

    Attributes:
      source: the set of logs.
      workload: what was trained; runs of one workload are never split.
      name: of the run within the source.
      steps: i64[R].
      loss: f64[R]; may hold NaN and inf.
      gradient: f64[R], the gradient norm; NaN throughout where it was not logged.
      events: labelled by hindsight.
      healthy: the run as a whole is labelled good.
    """

    source: str
    workload: str
    name: str
    steps: np.ndarray
    loss: np.ndarray
    gradient: np.ndarray
    events: list[Event] = field(default_factory=list[Event])
    healthy: bool = True


def read_runs(directory: Path) -> list[Run]:
    """All runs of the directory, with their labels.

    Raises:
      FileNotFoundError: a file of the set is missing.
    """
    labels = {_key(row): row["label"] for row in _rows(directory / "labels.csv")}
    for row in _rows(directory / "algoperf_eval_labels.csv"):
        labels["algoperf", row["file"], row["run"]] = row["label"]
    events: dict[Key, list[Event]] = defaultdict(list)
    for row in _rows(directory / "events.csv"):
        event = Event(row["kind"], int(row["first_row"]), int(row["last_row"]))
        events[_key(row)].append(event)
    runs: list[Run] = []
    for source in SOURCES:
        columns: dict[Key, list[tuple[float, float, float]]] = defaultdict(list)
        for row in _rows(directory / f"{source}.csv.gz"):
            if row["loss"]:
                numbers = (row["step"], row["loss"], row["grad_norm"] or "nan")
                step, loss, gradient = map(float, numbers)
                columns[source, row["file"], row["run"]].append((step, loss, gradient))
        for key, rows in columns.items():
            steps, loss, gradient = np.array(rows).T
            runs.append(
                Run(
                    source,
                    _workload(*key),
                    f"{key[1]}/{key[2]}",
                    steps.astype(np.int64),
                    loss,
                    gradient,
                    events[key],
                    labels.get(key, "ok") == "ok",
                )
            )
    return runs


def _rows(path: Path) -> Iterator[dict[str, str]]:
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", newline="") as file:
        yield from csv.DictReader(file)


def _key(row: dict[str, str]) -> Key:
    return row["source"], row["file"], row["run"]


def _workload(source: str, file: str, run: str) -> str:
    """The task: in algoperf a directory's name without its variant and framework."""
    if source == "algoperf":
        return run.split("/")[1].split("_")[0]
    if source == "modded_nanogpt":
        return run.split("/")[1]
    return file
