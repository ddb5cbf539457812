"""Asking the controller about the states of a loop: measure, ask, apply, keep, go back.

What `Plug` does at a decision; how it is opened and what it does at every step are in `_plug`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from typing import Literal, Self, TypeVar

import jax

from tamiyo_jax.contracts import Blueprint, Rollback
from tamiyo_jax.decision import Decision
from tamiyo_jax.errors import TamiyoError
from tamiyo_jax.host import DiskCheckpoints, HardwareMeter, Host, scale_of
from tamiyo_jax.training._evaluation import Evaluate
from tamiyo_jax.training._log_lines import describe_decision
from tamiyo_jax.training._reporter import Boundary, Reporter, RunFacts
from tamiyo_jax.training._resuming import (
    choose_directory,
    count_decisions,
    keep_states,
    load_states,
)
from tamiyo_jax.training._settings import check_options, load_settings
from tamiyo_jax.training._watch import Watch
from tamiyo_jax.training._wiring import open_controller

__all__ = ["Decider"]

OPTIMIZER_ID = "optimizer"

State = TypeVar("State")


class Decider:
    """The half of `Plug` that asks the controller; its attributes are described there."""

    def __init__(
        self,
        directory: str | os.PathLike[str],
        blueprint: Blueprint,
        *,
        layers: tuple[str, ...],
        evaluate: Evaluate,
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
        self._last: Decision | None = None
        config = load_settings(blueprint, candidates, seedless=host is None)
        self.directory = choose_directory(directory, resume)
        self._awaits_state = resume is not None
        self._kept = keep_states(
            self.directory, self._watch.mark, on_disk=resumable or self._awaits_state
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
        self._closed = True
        if isinstance(self._kept, DiskCheckpoints):
            self._log_unwritten(self._kept.close())
        self.tamiyo.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _decide(self, state: State) -> State:
        """Ask the controller about a state, and return what its command makes of it."""
        scale_of(state)
        boundary = self._measure(state)
        packet = self._reporter.packet(state, boundary)
        try:
            decision = self.tamiyo.step(packet)
            self._reporter.settle(state, boundary, decision)
            after = self._applier(state, decision)
        except TamiyoError as error:
            problem = f"{type(error).__name__}: {error}"
            self._log(f"step {self._watch.steps}: goes on without Tamiyo: {problem}")
            self._watch.resume(self._kept.names())
            return state
        self._note(decision)
        self._watch.resume(self._kept.names())
        return after

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

    def _log_unwritten(self, problems: list[str]) -> None:
        for problem in problems:
            self._log(f"step {self._watch.steps}: a kept state is in memory alone: {problem}")

    def _measure(self, state: object) -> Boundary:
        """The means since the last boundary, and the validation loss of the state."""
        mean, metrics = self._watch.interval()
        self._boundaries += 1
        loss, contributions, probe = jax.device_get(self._evaluate(state))
        return Boundary(
            number=self._boundaries,
            global_step=self._watch.steps,
            mean=mean,
            validation_loss=None if loss is None else float(loss),
            validation_accuracy=None,
            contributions=contributions,
            probe=probe,
            metrics=metrics,
        )
