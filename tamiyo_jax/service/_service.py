"""`Tamiyo`: the controller as a training loop uses it.

It routes calls, one at a time: `Stepper` makes the decisions, and inference, blueprints,
storage, publishing and telemetry are parts of their own. A step that raises leaves the state
as it was, but for what records failures.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, Self

from tamiyo_jax.bus import Bus
from tamiyo_jax.clock import steady_time_ns
from tamiyo_jax.config import TamiyoConfig
from tamiyo_jax.contracts import (
    Event,
    PolicyUpdate,
    Secret,
    SystemStatePacket,
    TelemetryLevel,
    decode_policy_update,
)
from tamiyo_jax.controller import AppliedPolicy, Mode, TamiyoState, set_conservative
from tamiyo_jax.decision import Decision
from tamiyo_jax.errors import (
    ConfigurationError,
    PersistenceError,
    PolicyUpdateRejectedError,
    TamiyoError,
)
from tamiyo_jax.inference import (
    DeployedPolicy,
    Isolation,
    PolicyChoice,
    check_parameters,
    choose_policy,
    make_trial_situation,
    require_parameters,
)
from tamiyo_jax.journal import OwnerProcess
from tamiyo_jax.library import BlueprintLibrary
from tamiyo_jax.service._assembly import Parts, assemble, resolve_secrets
from tamiyo_jax.service._entrance import Entrance
from tamiyo_jax.service._ownership import OwnedLock
from tamiyo_jax.service._steps import Stepper
from tamiyo_jax.telemetry import Sink

__all__ = ["Tamiyo"]

_KEPT_UPDATES = 2  # the live one, and the one that a rollback returns to


class Tamiyo:
    """A controller and the run directory that it owns; made by `Tamiyo.open`.

    Usable as a context manager. Calls from several threads are served one after another.
    """

    def __init__(
        self,
        config: TamiyoConfig,
        *,
        parts: Parts,
        deployed: DeployedPolicy,
        secrets: tuple[Secret, ...],
        mode: Mode,
        clock: Callable[[], int],
    ) -> None:
        self._config = config
        self._parts = parts
        self._storage = parts.storage
        self._deployment = parts.deployment
        self._secrets = secrets
        self._clock = clock
        self._steps = Stepper(config, parts, deployed, secret=secrets[0], mode=mode, clock=clock)
        self._process = OwnerProcess()
        self._lock = OwnedLock(self._process)
        self._updating = OwnedLock(self._process)
        self._entrance = Entrance()
        self._closed = False

    @classmethod
    def open(
        cls,
        config: TamiyoConfig,
        *,
        directory: str | os.PathLike[str],
        library: BlueprintLibrary,
        params: object = None,
        policy: str = "graph",
        mode: Literal["act", "shadow", "guard"] = "act",
        secret: bytes | None = None,
        sinks: Iterable[Sink] = (),
        bus: Bus | None = None,
        state: TamiyoState[Any] | None = None,
        isolation: Isolation = "process",
        clock: Callable[[], int] = steady_time_ns,
    ) -> Self:
        """Open a run directory and go on from its latest state.

        Args:
          config: all settings; nothing is read from elsewhere afterwards.
          directory: the run directory; made if it is not there.
          library: where blueprints come from.
          params: the policy's parameters; the heuristic has none, and None of the graph policy are
            those of the trained policy that the package ships. A policy update that the
            directory's state has in force goes before them; with `state` they are the live
            ones.
          policy: ``"graph"``, ``"heuristic"`` or ``"package.module:factory"``.
          mode: ``"act"`` signs commands, ``"shadow"`` only reports what it would do,
            ``"guard"`` runs the risk gate alone; see `set_mode`.
          secret: at least 16 bytes; None reads the variable `config.security.secret_env`.
          sinks: where telemetry goes.
          bus: where reports are published; None publishes none.
          state: wins over the directory's own; the journal says so.
          isolation: ``"process"`` runs policy and fetches in workers that are ended when
            they are late; ``"inline"`` runs them in this process, for notebooks and
            accelerators, where late work can only be discarded.
          clock: nanoseconds since the epoch; the default never runs backwards.

        Raises:
          MissingSecretError: no secret, or a short one; nothing was created.
          MissingParametersError: the graph policy without parameters, where the shipped ones do
            not fit `config.policy`; not on guard.
          DirectoryLockedError: another process owns the directory.
          PersistenceError: the journal cannot be read or written.
          WorkerUnavailableError: no worker could be started; the message says why.
        """
        if isolation not in ("process", "inline"):
            raise ConfigurationError(f"isolation={isolation!r}; choose 'process' or 'inline'")
        chosen_mode = _parse_mode(mode)
        secrets = resolve_secrets(config, secret)
        base = choose_policy(config, policy, params, chosen_mode)
        parts = assemble(
            config,
            base,
            directory=Path(directory),
            library=library,
            secret=secrets[0],
            sinks=sinks,
            bus=bus,
            state=state,
            isolation=isolation,
            clock=clock,
        )
        deployed = None
        try:
            if chosen_mode is Mode.GUARD:
                deployed = parts.deployment.rest(base)
            else:
                deployed = parts.deployment.begin(parts.deployment.choose_live(parts.state))
            if parts.metadata is not None:
                parts.metadata.wait_ready()
            deployed.runner.wait_ready()
        except BaseException:
            if deployed is not None:
                deployed.close()
            parts.closers.close()
            raise
        return cls(
            config, parts=parts, deployed=deployed, secrets=secrets, mode=chosen_mode, clock=clock
        )

    @property
    def config(self) -> TamiyoConfig:
        """The configuration."""
        return self._config

    @property
    def state(self) -> TamiyoState[Any]:
        """The state after the last step; immutable, safe to keep."""
        return self._steps.state

    @property
    def params(self) -> Any:  # noqa: ANN401 - a policy's own pytree
        """The policy's parameters."""
        return self._steps.deployed.choice.params

    @property
    def mode(self) -> Mode:
        """Act, shadow or guard."""
        return self._steps.mode

    def step(self, packet: SystemStatePacket) -> Decision:
        """Decide on one packet.

        Raises:
          TamiyoError: no decision could be made. The failure is on record, a CRITICAL event
            went to the sinks, and the state is what it was; train on without Tamiyo.
        """
        with self._entrance.call(), self._lock:
            self._check_open()
            return self._steps.step(packet)

    def step_many(self, packets: Sequence[SystemStatePacket]) -> list[Decision | TamiyoError]:
        """Decide on packets of many runs, as `step` would one after another.

        Neighbours of one layout share one pass over the policy's weights, if the policy is a
        function of arrays: give packets in the order of their blueprints. Each pass has as
        many times `deadlines.inference_ms` as packets.

        Returns:
          For each packet its decision, or the error that `step` would have raised.
        """
        with self._entrance.call(), self._lock:
            self._check_open()
            return self._steps.step_many(packets)

    def prepare(self, blueprint_id: str) -> None:
        """Compile for a blueprint ahead of time, so that its first step need not.

        Raises:
          UnknownBlueprintError: the library does not hold it.
          TamiyoError: as a step's inference.
        """
        with self._entrance.call(), self._lock:
            self._check_open()
            steps = self._steps
            last = steps.last or make_trial_situation(self._config, steps.state)
            packet = replace(
                last.packet, blueprint_id=blueprint_id, candidate_blueprint_ids=(blueprint_id,)
            )
            situation = steps.situation_of(packet)
            if steps.mode is not Mode.GUARD:
                steps.prepare(situation, steps.state)

    def update_policy(self, update: PolicyUpdate | bytes) -> None:
        """Use new parameters from the next step on.

        They are checked, tried in a fresh worker beside the steps that go on meanwhile,
        brought to disk and recorded; only then the policy is swapped.

        Args:
          update: signed, with parameters as safetensors (`policy.params_to_bytes`); or its
            bytes as the wire has them.

        Raises:
          PolicyUpdateRejectedError: its `reason` says why; the live policy is untouched.
          PersistenceError: it could not be recorded; the live policy is untouched.
        """
        with self._entrance.call(), self._updating:
            self._check_open()
            try:
                if isinstance(update, bytes):
                    update = decode_policy_update(update)
                self._update(update)
            except PolicyUpdateRejectedError as error:
                attributes = {"reason": str(error.reason), "message": str(error)}
                event = Event("policy_update_rejected", TelemetryLevel.WARNING, attributes)
                self._steps.emit((event,))
                raise

    def rollback_policy(self) -> None:
        """Return to the policy before the live update, from the next step on.

        That is the update before it, and before that the parameters given to `open`.

        Raises:
          PolicyUpdateRejectedError: `no_update`; none is in force.
          PersistenceError: the earlier parameters are gone, or this could not be recorded.
        """
        with self._entrance.call(), self._updating:
            self._check_open()
            *earlier, live = self._steps.state.policies or (None,)
            if live is None:
                raise PolicyUpdateRejectedError(
                    "no policy update is in force; there is nothing to roll back",
                    reason="no_update",
                )
            choice = self._deployment.choose_live(
                replace(self._steps.state, policies=tuple(earlier))
            )
            deployed = self._deploy(choice, self._steps.state)
            detail = f"{live.policy_id} → {choice.version}"
            with self._replace_policy(), self._lock:
                after = replace(self._steps.state, policies=tuple(earlier))
                self._steps.swap(
                    deployed,
                    after,
                    lambda: self._storage.append_operator("policy_rolled_back", detail, after),
                )

    def set_conservative(self, on: bool, reason: str, run_id: str | None = None) -> None:
        """Enter conservative mode by hand, or leave it; a mode set by hand ends only by hand.

        Args:
          on: enter, or leave.
          reason: why; part of the record and of the event.
          run_id: the `training_run_id` that it is for; None is for all runs, and for those that
            begin later.

        Raises:
          PersistenceError: it could not be recorded; nothing has changed.

        From a signal handler: see `flush`.
        """
        if self._entrance.defer(lambda: self.set_conservative(on, reason, run_id)):
            return
        with self._entrance.call(), self._lock:
            self._check_open()
            before = self._steps.state
            selected = before if run_id is None else self._steps.select_run(before, run_id)
            after, events = set_conservative(selected, on, reason, everywhere=run_id is None)
            scope = "" if run_id is None else "run_"
            action = f"{scope}conservative_{'on' if on else 'off'}"
            self._steps.record(lambda: self._storage.append_operator(action, reason, after))
            self._steps.state = after
            self._steps.emit((*self._steps.find_forgotten_runs(before, after), *events))

    def set_mode(self, mode: Literal["act", "shadow", "guard"]) -> None:
        """Change what the controller may do, from the next step on.

        A policy that rested in guard mode is started and warmed up while steps go on; in guard
        mode its workers are ended. The change is recorded. Reopening does not restore it: the
        mode of a controller is the one given to `open`.

        Raises:
          MissingParametersError: the graph policy is to decide, and was never given any; the
            mode stays.
          TamiyoError: the policy cannot be started, or this could not be recorded; likewise.
        """
        chosen = _parse_mode(mode)
        with self._entrance.call(), self._updating:
            self._check_open()
            before = self._steps.mode
            if chosen is before:
                return
            choice, deployed = self._steps.deployed.choice, None
            require_parameters(choice.name, choice.params, chosen)
            if chosen is Mode.GUARD:
                deployed = self._deployment.rest(choice)
            elif before is Mode.GUARD:
                choice = self._deployment.choose_live(self._steps.state, choice.params)
                deployed = self._deployment.warm(choice, self._steps.state, self._steps.last)
            change = {"from": before.value, "to": chosen.value}
            with self._replace_policy(), self._lock:
                state = self._steps.state
                detail = " → ".join(change.values())
                self._steps.swap(
                    deployed,
                    state,
                    lambda: self._storage.append_operator("mode_changed", detail, state),
                )
                self._steps.mode = chosen
            self._steps.emit((Event("mode_changed", TelemetryLevel.INFO, change),))

    def restore(self, state: TamiyoState[Any], params: object = None) -> None:
        """Take over a state; the journal says so.

        Decisions from here on are those that the saved run would have made.

        Args:
          state: a state that `state` gave, of any run of the same policy.
          params: its live parameters; None takes those of its policy update from the run
            directory, or where it has none those given to `open`, or to a `restore` since.

        Raises:
          PersistenceError: it could not be recorded, or parameters are missing; nothing
            has changed.
        """
        with self._entrance.call(), self._updating:
            self._check_open()
            deployed = None
            if params is not None:
                state = self._deployment.adopt(state, params)
            if params is not None or state.policies != self._steps.state.policies:
                deployed = self._deploy(self._deployment.choose_live(state, params), state)
            with self._replace_policy(), self._lock:
                self._steps.swap(
                    deployed, state, lambda: self._storage.append_restore(state, "restore")
                )
            if params is not None and not state.policies:
                self._deployment = self._deployment.rebase(params)

    def publish(self) -> int:
        """Publish every report that is due, and wait for it; returns how many were taken.

        Raises:
          ConfigurationError: this controller was opened without a bus.
          PersistenceError: what became of a report could not be recorded.
        """
        self._process.check()
        if self._parts.publisher is None:
            raise ConfigurationError("there is no bus to publish to; pass bus=… to Tamiyo.open")
        with self._entrance.call():
            return self._parts.publisher.publish()

    def flush(self) -> None:
        """Wait until every record is on disk.

        From a signal handler that came in the middle of another call of this controller it
        returns at once, and is done when that call ends; so are `close` and `set_conservative`.

        Raises:
          PersistenceError: the journal was sealed before that.
        """
        self._process.check()
        if self._entrance.defer(self.flush):
            return
        with self._entrance.call():
            self._storage.flush()

    def close(self) -> None:
        """Bring everything to disk and release the directory; closing twice is harmless.

        From a signal handler: see `flush`. In a forked child it does nothing: all that it would
        close is the parent's.
        """
        if not self._process.is_current:
            return
        if self._entrance.defer(self.close):
            return
        with self._entrance.call(), self._updating, self._lock:
            if self._closed:
                return
            self._closed = True
            try:
                self._steps.deployed.close()
            finally:
                self._parts.closers.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Tamiyo(mode={self._steps.mode.value!r}, policy={self._steps.policy_version!r})"

    @contextmanager
    def _replace_policy(self) -> Generator[None]:
        """Close the policy that the block replaces, once the block has let steps go on."""
        before = self._steps.deployed
        yield
        if self._steps.deployed is not before:
            before.close()

    def _check_open(self) -> None:
        if self._closed:
            raise PersistenceError("this controller is closed; open it again")

    def _update(self, update: PolicyUpdate) -> None:
        params = check_parameters(
            update,
            self._deployment.base.params,
            secrets=self._secrets,
            applied=self._storage.facts.policy_ids,
            now_ns=self._clock(),
            config=self._config,
        )
        state = self._steps.state
        situation = self._steps.last or make_trial_situation(self._config, state)
        deployed = self._deployment.deploy_update(update, params, state, situation)
        try:
            digest = self._storage.store_parameters(update.payload)
        except PersistenceError as error:
            deployed.close()
            self._steps.emit_persistence_failure(error)
            raise
        if self._steps.mode is Mode.GUARD:
            deployed.close()
            deployed = self._deployment.rest(deployed.choice)
        applied = AppliedPolicy(update.policy_id, digest, update.policy_version)
        with self._replace_policy(), self._lock:
            policies = (*self._steps.state.policies, applied)[-_KEPT_UPDATES:]
            after = replace(self._steps.state, policies=policies)
            self._steps.swap(
                deployed,
                after,
                lambda: self._storage.append_policy_update(
                    applied.policy_id, applied.digest, applied.version, after
                ),
            )
        attributes = {"policy_id": applied.policy_id, "version": applied.version}
        self._steps.emit((Event("policy_update_applied", TelemetryLevel.INFO, attributes),))

    def _deploy(self, choice: PolicyChoice, state: TamiyoState[Any]) -> DeployedPolicy:
        """Deploy a policy as the mode needs it: warm, or at rest."""
        if self._steps.mode is Mode.GUARD:
            return self._deployment.rest(choice)
        return self._deployment.warm(choice, state, self._steps.last)


def _parse_mode(name: str) -> Mode:
    try:
        return Mode(name)
    except ValueError as error:
        choices = ", ".join(repr(choice.value) for choice in Mode)
        raise ConfigurationError(f"mode={name!r}; choose one of {choices}", value=name) from error
