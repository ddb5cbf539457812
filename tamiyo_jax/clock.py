"""The time of day, for what must not run backwards while a process lives."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

__all__ = ["SteadyClock", "steady_time_ns"]

# Counts while the machine sleeps too, where there is such a clock.
_ELAPSED: Final = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def _elapsed_ns() -> int:
    return time.clock_gettime_ns(_ELAPSED)


class SteadyClock:
    """Nanoseconds since the epoch that never decrease.

    It follows the system's time forward. When that is set back, it goes on at its own pace, so
    that what was issued before and after keeps its order and its age: signed commands stay fresh
    for their verifier. Beside another process's clock it is then ahead by as much, until this
    process ends.

    Args:
      wall: the system's time of day, nanoseconds since the epoch.
      elapsed: nanoseconds since some fixed moment, never set.
    """

    def __init__(self, wall: Callable[[], int], elapsed: Callable[[], int]) -> None:
        self._wall, self._elapsed = wall, elapsed
        self._offset = wall() - elapsed()

    def __call__(self) -> int:
        """The time."""
        elapsed = self._elapsed()
        self._offset = max(self._offset, self._wall() - elapsed)
        return elapsed + self._offset


steady_time_ns: Final = SteadyClock(time.time_ns, _elapsed_ns)
"""The clock of this process: give it to a `Verifier`'s ledger and to whatever signs or applies."""
