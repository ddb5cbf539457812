"""The steps of a run as a `Plug` sees them: measurements, what is usual, the place in the data."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np

from tamiyo_jax.host import Detector, LateReader, StepMetrics
from tamiyo_jax.training._accumulator import Accumulated, accumulate, mean_of, restart
from tamiyo_jax.training._inputs import count_steps
from tamiyo_jax.training._pace import Pace, end_interval, wait

__all__ = ["Mark", "Watch"]

LOOK = 10
"""Steps from one look for an alarm to the next."""

ALARMING = 3
"""Updates in a row far above their usual size, which an alarm is about."""

_END = object()


class Mark(NamedTuple):
    """What goes with a state that is kept: what was usual then, and how far it had come.

    Attributes:
      detector: of the steps up to it.
      position: batches read up to it.
      steps: up to it, also those that were rolled back.
    """

    detector: Detector
    position: int
    steps: int


class Watch:
    """Counts and adds up steps, and knows what goes with each kept state.

    Args:
      every: steps from one decision to the next.

    Attributes:
      steps: so far, also those that were rolled back.
      position: batches read so far, without those that a rollback reads again.
    """

    def __init__(self, every: int) -> None:
        self._every = every
        self.steps = self._asked = self.position = 0
        self._accumulated: Accumulated | None = None
        self._before: Detector | None = None
        self._marks: dict[str, Mark] = {}
        self._alarm = LateReader[jax.Array]()
        self._pace, self._resumed = Pace(), time.perf_counter()

    def add(self, metrics: StepMetrics) -> bool:
        """Add a step, or several; whether it is time to decide.

        That is after `every` steps, or as soon as an alarm is seen: every `LOOK` steps the
        signals of `LOOK` steps before are read, without waiting for the device.
        """
        before, taken = self.steps, count_steps(metrics)
        self.steps += taken
        self.position += taken
        self._accumulated = accumulate(self._accumulated, metrics, self._before)
        if self.steps // self._every != before // self._every:
            return True
        if self._every <= LOOK or self.steps // LOOK == before // LOOK:
            return False
        alarmed = self._alarm(_is_alarming(self._accumulated))
        return alarmed is not None and bool(alarmed)

    def interval(self) -> tuple[StepMetrics, dict[str, float]]:
        """The means since the last interval, and its pace; waits for the device."""
        accumulated = cast(Accumulated, self._accumulated)  # there has been a step
        mean = mean_of(accumulated)
        self._accumulated = restart(accumulated)
        self._alarm = LateReader[jax.Array]()
        steps, self._asked = self.steps - self._asked, self.steps
        seconds = time.perf_counter() - self._resumed
        self._pace, metrics = end_interval(self._pace, seconds, steps)
        return mean, metrics

    def resume(self, names: frozenset[str]) -> None:
        """Go on after a decision, with these states kept."""
        if self._accumulated is not None:
            mark = self.mark()
            self._marks = {name: self._marks.get(name, mark) for name in names}
        self._resumed = time.perf_counter()

    def mark(self) -> Mark:
        """What goes with the state after the last interval."""
        accumulated = cast(Accumulated, self._accumulated)
        return Mark(accumulated.detector, self.position, self.steps)

    def go_on(self, marks: Mapping[str, Mark]) -> None:
        """Begin where an earlier process kept its newest state, with the marks of all it kept."""
        self._marks = dict(marks)
        self._before, self.position, self.steps = self._marks[max(self._marks)]
        self._asked = self.steps

    def go_back(self, name: str, *, skips_data: bool) -> int:
        """Return to what was usual when a state was kept; how many batches lie in between."""
        mark = self._marks[name]
        undone = self.position - mark.position
        self.position = self.position if skips_data else mark.position
        if self._accumulated is not None:
            self._accumulated = self._accumulated._replace(detector=mark.detector)
        return undone

    def batches(self, read: Callable[[int], Iterable[Any]]) -> Iterator[Any]:
        """See `Plug.batches`."""
        position, source = self.position, iter(read(self.position))
        while True:
            before = time.perf_counter()
            batch = next(source, _END)
            if batch is _END:
                return
            self._pace = wait(self._pace, time.perf_counter() - before)
            yield batch
            position += 1
            if self.position < position:
                position, source = self.position, iter(read(self.position))

    def is_finite(self) -> bool:
        """Whether the steps since the last interval that were applied are."""
        if self._accumulated is None:
            return True
        total, applied = jax.device_get((self._accumulated.total, self._accumulated.applied))
        return not applied or all(np.isfinite(figure).all() for figure in jax.tree.leaves(total))


@jax.jit
def _is_alarming(accumulated: Accumulated) -> jax.Array:
    """bool[]: something that a decision is needed for at once."""
    high = accumulated.total.statistics.signals.high_updates
    return (high >= ALARMING) | ~jnp.isfinite(accumulated.total.loss)
