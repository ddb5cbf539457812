"""The deployed of the policy: what decides and where it runs, replaced as one between two steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from tamiyo_jax.config import TamiyoConfig
from tamiyo_jax.contracts import PolicyUpdate
from tamiyo_jax.controller import Answer, AppliedPolicy, Situation, TamiyoState
from tamiyo_jax.errors import CheckpointMismatchError, PersistenceError
from tamiyo_jax.inference._inference import InlineRunner, Runner
from tamiyo_jax.inference._policies import PolicyChoice
from tamiyo_jax.inference._process import ProcessRunner
from tamiyo_jax.inference._updates import trial
from tamiyo_jax.policy import arrays_from_bytes, fit_params, params_to_bytes
from tamiyo_jax.storage import StorageManager

__all__ = ["DeployedPolicy", "Deployment", "Isolation"]

Isolation = Literal["process", "inline"]


@dataclass(frozen=True, slots=True)
class DeployedPolicy:
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
class Deployment:
    """How deployed policies are made, one after another, for the life of a controller.

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

    def begin(self, choice: PolicyChoice) -> DeployedPolicy:
        """A deployed that is not waited for."""
        if self.isolation == "inline":
            return DeployedPolicy(choice, InlineRunner(choice))
        return DeployedPolicy(choice, ProcessRunner(self.config, choice, self.environment))

    def hold(self, choice: PolicyChoice) -> DeployedPolicy:
        """A deployed that nobody asks, and that runs on nothing: the policy's place on guard."""
        return DeployedPolicy(choice, InlineRunner(choice))

    def warm(
        self, choice: PolicyChoice, state: TamiyoState[Any], situation: Situation | None
    ) -> DeployedPolicy:
        """A deployed that is ready for what the last step looked like.

        Raises:
          TamiyoError: the policy cannot be started, or fails where it is prepared.
        """
        deployed = self.begin(choice)
        try:
            deployed.runner.wait_ready()
            if situation is not None:
                deployed.prepare(state, situation)
        except BaseException:
            deployed.close()
            raise
        return deployed

    def deploy_on_trial(
        self, update: PolicyUpdate, params: object, state: TamiyoState[Any], situation: Situation
    ) -> DeployedPolicy:
        """A deployed for an update, that has decided once.

        Raises:
          PolicyUpdateRejectedError: `trial_failed`.
        """
        deployed = self.begin(replace(self.base, params=params, version=update.policy_version))
        try:
            trial(update, deployed.runner, state, situation, self.config)
        except BaseException:
            deployed.close()
            raise
        return deployed

    def adopt(self, state: TamiyoState[Any], params: object) -> TamiyoState[Any]:
        """Take over a state together with its live parameters, which are stored.

        Where an update is in force, its parameters are these from now on, and it keeps its
        digest if they are its own; where none is, they replace those given to `open` for the
        rest of this controller's life: see `based_on`.

        Raises:
          PersistenceError: the disk failed.
        """
        if not state.policies:
            return state
        *earlier, update = state.policies
        if self._holds(update, params):
            return state
        digest = self.storage.store_parameters(params_to_bytes(params))
        return replace(state, policies=(*earlier, replace(update, digest=digest)))

    def _holds(self, update: AppliedPolicy, params: object) -> bool:
        """Whether the run directory holds exactly `params` for an update.

        Their bytes may differ: safetensors carry metadata, and order tensors freely.
        """
        try:
            stored = arrays_from_bytes(self.storage.load_parameters(update.digest))
        except (PersistenceError, CheckpointMismatchError):
            return False
        given = arrays_from_bytes(params_to_bytes(params))
        return stored.keys() == given.keys() and all(
            (array.dtype, array.shape, array.tobytes())
            == (given[name].dtype, given[name].shape, given[name].tobytes())
            for name, array in stored.items()
        )

    def based_on(self, params: object) -> Deployment:
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
