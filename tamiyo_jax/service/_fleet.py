"""Many runs in one process: they share a policy, a library and its cache, and nothing else.

Each run has a state and a journal of its own, so what is decided for it does not depend on the
others, and it can be taken over from another process, and handed on, at any time.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

from tamiyo_jax.clock import steady_time_ns
from tamiyo_jax.config import TamiyoConfig
from tamiyo_jax.contracts import Secret, SystemStatePacket
from tamiyo_jax.controller import (
    Answer,
    Mode,
    TamiyoState,
    initial_state,
    state_from_json,
    state_to_json,
)
from tamiyo_jax.decision import Decision
from tamiyo_jax.errors import TamiyoError
from tamiyo_jax.inference import (
    DeployedPolicy,
    Deployment,
    InlineRunner,
    PolicyChoice,
    check_answer,
    choose_policy,
)
from tamiyo_jax.library import BlueprintLibrary, BlueprintResolver, CacheListener, fetch_inline
from tamiyo_jax.policy import ArrayPolicy
from tamiyo_jax.service._assembly import Parts
from tamiyo_jax.service._attempt import Begun
from tamiyo_jax.service._steps import Stepper
from tamiyo_jax.storage import StorageManager
from tamiyo_jax.telemetry import Telemetry

__all__ = ["Fleet"]

_MOST = 8  # packets of one pass over the weights
_SYNCED_EVERY_MS = 1_000.0  # what was answered is kept in Redis; hundreds of journals share a disk


@dataclass(frozen=True, slots=True)
class _Run:
    stepper: Stepper
    storage: StorageManager[Any]


class Fleet:
    """The controllers of many runs; made by `open`. Not to be shared between threads.

    The policy runs in this process: a late answer is discarded, and a policy that never
    returns is waited for. A context manager.
    """

    def __init__(
        self,
        config: TamiyoConfig,
        choice: PolicyChoice,
        *,
        directory: Path,
        resolver: BlueprintResolver,
        mode: Mode,
        clock: Callable[[], int],
        closers: ExitStack,
    ) -> None:
        self._config = config
        self._choice = choice
        self._directory = directory
        self._resolver = resolver
        self._mode = mode
        self._clock = clock
        self._closers = closers
        self._runner = InlineRunner[Any](choice)
        self._methods = len(config.policy.blending_methods)
        self._telemetry = Telemetry(())
        self._runs: dict[str, _Run] = {}

    @classmethod
    def open(
        cls,
        config: TamiyoConfig,
        *,
        directory: str | os.PathLike[str],
        library: BlueprintLibrary,
        policy: str,
        params: object,
        mode: Literal["act", "shadow", "guard"],
        clock: Callable[[], int] = steady_time_ns,
    ) -> Self:
        """Open a fleet without any run.

        Args:
          config: all settings, the same for all runs.
          directory: each run gets a run directory in it, named by its id.
          library: where blueprints come from.
          policy: as for `Tamiyo.open`.
          params: the policy's parameters; the heuristic has none.
          mode: as for `Tamiyo.open`.
          clock: nanoseconds since the epoch.

        Raises:
          MissingParametersError: the graph policy without parameters, where the shipped ones do
            not fit `config.policy`; not on guard.
          PersistenceError: the library cannot be read.
        """
        chosen = Mode(mode)
        choice = choose_policy(config, policy, params, chosen)
        with ExitStack() as closers:
            listener = CacheListener(library, config.library, lambda events: None)
            resolver = BlueprintResolver(listener, fetch_inline(library), config.graph)
            closers.callback(resolver.close)
            return cls(
                config,
                choice,
                directory=Path(directory),
                resolver=resolver,
                mode=chosen,
                clock=clock,
                closers=closers.pop_all(),
            )

    def take(self, run_id: str, secret: Secret, state: str | None) -> None:
        """Begin to decide for a run.

        Args:
          run_id: a name for a directory.
          secret: signs the run's commands.
          state: what `state_of` gave here or in another process; None for a run that begins.

        Raises:
          DirectoryLockedError: another process has the run's directory.
          PersistenceError: its journal cannot be read or written.
          CheckpointMismatchError: the state is of another policy.
        """
        template = self._choice.policy.initial_state()
        current: TamiyoState[Any] = (
            initial_state(template) if state is None else state_from_json(state, template)
        )
        settings = self._config.storage
        flush_ms = max(settings.flush_ms, _SYNCED_EVERY_MS)
        storage = StorageManager[Any].open(
            self._directory / run_id,
            settings.model_copy(update={"flush_ms": flush_ms}),
            template,
            clock=self._clock,
            settings=self._config.model_dump_json(),
        )
        try:
            storage.start(initial_state(template) if storage.state is None else storage.state)
            storage.append_restore(current, "fleet")
        except BaseException:
            storage.close()
            raise
        stepper = Stepper(
            self._config,
            self._parts(current, storage),
            DeployedPolicy(self._choice, self._runner, self._methods),
            secret=secret,
            mode=self._mode,
            clock=self._clock,
        )
        self._runs[run_id] = _Run(stepper, storage)

    def step_many(self, packets: Sequence[SystemStatePacket]) -> list[Decision | TamiyoError]:
        """Decide on packets of runs that were taken, at most one of each run.

        Returns:
          For each packet its decision, or the error that `Tamiyo.step` would have raised.
        """
        asked = [(self._runs[packet.training_run_id].stepper, packet) for packet in packets]
        if isinstance(self._choice.policy, ArrayPolicy) and self._mode is not Mode.GUARD:
            return self._step_together(asked)
        return [_step(stepper, packet) for stepper, packet in asked]

    def state_of(self, run_id: str) -> str:
        """The state of a run as text, for `take`."""
        return state_to_json(self._runs[run_id].stepper.state)

    def release(self, run_id: str) -> None:
        """Close a run's journal, and forget the run; harmless if it was not taken."""
        run = self._runs.pop(run_id, None)
        if run is not None:
            run.storage.close()

    def close(self) -> None:
        """Release all runs, and the library."""
        with self._closers:
            for run_id in list(self._runs):
                self.release(run_id)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _step_together(
        self, asked: Sequence[tuple[Stepper, SystemStatePacket]]
    ) -> list[Decision | TamiyoError]:
        """Decide with passes over the weights that packets of one layout share."""
        results: dict[int, Decision | TamiyoError] = {}
        layouts: dict[object, list[tuple[int, Begun]]] = {}
        for place, (stepper, packet) in enumerate(asked):
            begun = stepper.begin(packet)
            if isinstance(begun, Begun):
                layout = begun.situation.layout
                layouts.setdefault(layout, []).append((place, begun))
            else:
                results[place] = begun
        for alike in layouts.values():
            for start in range(0, len(alike), _MOST):
                group = alike[start : start + _MOST]
                answers = self._ask([begun for _, begun in group])
                for (place, begun), answer in zip(group, answers, strict=True):
                    results[place] = asked[place][0].end(begun, answer)
        return [results[place] for place in range(len(asked))]

    def _ask(self, group: Sequence[Begun]) -> Sequence[Answer[Any] | TamiyoError]:
        """Ask the policy about packets of one layout; an error is that of all of them."""
        questions = [
            (begun.attempt.state.policy_state, begun.situation.observation) for begun in group
        ]
        budget_ms = self._config.deadlines.inference_ms * len(group)
        try:
            self._runner.prepare_each(*questions[0], _MOST)
            answers = self._runner.run_each(questions, _MOST, budget_ms)
            for answer, (before, observation) in zip(answers, questions, strict=True):
                check_answer(answer, before, observation, self._methods)
        except TamiyoError as error:
            return [error] * len(group)
        return answers

    def _parts(self, state: TamiyoState[Any], storage: StorageManager[Any]) -> Parts:
        return Parts(
            state=state,
            deployment=Deployment(self._config, self._choice, storage, "inline", {}),
            storage=storage,
            resolver=self._resolver,
            metadata=None,
            publisher=None,
            telemetry=self._telemetry,
            closers=ExitStack(),
        )


def _step(stepper: Stepper, packet: SystemStatePacket) -> Decision | TamiyoError:
    try:
        return stepper.step(packet)
    except TamiyoError as error:
        return error
