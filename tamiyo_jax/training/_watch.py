"""The steps of a run as a `Plug` sees them: measurements, what is usual, the place in the data."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from enum import Enum
from typing import Any, NamedTuple, cast

import jax

from tamiyo_jax.host import Detector, StepMetrics
from tamiyo_jax.training._accumulator import Accumulated, Reading, accumulate
from tamiyo_jax.training._inputs import count_steps
from tamiyo_jax.training._pace import Pace, end_interval, wait

__all__ = ["CALM", "SPACING", "Due", "Mark", "Watch"]

SPACING = 10
"""Steps from one state that is kept to the next, at least."""

CALM = 10
"""Steps after a decision on an alarm that led to nothing, until the next alarm is heeded."""

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


class Due(Enum):
    """What a step calls for."""

    NOTHING = 0
    SPARE = 1  # a state that may be kept, without a decision
    DECISION = 2  # the interval has ended
    ALARM = 3  # a decision at once


class Watch:
    """Counts and adds up steps, and knows what goes with each kept state.

    Args:
      every: steps from one decision to the next.

    Attributes:
      steps: so far, also those that were rolled back.
      position: batches read so far, without those that a rollback reads again.
      sound: nothing was unusual from the last decision up to the step before this one.
    """

    def __init__(self, every: int) -> None:
        self._every = every
        self.steps = self._asked = self.position = self._deaf_until = 0
        self.sound = False
        self._accumulated: Accumulated | None = None
        self._before: Detector | None = None
        self._marks: dict[str, Mark] = {}
        self._reading: Reading | None = None
        self._restarts = False
        self._pace, self._resumed = Pace(), time.perf_counter()

    def add(self, metrics: StepMetrics, multiplier: jax.Array) -> Due:
        """Add a step, or several, and say what is due.

        The flags of the step before are read, never those of a step that was just dispatched, so
        the device always has a step to work on.
        """
        before, taken = self.steps, count_steps(metrics)
        self.steps += taken
        self.position += taken
        late = None if self._restarts else self._reading
        self._accumulated, self._reading = accumulate(
            self._accumulated, metrics, multiplier, self._before, restart=self._restarts
        )
        self._restarts = False
        if self._every == 1:
            return Due.DECISION
        alarm, self.sound, _ = (False, False, False) if late is None else late.flags()
        if self.steps // self._every != before // self._every:
            return Due.DECISION
        if alarm and self.steps > self._deaf_until:
            self._deaf_until = self.steps + CALM
            return Due.ALARM
        return Due.SPARE if self.steps // SPACING != before // SPACING else Due.NOTHING

    def take(self) -> tuple[Reading, Mark]:
        """End an interval: its means, which are on their way, and what goes with its last state."""
        self._restarts = True
        return cast(Reading, self._reading), self.mark()  # there has been a step

    def pace(self) -> dict[str, float]:
        """The pace of the interval that ends now, and begin the next."""
        steps, self._asked = self.steps - self._asked, self.steps
        now = time.perf_counter()
        seconds, self._resumed = now - self._resumed, now
        self._pace, metrics = end_interval(self._pace, seconds, steps)
        return metrics

    def leave_out(self, seconds: float) -> None:
        """Count these seconds for nothing: they went into a decision."""
        self._resumed += seconds

    def keep(self, names: frozenset[str], mark: Mark) -> None:
        """These states are kept now; those that are new have this mark."""
        self._marks = {name: self._marks.get(name, mark) for name in names}

    def remember(self, name: str, mark: Mark) -> None:
        """Another state is kept, which has this mark."""
        self._marks[name] = mark

    def mark(self) -> Mark:
        """What goes with the state after the newest step."""
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
        self._restarts, self._deaf_until, self._asked = True, 0, self.steps
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
        return self._restarts or self._reading is None or self._reading.is_finite()
