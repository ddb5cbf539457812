"""Reading a run directory that somebody may be writing, again and again.

This is the one file of the room that knows how a journal is read.
"""

from __future__ import annotations

import os
import shutil
import time
from bisect import bisect_right
from contextlib import suppress
from dataclasses import replace
from operator import attrgetter
from pathlib import Path

import numpy as np

from tamiyo_jax.errors import PersistenceError
from tamiyo_jax.report._holder import lock_of
from tamiyo_jax.report._run import Run, RunBuilder
from tamiyo_jax.storage import Recovered, read_entries
from tamiyo_jax.storage.files import PosixFileSystem
from tamiyo_jax.storage.recovery import merge
from tamiyo_jax.storage.scanning import Segment
from tamiyo_jax.storage.segments import read_segments, reporting, segment_names

__all__ = ["RunReader", "frame", "journal_home", "read_run"]


def journal_home(directory: Path) -> Path | None:
    """The directory that holds a run's journal: the one named, or ``tamiyo`` in it."""
    homes = (directory, directory / "tamiyo")
    return next((home for home in homes if (home / "journal").is_dir()), None)


def read_run(directory: str | os.PathLike[str]) -> Run:
    """A run as its journal tells it; nothing is changed, and its owner may be using it.

    Raises:
      PersistenceError: there is no journal, or a newer version wrote it.
    """
    return RunReader(Path(directory)).read()


def frame(directory: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """The steps of a run as a table: one array [steps] per column, oldest step first.

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
      directory: a run directory, or the one above it.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._files = PosixFileSystem()
        self._segments: dict[str, tuple[int, Segment]] = {}
        self._builder = RunBuilder()

    def read(self) -> Run:
        """The run as it is now.

        Raises:
          PersistenceError: there is no journal, or a newer version wrote it.
        """
        home = journal_home(self._directory)
        if home is None:
            raise PersistenceError(
                f"{self._directory} holds no journal; name a run directory",
                path=str(self._directory),
            )
        holder, stopped = lock_of(home)  # before the records: an owner that leaves wrote them all
        found = self._scan(home / "journal")
        at = bisect_right(found.records, self._builder.sequence, key=attrgetter("sequence"))
        for entry in read_entries(replace(found, records=found.records[at:])):
            self._builder.add(entry)
        return self._builder.run(
            self._directory,
            found,
            holder=holder,
            stopped=stopped,
            free_bytes=shutil.disk_usage(home).free,
            read_ns=time.time_ns(),
        )

    def _scan(self, journal: Path) -> Recovered:
        with reporting("reading the journal", journal):
            while True:
                names = segment_names(journal, self._files)
                with suppress(FileNotFoundError):  # retired meanwhile: look again
                    self._segments = {name: self._segment(journal, name) for name in names}
                    return merge([segment for _, segment in self._segments.values()])

    def _segment(self, journal: Path, name: str) -> tuple[int, Segment]:
        size = (journal / name).stat().st_size
        known = self._segments.get(name)
        if known is not None and known[0] == size:
            return known
        return size, read_segments(journal, [name], self._files)[0]
