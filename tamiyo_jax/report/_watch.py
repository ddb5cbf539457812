"""A run on the screen for as long as it goes on."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from tamiyo_jax.report._reading import RunReader
from tamiyo_jax.report._run import Run

__all__ = ["follow"]


def follow(
    reader: RunReader, every_s: float, *, sleep: Callable[[float], object] = time.sleep
) -> Iterator[Run]:
    """Yield the run as it is now, and again every so often until no process holds it.

    Args:
      reader: of the run.
      every_s: seconds between two readings.
      sleep: how to wait.

    Raises:
      PersistenceError: the journal cannot be read.
    """
    while True:
        run = reader.read()
        yield run
        if run.holder is None:
            return
        sleep(every_s)
