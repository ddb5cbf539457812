"""Going on with a run whose process has ended: its directory, its kept states, what was usual.

A run is resumed from its newest kept state, so the steps after that are taken again.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np

from tamiyo_jax.errors import PersistenceError
from tamiyo_jax.host import DiskCheckpoints, MemoryCheckpoints, new_detector
from tamiyo_jax.service import Tamiyo
from tamiyo_jax.training._run_directory import new_run_directory
from tamiyo_jax.training._watch import Mark, Watch

__all__ = ["choose_directory", "count_decisions", "keep_states", "load_states"]

STATES = "states"

State = TypeVar("State")


def choose_directory(
    directory: str | os.PathLike[str], resume: str | os.PathLike[str] | None
) -> Path:
    """The directory of the run: a new one in `directory`, or the one to be resumed.

    Raises:
      PersistenceError: no run in `resume` kept its states on disk, or none can be made.
    """
    if resume is None:
        return new_run_directory(Path(directory))
    path = Path(resume)
    if not (path / STATES).is_dir():
        raise PersistenceError(
            f"{path} has no directory {STATES}; name the directory of a run that was opened with "
            "resumable=True",
            path=str(path),
        )
    return path


def keep_states(directory: Path, beside: Callable[[], Mark], *, on_disk: bool) -> MemoryCheckpoints:
    """Where a run keeps its states: in memory, and on disk if it is to be resumable.

    Args:
      directory: of the run.
      beside: the mark of a state that is being kept.
      on_disk: also write them below `directory`.
    """
    if not on_disk:
        return MemoryCheckpoints()
    return DiskCheckpoints(directory / STATES, lambda: _as_arrays(beside()))


def load_states(kept: DiskCheckpoints, watch: Watch, state: State, *, layers: int) -> State:
    """Load all states of a run that is resumed, and return the newest.

    Args:
      kept: where they are.
      watch: goes on with what was usual at the newest.
      state: one of the same structure.
      layers: that are monitored.

    Raises:
      PersistenceError: there is none, or one is damaged.
      CheckpointMismatchError: they are of another model or optimiser.
    """
    names = kept.stored()
    if not names:
        raise PersistenceError("the run that is resumed kept no state; begin it anew")
    like = _as_arrays(Mark(new_detector(layers), 0, 0))
    marks: dict[str, Mark] = {}
    newest: Any = state
    for name in names:
        newest, found = kept.load(name, state, like)
        marks[name] = Mark(found.detector, int(found.position), int(found.steps))
    watch.go_on(marks)
    return newest


def count_decisions(controller: object) -> int:
    """How often a controller in this process was asked about the run, also without an answer."""
    if not isinstance(controller, Tamiyo):
        return 0
    return controller.state.run_steps + controller.state.failures


def _as_arrays(mark: Mark) -> Any:  # noqa: ANN401 - a mark whose numbers are arrays
    arrays = mark._replace(position=np.int32(mark.position), steps=np.int32(mark.steps))
    return jax.tree.map(np.asarray, arrays)
