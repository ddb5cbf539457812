"""The seat of the policy: what decides and where it runs, replaced as one between two steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from tamiyo_jax.config import TamiyoConfig
from tamiyo_jax.contracts import PolicyUpdate
from tamiyo_jax.controller import Answer, Situation, TamiyoState
from tamiyo_jax.policy import arrays_from_bytes, fit_params, params_to_bytes
from tamiyo_jax.runtime.inference import InlineRunner, Runner
from tamiyo_jax.runtime.policies import PolicyChoice
from tamiyo_jax.runtime.process import ProcessRunner
from tamiyo_jax.runtime.updates import trial
from tamiyo_jax.storage import StorageManager

__all__ = ["Isolation", "Seat", "Seating"]

Isolation = Literal["process", "inline"]


@dataclass(frozen=True, slots=True)
class Seat:
    """A policy and where it runs."""

    choice: PolicyChoice
    runner: Runner[Any]

    def ask(
        self,
        state: TamiyoState[Any],
        situation: Situation,
        budget_ms: float,
        meanwhile: Callable[[], object],
    ) -> Answer[Any]:
        """See `Runner.run`."""
        return self.runner.run(state.policy_state, situation.observation, budget_ms, meanwhile)

    def prepare(self, state: TamiyoState[Any], situation: Situation) -> bool:
        """See `Runner.prepare`."""
        return self.runner.prepare(state.policy_state, situation.observation)

    def ask_many(
        self,
        state: TamiyoState[Any],
        situations: Sequence[Situation],
        budget_ms: float,
        meanwhile: Callable[[], object],
    ) -> tuple[Answer[Any], ...]:
        """See `Runner.run_many`."""
        observations = [one.observation for one in situations]
        return self.runner.run_many(state.policy_state, observations, budget_ms, meanwhile)

    def prepare_many(self, state: TamiyoState[Any], situations: Sequence[Situation]) -> bool:
        """See `Runner.prepare_many`."""
        observations = [one.observation for one in situations]
        return self.runner.prepare_many(state.policy_state, observations)

    def close(self) -> None:
        """End what it runs on."""
        self.runner.close()


@dataclass(frozen=True, slots=True)
class Seating:
    """How seats are made, one after another, for the life of a controller.

    Attributes:
      config: the configuration.
      base: the policy and parameters given to `Tamiyo.open`.
      storage: holds the parameters of policy updates.
      isolation: where policies run.
      environment: what worker processes see of the environment, as it was at opening.
    """

    config: TamiyoConfig
    base: PolicyChoice
    storage: StorageManager[Any]
    isolation: Isolation
    environment: Mapping[str, str]

    def begin(self, choice: PolicyChoice) -> Seat:
        """A seat that is not waited for."""
        if self.isolation == "inline":
            return Seat(choice, InlineRunner(choice))
        return Seat(choice, ProcessRunner(self.config, choice, self.environment))

    def resting(self, choice: PolicyChoice) -> Seat:
        """A seat that nobody asks, and that runs on nothing: the policy's place on guard."""
        return Seat(choice, InlineRunner(choice))

    def warm(
        self, choice: PolicyChoice, state: TamiyoState[Any], situation: Situation | None
    ) -> Seat:
        """A seat that is ready for what the last step looked like.

        Raises:
          TamiyoError: the policy cannot be started, or fails where it is prepared.
        """
        seat = self.begin(choice)
        try:
            seat.runner.wait_ready()
            if situation is not None:
                seat.prepare(state, situation)
        except BaseException:
            seat.close()
            raise
        return seat

    def tried(
        self, update: PolicyUpdate, params: object, state: TamiyoState[Any], situation: Situation
    ) -> Seat:
        """A seat for an update, that has decided once.

        Raises:
          PolicyUpdateRejectedError: `trial_failed`.
        """
        seat = self.begin(replace(self.base, params=params, version=update.policy_version))
        try:
            trial(update, seat.runner, state, situation, self.config)
        except BaseException:
            seat.close()
            raise
        return seat

    def adopted(self, state: TamiyoState[Any], params: object) -> TamiyoState[Any]:
        """A state taken over together with its live parameters, which are brought to disk.

        Where an update is in force, its parameters are these from now on; where none is, they
        stand for what `open` was given, as long as this controller lives: see `based_on`.

        Raises:
          PersistenceError: the disk failed.
        """
        if not state.policies:
            return state
        *earlier, update = state.policies
        digest = self.storage.store_parameters(params_to_bytes(params))
        return replace(state, policies=(*earlier, replace(update, digest=digest)))

    def based_on(self, params: object) -> Seating:
        """The same with other parameters in front of all updates."""
        return replace(self, base=replace(self.base, params=params))

    def live(self, state: TamiyoState[Any], params: object = None) -> PolicyChoice:
        """The policy that decides in a state: its live update, or else `params`, or else `base`.

        Raises:
          PersistenceError: the update's parameters are not in the run directory.
          CheckpointMismatchError: they do not fit the policy.
        """
        if not state.policies:
            return self.base if params is None else replace(self.base, params=params)
        update = state.policies[-1]
        arrays = arrays_from_bytes(self.storage.load_parameters(update.digest))
        params = fit_params(arrays, self.base.params, f"policy {update.policy_id}")
        return replace(self.base, params=params, version=update.version)
