"""Asking the controller about the states of a loop: measure, ask, apply, keep, go back.

What `Plug` does at a decision; how it is opened and what it does at every step are in `_plug`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, Self, TypeVar

import jax

from tamiyo_jax.contracts import Blueprint, Rollback, SystemStatePacket
from tamiyo_jax.decision import Decision
from tamiyo_jax.errors import TamiyoError
from tamiyo_jax.host import (
    DiskCheckpoints,
    HardwareMeter,
    Held,
    Host,
    is_on_accelerator,
)
from tamiyo_jax.training._accumulator import Reading
from tamiyo_jax.training._evaluation import Evaluate, Evaluation
from tamiyo_jax.training._inputs import StateReader
from tamiyo_jax.training._log_lines import describe_decision
from tamiyo_jax.training._reporter import (
    Boundary,
    Reporter,
    RunFacts,
    may_keep,
    state_name,
)
from tamiyo_jax.training._resuming import (
    choose_directory,
    count_decisions,
    keep_states,
    load_states,
)
from tamiyo_jax.training._settings import check_options, load_settings
from tamiyo_jax.training._watch import SPACING, Due, Mark, Watch
from tamiyo_jax.training._wiring import open_controller

__all__ = ["Decider"]

OPTIMIZER_ID = "optimizer"

LATE_BELOW = 5
"""Below so many steps from one decision to the next, each is made a step late.

The device works on the next step meanwhile. A longer interval can wait for its own last step.
"""

State = TypeVar("State")


GROUP_STEPS = 10
"""Calm steps whose packets are decided on together, for the first decision warms the caches."""

CALM_PACE = 3.0
"""The largest ratio of a step's time, or of a wait for a batch, to what is usual that is calm."""


class Pending(NamedTuple):
    """A decision that is to be made, with copies of what it is about.

    Attributes:
      reading: the means of the interval, on their way from the device.
      mark: of the state at its end.
      pace: of the interval.
      held: a copy of the state at its end; None where the last is too recent.
      evaluation: of that state.
    """

    reading: Reading
    mark: Mark
    pace: dict[str, float]
    held: Held | None
    evaluation: Evaluation


