"""How long steps and the waits for their batches take, beside what is usual for the run.

No clock is read here: times are given, in seconds.
"""

from __future__ import annotations

from statistics import median
from typing import NamedTuple

__all__ = ["Pace", "end_interval", "wait"]

WINDOW = 64  # intervals that the median is of
FEWEST = 3  # intervals, before one can be unusual
LEAST = 0.01  # seconds, the shortest step that a wait is compared with: a scheduler's are shorter


class Pace(NamedTuple):
    """What is remembered between decisions.

    Attributes:
      step_seconds: the mean time of a step in each of the last intervals, without waits.
      longest_wait: for a batch, in this interval.
      waited: for all batches of this interval.
    """

    step_seconds: tuple[float, ...] = ()
    longest_wait: float = 0.0
    waited: float = 0.0


def wait(pace: Pace, seconds: float) -> Pace:
    """After waiting for a batch."""
    return pace._replace(longest_wait=max(pace.longest_wait, seconds), waited=pace.waited + seconds)


def end_interval(pace: Pace, seconds: float, steps: int) -> tuple[Pace, dict[str, float]]:
    """After an interval of so many steps, which took so long in all.

    Returns:
      The pace for the next interval; the metrics ``latency_ratio``, a step's time over the
      median of the intervals before, and ``loader_ratio``, the longest wait for a batch over the
      same, but over 10 ms at least; none in the first intervals, of which one compiles.
    """
    own = max(0.0, seconds - pace.waited) / steps
    after = Pace((*pace.step_seconds, own)[-WINDOW:])
    usual = median(pace.step_seconds) if len(pace.step_seconds) >= FEWEST else 0.0
    if usual <= 0:
        return after, {}
    return after, {
        "latency_ratio": own / usual,
        "loader_ratio": pace.longest_wait / max(usual, LEAST),
    }
