"""`Tamiyo`: the service that a training loop talks to.

It only routes, one call at a time: `Stepper` makes the decisions, and inference, blueprints,
storage, publishing and telemetry are parts of their own. A step that raises leaves the state
as it was, but for what records failures.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, Self

from tamiyo_jax.config import TamiyoConfig
from tamiyo_jax.contracts import (
    Event,
    PolicyUpdate,
    Secret,
    SystemStatePacket,
    TelemetryLevel,
    decode_policy_update,
)
from tamiyo_jax.controller import (
    AppliedPolicy,
    Mode,
    TamiyoState,
)
from tamiyo_jax.errors import (
    ConfigurationError,
    PersistenceError,
    PolicyUpdateRejectedError,
    TamiyoError,
)
from tamiyo_jax.risk import enter_by_hand, leave_by_hand
from tamiyo_jax.runtime.assembly import Parts, assemble, resolve_secrets
from tamiyo_jax.runtime.bus import Bus
from tamiyo_jax.runtime.decision import Decision
from tamiyo_jax.runtime.library import BlueprintLibrary
from tamiyo_jax.runtime.policies import PolicyChoice, choose_policy, require_parameters
from tamiyo_jax.runtime.seat import Isolation, Seat
from tamiyo_jax.runtime.steps import Stepper
from tamiyo_jax.runtime.telemetry import Sink
from tamiyo_jax.runtime.updates import checked_parameters, trial_situation

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
        seat: Seat,
        secrets: tuple[Secret, ...],
        mode: Mode,
        clock: Callable[[], int],
    ) -> None:
        self._config = config
        self._parts = parts
        self._storage = parts.storage
        self._seating = parts.seating
        self._secrets = secrets
        self._clock = clock
        self._steps = Stepper(config, parts, seat, secret=secrets[0], mode=mode, clock=clock)
        self._lock = threading.Lock()
        self._updating = threading.Lock()
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
        clock: Callable[[], int] = time.time_ns,
    ) -> Self:
        """Open a run directory and go on from its latest state.

        Args:
          config: all settings; nothing is read from elsewhere afterwards.
          directory: the run directory; made if it is not there.
          library: where blueprints come from.
          params: the policy's parameters; the heuristic has none. A policy update that the
            directory's state has in force goes before them; with `state` they are the live
            ones.
          policy: ``"graph"``, ``"heuristic"`` or ``"package.module:factory"``.
          mode: ``"act"`` signs commands, ``"shadow"`` only tells what it would do,
            ``"guard"`` runs the risk gate alone; see `set_mode`.
          secret: at least 16 bytes; None reads the variable `config.security.secret_env`.
          sinks: where telemetry goes.
          bus: where reports are published; None publishes none.
          state: wins over the directory's own; the journal says so.
          isolation: ``"process"`` runs policy and fetches in workers that are ended when
            they are late; ``"inline"`` runs them in this process, for notebooks and
            accelerators, where late work can only be discarded.
          clock: nanoseconds since the epoch.

        Raises:
          MissingSecretError: no secret, or a short one; nothing was created.
          MissingParametersError: the graph policy without parameters, unless on guard.
          DirectoryLockedError: another process owns the directory.
          PersistenceError: the journal cannot be read or written.
          WorkerUnavailableError: no worker could be started; the message says why.
        """
        if isolation not in ("process", "inline"):
            raise ConfigurationError(f"isolation={isolation!r}; choose 'process' or 'inline'")
        chosen_mode = _mode_named(mode)
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
        seat = None
        try:
            if chosen_mode is Mode.GUARD:
                seat = parts.seating.resting(base)
            else:
                seat = parts.seating.begin(parts.seating.live(parts.state))
            if parts.metadata is not None:
                parts.metadata.wait_ready()
            seat.runner.wait_ready()
        except BaseException:
            if seat is not None:
                seat.close()
            parts.closers.close()
            raise
        return cls(config, parts=parts, seat=seat, secrets=secrets, mode=chosen_mode, clock=clock)

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
        return self._steps.seat.choice.params

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
        with self._lock:
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
        with self._lock:
            self._check_open()
            return self._steps.step_many(packets)

    def prepare(self, blueprint_id: str) -> None:
        """Compile for a blueprint ahead of time, so that its first step need not.

        Raises:
          UnknownBlueprintError: the library does not hold it.
          TamiyoError: as a step's inference.
        """
        with self._lock:
            self._check_open()
            steps = self._steps
            last = steps.last or trial_situation(self._config, steps.state)
            packet = replace(
                last.packet, blueprint_id=blueprint_id, candidate_blueprint_ids=(blueprint_id,)
            )
            situation = steps.situation_of(packet)
            if steps.mode is not Mode.GUARD:
                steps.prepare(situation, steps.state)

    def update_policy(self, update: PolicyUpdate | bytes) -> None:
        """Let new parameters decide, from the next step on.

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
            try:
                if isinstance(update, bytes):
                    update = decode_policy_update(update)
                self._update(update)
            except PolicyUpdateRejectedError as error:
                attributes = {"reason": str(error.reason), "message": str(error)}
                event = Event("policy_update_rejected", TelemetryLevel.WARNING, attributes)
                self._steps.tell((event,))
                raise

    def rollback_policy(self) -> None:
        """Return to the policy before the live update, from the next step on.

        That is the update before it, and before that the parameters given to `open`.

        Raises:
          PolicyUpdateRejectedError: `no_update`; none is in force.
          PersistenceError: the earlier parameters are gone, or this could not be recorded.
        """
        with self._updating:
            self._check_open()
            *earlier, live = self._steps.state.policies or (None,)
            if live is None:
                raise PolicyUpdateRejectedError(
                    "no policy update is in force; there is nothing to roll back",
                    reason="no_update",
                )
            choice = self._seating.live(replace(self._steps.state, policies=tuple(earlier)))
            seat = self._seated(choice, self._steps.state)
            detail = f"{live.policy_id} → {choice.version}"
            with self._lock:
                after = replace(self._steps.state, policies=tuple(earlier))
                self._steps.swap(
                    seat,
                    after,
                    lambda: self._storage.append_operator("policy_rolled_back", detail, after),
                )

    def set_conservative(self, on: bool, reason: str) -> None:
        """Enter conservative mode by hand, or leave it; only a hand ends what a hand began."""
        with self._lock:
            self._check_open()
            before, step = self._steps.state.risk, self._steps.state.steps
            if on:
                risk, events = enter_by_hand(before, reason, step)
            else:
                risk, events = leave_by_hand(before, step)
            after = replace(self._steps.state, risk=risk)
            action = "conservative_on" if on else "conservative_off"
            self._steps.record(lambda: self._storage.append_operator(action, reason, after))
            self._steps.state = after
            self._steps.tell(events)

    def set_mode(self, mode: Literal["act", "shadow", "guard"]) -> None:
        """Trust the controller more, or less, from the next step on.

        A policy that has rested on guard is started and warmed up beside the steps that go on
        meanwhile; one that comes to rest is ended. The journal says so; reopening does not
        go back to it, for the mode is what `open` is told.

        Raises:
          MissingParametersError: the graph policy is to decide, and was never given any; the
            mode stays.
          TamiyoError: the policy cannot be started, or this could not be recorded; likewise.
        """
        chosen = _mode_named(mode)
        with self._updating:
            self._check_open()
            before = self._steps.mode
            if chosen is before:
                return
            choice, seat = self._steps.seat.choice, None
            require_parameters(choice.name, choice.params, chosen)
            if chosen is Mode.GUARD:
                seat = self._seating.resting(choice)
            elif before is Mode.GUARD:
                choice = self._seating.live(self._steps.state, choice.params)
                seat = self._seating.warm(choice, self._steps.state, self._steps.last)
            change = {"from": before.value, "to": chosen.value}
            with self._lock:
                state = self._steps.state
                detail = " → ".join(change.values())
                self._steps.swap(
                    seat,
                    state,
                    lambda: self._storage.append_operator("mode_changed", detail, state),
                )
                self._steps.mode = chosen
            self._steps.tell((Event("mode_changed", TelemetryLevel.INFO, change),))

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
            seat = None
            if params is not None:
                state = self._seating.adopted(state, params)
            if params is not None or state.policies != self._steps.state.policies:
                seat = self._seated(self._seating.live(state, params), state)
            with self._lock:
                self._steps.swap(
                    seat, state, lambda: self._storage.append_restore(state, "restore")
                )
            if params is not None and not state.policies:
                self._seating = self._seating.based_on(params)

    def publish(self) -> int:
        """Publish every report that is due, and wait for it; returns how many were taken.

        Raises:
          ConfigurationError: this controller was opened without a bus.
          PersistenceError: what became of a report could not be recorded.
        """
        if self._parts.publisher is None:
            raise ConfigurationError("there is no bus to publish to; pass bus=… to Tamiyo.open")
        return self._parts.publisher.publish()

    def flush(self) -> None:
        """Wait until every record is on disk.

        Raises:
          PersistenceError: the journal was sealed before that.
        """
        self._storage.flush()

    def close(self) -> None:
        """Bring everything to disk and release the directory; closing twice is harmless."""
        with self._updating, self._lock:
            if self._closed:
                return
            self._closed = True
            try:
                self._steps.seat.close()
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

    def _update(self, update: PolicyUpdate) -> None:
        params = checked_parameters(
            update,
            self._seating.base.params,
            secrets=self._secrets,
            applied=self._storage.facts.policy_ids,
            now_ns=self._clock(),
            config=self._config,
        )
        state = self._steps.state
        situation = self._steps.last or trial_situation(self._config, state)
        seat = self._seating.tried(update, params, state, situation)
        try:
            digest = self._storage.store_parameters(update.payload)
        except PersistenceError as error:
            seat.close()
            self._steps.tell_persistence_failure(error)
            raise
        if self._steps.mode is Mode.GUARD:
            seat.close()
            seat = self._seating.resting(seat.choice)
        applied = AppliedPolicy(update.policy_id, digest, update.policy_version)
        with self._lock:
            policies = (*self._steps.state.policies, applied)[-_KEPT_UPDATES:]
            after = replace(self._steps.state, policies=policies)
            self._steps.swap(
                seat,
                after,
                lambda: self._storage.append_policy_update(
                    applied.policy_id, applied.digest, applied.version, after
                ),
            )
        attributes = {"policy_id": applied.policy_id, "version": applied.version}
        self._steps.tell((Event("policy_update_applied", TelemetryLevel.INFO, attributes),))

    def _seated(self, choice: PolicyChoice, state: TamiyoState[Any]) -> Seat:
        """A seat as the mode needs it: warm, or at rest."""
        if self._steps.mode is Mode.GUARD:
            return self._seating.resting(choice)
        return self._seating.warm(choice, state, self._steps.last)


def _mode_named(name: str) -> Mode:
    try:
        return Mode(name)
    except ValueError as error:
        choices = ", ".join(repr(one.value) for one in Mode)
        raise ConfigurationError(f"mode={name!r}; choose one of {choices}", value=name) from error
