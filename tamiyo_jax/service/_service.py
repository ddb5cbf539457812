"""`Tamiyo`: the controller as a training loop uses it.

It routes calls, one at a time: `Stepper` makes the decisions, `Switch` changes what they go on
from, and inference, blueprints, storage, publishing and telemetry are parts of their own. A step
that raises leaves the state as it was, but for what records failures.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, Self

from tamiyo_jax.bus import Bus
from tamiyo_jax.clock import steady_time_ns
from tamiyo_jax.config import TamiyoConfig
from tamiyo_jax.contracts import PolicyUpdate, Secret, SystemStatePacket
from tamiyo_jax.controller import Mode, TamiyoState
from tamiyo_jax.decision import Decision
from tamiyo_jax.errors import ConfigurationError, PersistenceError, TamiyoError
from tamiyo_jax.inference import DeployedPolicy, Isolation, choose_policy
from tamiyo_jax.journal import OwnerProcess
from tamiyo_jax.library import BlueprintLibrary
from tamiyo_jax.service._assembly import Parts, assemble, resolve_secrets
from tamiyo_jax.service._entrance import Entrance, entering, entering_later
from tamiyo_jax.service._steps import Stepper
from tamiyo_jax.service._switching import Switch, parse_mode
from tamiyo_jax.telemetry import Sink

__all__ = ["Tamiyo"]


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
        self._steps = Stepper(config, parts, deployed, secret=secrets[0], mode=mode, clock=clock)
        self._process = OwnerProcess()
        self._lock = threading.Lock()
        self._updating = threading.Lock()
        self._switch = Switch(
            self._steps, config=config, parts=parts, secrets=secrets, clock=clock, lock=self._lock
        )
        self._entrance = Entrance(self._process)
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
          params: the policy's parameters; the heuristic has none. Without them the graph policy
            has, except on guard, those of the trained policy that the package ships. An update
            that the directory's state has in force goes before them; with `state` they are the
            live ones.
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
        chosen_mode = parse_mode(mode)
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

    @entering
    def step(self, packet: SystemStatePacket) -> Decision:
        """Decide on one packet.

        Raises:
          TamiyoError: no decision could be made. The failure is on record, a CRITICAL event
            went to the sinks, and the state is what it was; train on without Tamiyo.
        """
        with self._lock:
            self._check_open()
            return self._steps.step(packet)

    @entering
    def step_many(self, packets: Sequence[SystemStatePacket]) -> list[Decision | TamiyoError]:
        """Decide on packets of many runs, as `step` would one after another.

        Neighbours of one layout share one pass over the policy's weights, if the policy is a
        function of arrays: give packets in the order of their blueprints. Each pass has as
        many times `deadlines.inference_ms` as packets.

        Returns:
          For each packet its decision, or the error that `step` would have raised.
        """
        with self._lock:
            self._check_open()
            return self._steps.step_many(packets)

    @entering
    def prepare(self, blueprint_id: str) -> None:
        """Compile for a blueprint ahead of time, so that its first step need not.

        Raises:
          UnknownBlueprintError: the library does not hold it.
          TamiyoError: as a step's inference.
        """
        with self._lock:
            self._check_open()
            self._steps.prepare_blueprint(blueprint_id)

    @entering
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
        with self._updating:
            self._check_open()
            self._switch.update_policy(update)

    @entering
    def rollback_policy(self) -> None:
        """Return to the policy before the live update, from the next step on.

        That is the update before it, and before that the parameters given to `open`.

        Raises:
          PolicyUpdateRejectedError: `no_update`; none is in force.
          PersistenceError: the earlier parameters are gone, or this could not be recorded.
        """
        with self._updating:
            self._check_open()
            self._switch.rollback_policy()

    @entering_later
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
        with self._lock:
            self._check_open()
            self._switch.set_conservative(on, reason, run_id)

    @entering
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
        with self._updating:
            self._check_open()
            self._switch.set_mode(parse_mode(mode))

    @entering
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
        with self._updating:
            self._check_open()
            self._switch.restore(state, params)

    @entering
    def publish(self) -> int:
        """Publish every report that is due, and wait for it; returns how many were taken.

        Raises:
          ConfigurationError: this controller was opened without a bus.
          PersistenceError: what became of a report could not be recorded.
        """
        if self._parts.publisher is None:
            raise ConfigurationError("there is no bus to publish to; pass bus=… to Tamiyo.open")
        return self._parts.publisher.publish()

    @entering_later
    def flush(self) -> None:
        """Wait until every record is on disk.

        From a signal handler that came in the middle of another call of this controller it
        returns at once, and is done when that call ends; so are `close` and `set_conservative`.

        Raises:
          PersistenceError: the journal was sealed before that.
        """
        self._storage.flush()

    def close(self) -> None:
        """Bring everything to disk and release the directory; closing twice is harmless.

        From a signal handler: see `flush`. In a forked child it does nothing: all that it would
        close is the parent's.
        """
        if self._process.is_current:
            self._close()

    @entering_later
    def _close(self) -> None:
        with self._updating, self._lock:
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

    def _check_open(self) -> None:
        if self._closed:
            raise PersistenceError("this controller is closed; open it again")
