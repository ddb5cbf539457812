"""Read a run directory, once or repeatedly, while another process may be writing it."""

from __future__ import annotations

import os
import shutil
import time
from bisect import bisect_right
from dataclasses import replace
from operator import attrgetter
from pathlib import Path

import numpy as np

from tamiyo_jax.errors import PersistenceError
from tamiyo_jax.journal import JournalReader
from tamiyo_jax.report._run import Run, RunBuilder
from tamiyo_jax.storage import read_entries, read_lock

__all__ = ["RunReader", "find_home", "frame", "read_run"]


def find_home(directory: Path) -> Path | None:
    """Find the directory that holds a run's journal: `directory`, or ``tamiyo`` in it."""
    homes = (directory, directory / "tamiyo")
    return next((home for home in homes if (home / "journal").is_dir()), None)


def read_run(directory: str | os.PathLike[str]) -> Run:
    """Read a run from its journal; nothing is changed, and its owner may be using it.

    Raises:
      PersistenceError: there is no journal, or a newer version wrote it.
    """
    return RunReader(Path(directory)).read()


def frame(directory: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Read the steps of a run as a table: an array [steps] for each column, oldest step first.

    ``pandas.DataFrame(frame(directory))`` and ``pyarrow.table(frame(directory))`` take it as it
    is. Steps that a run undid by resuming from a checkpoint are left out.

    Args:
      directory: the run directory; its owner may be using it.

    Returns:
      Text columns ``action`` (empty for a step that failed), ``command``, ``target``,
      ``reason``, ``explanation``, ``mode``, ``outcome``, ``policy``, ``run_id``, ``blueprint``,
      ``restorable``, ``nonfinite`` (the loss that was NaN or infinite) and ``conservative``
      (why the mode was on). Integers ``sequence``, ``time_ns``, ``step``, ``epoch``, ``pauses``,
      ``inference_breaker``, ``metadata_breaker``. Numbers, NaN where they are absent:
      ``training_loss``, ``validation_loss``, ``validation_accuracy``, ``loss_delta``, ``value``,
      ``risk_score``, ``blueprint_risk``, ``inference_ms``, ``decision_ms`` (from packet to
      report), ``metrics/<name>`` for each training metric and ``seeds/<id>/<name>`` for each
      number of a seed. ``seeds/<id>/stage`` is a `SeedStage`, 0 where the seed is absent.

    Raises:
      PersistenceError: there is no journal, or a newer version wrote it.
    """
    return dict(read_run(directory).frame)


class RunReader:
    """Reads a run, and later what was added.

    Segments that did not change are not read again, and no record is decoded twice.

    Args:
      directory: a run directory, or its parent.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._journal: JournalReader | None = None
        self._builder = RunBuilder()

    def read(self) -> Run:
        """The run as it is now.

        Raises:
          PersistenceError: there is no journal, or a newer version wrote it.
        """
        home = find_home(self._directory)
        if home is None:
            raise PersistenceError(
                f"{self._directory} holds no journal; name a run directory",
                path=str(self._directory),
            )
        lock = read_lock(home)  # before the records: an owner that leaves has written them all
        self._journal = self._journal or JournalReader(home)
        found = self._journal.read()
        at = bisect_right(found.records, self._builder.sequence, key=attrgetter("sequence"))
        for entry in read_entries(replace(found, records=found.records[at:])):
            self._builder.add(entry)
        return self._builder.run(
            self._directory,
            found,
            holder=lock.holder,
            stopped=lock.stopped,
            free_bytes=shutil.disk_usage(home).free,
            read_ns=time.time_ns(),
        )
