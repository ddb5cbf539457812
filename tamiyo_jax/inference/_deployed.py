"""The deployed policy: what decides and where it runs, replaced together between two steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from tamiyo_jax.config import TamiyoConfig
from tamiyo_jax.contracts import PolicyUpdate
from tamiyo_jax.controller import Answer, AppliedPolicy, Situation, TamiyoState
from tamiyo_jax.errors import CheckpointMismatchError, PersistenceError
from tamiyo_jax.inference._answers import check_answer
from tamiyo_jax.inference._inference import InlineRunner, Runner
from tamiyo_jax.inference._policies import PolicyChoice
from tamiyo_jax.inference._process import ProcessRunner
from tamiyo_jax.inference._updates import try_parameters
from tamiyo_jax.policy import arrays_from_bytes, fit_params, params_to_bytes
from tamiyo_jax.storage import StorageManager

__all__ = ["DeployedPolicy", "Deployment", "Isolation"]

Isolation = Literal["process", "inline"]


@dataclass(frozen=True, slots=True)
class DeployedPolicy:
    """A policy and where it runs.

    Attributes:
      choice: the policy.
      runner: where it runs.
      methods: number of blending methods, which its answers score.
    """

    choice: PolicyChoice
    runner: Runner[Any]
    methods: int

    def ask(
        self,
        state: TamiyoState[Any],
        situation: Situation,
        budget_ms: float,
        meanwhile: Callable[[], object] | None = None,
    ) -> Answer[Any]:
        """See `Runner.run`; an answer that is not as `PolicyOutputs` says is a failure.

        Raises:
          TamiyoError: as `Runner.run`.
          PolicyFailureError: the answer has a wrong type, shape, dtype or range.
        """
        observation = situation.observation
        answer = self.runner.run(state.policy_state, observation, budget_ms, meanwhile)
        check_answer(answer, state.policy_state, observation, self.methods)
        return answer

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
        """See `Runner.run_many`, and `ask`."""
        observations = [situation.observation for situation in situations]
        answers = self.runner.run_many(state.policy_state, observations, budget_ms, meanwhile)
        for answer, observation in zip(answers, observations, strict=True):
            check_answer(answer, state.policy_state, observation, self.methods)
        return answers

    def prepare_many(self, state: TamiyoState[Any], situations: Sequence[Situation]) -> bool:
        """See `Runner.prepare_many`."""
        observations = [situation.observation for situation in situations]
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
        """Deploy a policy, and do not wait until its workers are warm."""
        if self.isolation == "inline":
            return self.rest(choice)
        logs = self.storage.log_directory
        return self._deploy(choice, ProcessRunner(self.config, choice, self.environment, logs))

    def rest(self, choice: PolicyChoice) -> DeployedPolicy:
        """Deploy a policy in this process, without workers; in guard mode it is not asked."""
        return self._deploy(choice, InlineRunner(choice))

    def _deploy(self, choice: PolicyChoice, runner: Runner[Any]) -> DeployedPolicy:
        return DeployedPolicy(choice, runner, len(self.config.policy.blending_methods))

    def warm(
        self, choice: PolicyChoice, state: TamiyoState[Any], situation: Situation | None
    ) -> DeployedPolicy:
        """Deploy a policy, and compile it for the layout of the last step.

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

    def deploy_update(
        self, update: PolicyUpdate, params: object, state: TamiyoState[Any], situation: Situation
    ) -> DeployedPolicy:
        """Deploy the parameters of an update, and let them decide once on trial.

        Raises:
          PolicyUpdateRejectedError: `trial_failed`.
        """
        deployed = self.begin(replace(self.base, params=params, version=update.policy_version))
        try:
            try_parameters(update, deployed, state, situation, self.config)
        except BaseException:
            deployed.close()
            raise
        return deployed

    def adopt(self, state: TamiyoState[Any], params: object) -> TamiyoState[Any]:
        """Take over a state with its live parameters, and bring these to disk.

        They replace the parameters of the update that is in force, which keeps its digest if they
        are its own. Where none is in force, they replace what `open` was given, until this
        controller is closed: see `rebase`.

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

    def rebase(self, params: object) -> Deployment:
        """The same deployment with other parameters in front of all updates."""
        return replace(self, base=replace(self.base, params=params))

    def choose_live(self, state: TamiyoState[Any], params: object = None) -> PolicyChoice:
        """Choose the policy that decides in a state: its live update, else `params`, else `base`.

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
