"""The directory of a new run, claimed so that no other run can have it."""

from __future__ import annotations

import itertools
import time
from pathlib import Path

from tamiyo_jax.errors import PersistenceError

__all__ = ["new_run_directory"]


def new_run_directory(directory: Path) -> Path:
    """Make a new directory in `directory`, named by the time of day.

    Where other runs began in the same second, its name ends in -2, -3, …. Making a directory
    claims the name against every other thread, process and machine.

    Raises:
      PersistenceError: it cannot be made.
    """
    name = time.strftime("%Y%m%d-%H%M%S")
    names = itertools.chain([name], (f"{name}-{number}" for number in itertools.count(2)))
    try:
        directory.mkdir(parents=True, exist_ok=True)
        return next(path for path in (directory / each for each in names) if _claim(path))
    except OSError as error:
        raise PersistenceError(
            f"directory {directory} cannot hold runs: {error.strerror}; name one that can be "
            "made and written",
            path=str(directory),
            errno=error.errno,
        ) from error


def _claim(path: Path) -> bool:
    try:
        path.mkdir()
    except FileExistsError:
        return False
    return True