class Decider:
    """The half of `Plug` that asks the controller; its attributes are described there."""

    def __init__(
        self,
        directory: str | os.PathLike[str],
        blueprint: Blueprint,
        *,
        layers: tuple[str, ...],
        evaluate: Evaluate,
        validates: bool,
        mode: Literal["act", "shadow", "guard"],
        every: int,
        log: Callable[[str], object],
        host: Host | None = None,
        candidates: Sequence[Blueprint] = (),
        server: str | None = None,
        run_id: str | None = None,
        resumable: bool = False,
        resume: str | os.PathLike[str] | None = None,
    ) -> None:
        check_options(mode, every)
        self._evaluate = evaluate
        self._log = log
        self.undone_steps, self._layers = 0, len(layers)
        self.skips_data = self.escalated = self._closed = False
        self._watch = Watch(every)
        self._read = StateReader()
        config = load_settings(blueprint, candidates, seedless=host is None)
        self._last: Decision | None = None
        # A host with seeds is asked about where it stands, for its seeds change with the answer.
        self._is_late = host is None and every < LATE_BELOW
        relative = config.risk.detection == "relative"
        groups = mode == "guard" and relative and not validates
        self._group = GROUP_STEPS // every if groups else 1
        self._pending: list[Pending] = []
        self._spare: tuple[str, Held, Mark] | None = None
        self._held_at: int | None = None
        self._is_on_cpu: bool | None = None
        self.directory = choose_directory(directory, resume)
        self._awaits_state = resume is not None
        self._kept = keep_states(
            self.directory, lambda: self._concluding, on_disk=resumable or self._awaits_state
        )
        facts = RunFacts(
            run_id=run_id or self.directory.name,
            blueprint_id=blueprint.blueprint_id,
            candidates=tuple(candidate.blueprint_id for candidate in candidates),
            optimizer_id=OPTIMIZER_ID,
            source="tamiyo_jax.plug",
            layers=layers,
            parameters=sum(layer.parameter_count or 0 for layer in blueprint.layers),
            host=host,
            interval=every,
            seed_learning_rate=None,
            slot_depths={},
        )
        meter = HardwareMeter(jax.local_devices()[0])
        self._reporter = Reporter(facts, kept=self._kept, meter=meter, clock=time.time_ns)
        self.tamiyo, self._applier = open_controller(
            config,
            self.directory,
            blueprint,
            candidates,
            host=host,
            mode=mode,
            optimizer_id=OPTIMIZER_ID,
            checkpointer=self._kept,
            server=server,
            run_id=run_id,
        )
        self._boundaries = count_decisions(self.tamiyo)

    def restore(self, state: State) -> State:
        """The newest kept state, which is one like `state`; for a loop that ends on a bad step.

        Of a run that is resumed, the state to go on from; `batches` then begins where it was.

        Raises:
          PersistenceError: none is kept, or one on disk is damaged.
          CheckpointMismatchError: a state on disk is of another model or optimiser.
        """
        if self._awaits_state and isinstance(self._kept, DiskCheckpoints):
            state = load_states(self._kept, self._watch, state, layers=self._layers)
            self._awaits_state = False
            return state
        newest = max(self._kept.names(), default="none")
        return self._kept.restore(newest, state)

    def close(self) -> None:
        """Bring the journal to disk and end the workers; closing twice is harmless.

        Steps since the last decision are looked at, too: if they were not finite, `log` says so.
        """
        if not self._closed and not self._watch.is_finite():
            newest = max(self._kept.names(), default="none")
            self._log(
                f"step {self._watch.steps}: the steps since the last decision have a loss or a "
                "gradient that is not finite; restore(state) returns the newest kept state "
                f"({newest})"
            )
        pending, self._pending = self._pending, []
        for each in () if self._closed else pending:
            self._ask_at_the_end(each)
        self._closed = True
        if isinstance(self._kept, DiskCheckpoints):
            self._log_unwritten(self._kept.close())
        self.tamiyo.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _after_step(self, state: State, due: Due, taken: int) -> State:
        """Do what is due after a step or several, first what was left over from those before."""
        if self._pending and (due is Due.ALARM or self._is_group_due()):
            state = self._conclude_all(state)
            if self.undone_steps:
                return state
        spare, self._spare = self._spare, None
        if spare is not None and self._watch.sound:
            name, held, mark = spare
            self._kept.put_spare(name, held)
            self._watch.remember(name, mark)
        match due:
            case Due.DECISION if self._is_late and taken == 1:
                self._pending.append(self._begin(state, waits=False))
            case Due.ALARM | Due.DECISION:
                self._pending.append(self._begin(state, waits=True))
                state = self._conclude_all(state)
            case Due.SPARE if not self._is_late and self._copies_cheaply(state):
                mark = self._watch.mark()
                self._spare = state_name(mark.steps), self._kept.hold(state), mark
            case _:
                pass
        return state

    def _is_group_due(self) -> bool:
        """Whether as many calm steps wait as are decided on together, or the newest is not calm."""
        newest = self._pending[-1]
        is_calm = newest.reading.flags().calm and max(newest.pace.values(), default=0) <= CALM_PACE
        return not is_calm or len(self._pending) >= self._group

    def _begin(self, state: object, *, waits: bool) -> Pending:
        """What a decision about a state needs of it.

        Args:
          state: after the newest step.
          waits: for the device, so that the time of the interval is known.
        """
        reading, mark = self._watch.take()
        if waits:
            reading.flags()
        pace = self._watch.pace()
        started = time.perf_counter()
        held = None
        if waits or self._held_at is None or mark.steps - self._held_at >= SPACING:
            self._held_at, held = mark.steps, self._kept.hold(state)
        evaluation = self._evaluate(state)
        self._watch.leave_out(time.perf_counter() - started)
        return Pending(reading, mark, pace, held, evaluation)

    def _conclude_all(self, state: State) -> State:
        """Make the decisions that wait, up to one that rolls back."""
        started = time.perf_counter()
        pending, self._pending = self._pending, []
        for each in pending:
            state = self._conclude(each, state)
            if self.undone_steps:
                break
        self._watch.leave_out(time.perf_counter() - started)
        return state

    def _conclude(self, pending: Pending, state: State) -> State:
        """Ask the controller about a state, and return what its command makes of the newest."""
        boundary = self._measure(pending)
        packet = self._reporter.packet(state, boundary, is_held=pending.held is not None)
        try:
            decision = self._ask(packet, boundary, pending)
            after = self._applier(state, decision)
        except TamiyoError as error:
            self._log_error(error)
            self._watch.keep(self._kept.names(), pending.mark)
            return state
        self._note(decision)
        self._watch.keep(self._kept.names(), pending.mark)
        return after

    def _ask(self, packet: SystemStatePacket, boundary: Boundary, pending: Pending) -> Decision:
        """The controller's decision; keeps the state of the boundary, if it may be kept."""
        decision, self._concluding = self.tamiyo.step(packet), pending.mark
        if pending.held is not None and may_keep(boundary, decision):
            self._kept.put(state_name(boundary.global_step), pending.held)
        self._reporter.forget(decision)
        return decision

    def _ask_at_the_end(self, pending: Pending) -> None:
        """Make the decision that is left over; there is no state any more to apply it to."""
        boundary = self._measure(pending)
        packet = self._reporter.packet(None, boundary, is_held=pending.held is not None)
        try:
            decision = self._ask(packet, boundary, pending)
        except TamiyoError as error:
            self._log_error(error)
            return
        for line in describe_decision(decision, self._last):
            self._log(f"step {self._watch.steps}: not applied, the loop has ended: {line}")

    def _note(self, decision: Decision) -> None:
        """Log a decision, and keep where the data of the loop goes on."""
        if isinstance(self._kept, DiskCheckpoints):
            self._log_unwritten(self._kept.problems())
        for line in describe_decision(decision, self._last):
            self._log(f"step {self._watch.steps}: {line}")
        self._last, self.escalated = decision, decision.escalate
        command = None if decision.shadow else decision.command
        if command is not None and isinstance(command.payload, Rollback):
            self.skips_data = "skip_data" in command.annotations
            self.undone_steps = self._watch.go_back(
                command.payload.checkpoint, skips_data=self.skips_data
            )

    def _log_error(self, error: TamiyoError) -> None:
        problem = f"{type(error).__name__}: {error}"
        self._log(f"step {self._watch.steps}: goes on without Tamiyo: {problem}")

    def _log_unwritten(self, problems: list[str]) -> None:
        for problem in problems:
            self._log(f"step {self._watch.steps}: a kept state is in memory alone: {problem}")

    def _measure(self, pending: Pending) -> Boundary:
        """The means of an interval, and the validation loss of the state at its end."""
        mean = pending.reading.mean()
        self._boundaries += 1
        loss, contributions, probe = pending.evaluation
        if jax.tree.leaves(pending.evaluation):
            loss, contributions, probe = jax.device_get(pending.evaluation)
        return Boundary(
            number=self._boundaries,
            global_step=pending.mark.steps,
            mean=mean,
            multiplier=pending.reading.multiplier(),
            validation_loss=None if loss is None else float(loss),
            validation_accuracy=None,
            contributions=contributions,
            probe=probe,
            metrics=pending.pace,
        )

    def _copies_cheaply(self, state: object) -> bool:
        """Whether copying a state takes little time beside a few steps: not off an accelerator."""
        if self._is_on_cpu is None:
            self._is_on_cpu = not any(map(is_on_accelerator, jax.tree.leaves(state)))
        return self._is_on_cpu
