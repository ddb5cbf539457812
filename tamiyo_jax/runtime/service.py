"""`Tamiyo`: the service that a training loop talks to.

It only routes. What is decided comes from pure functions; inference, blueprints, storage,
publishing and telemetry are parts of their own. A step that raises leaves the state as it
was, but for what records failures.
"""

from __future__ import annotations

import os
import random
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NoReturn, Self

from tamiyo_jax.config import TamiyoConfig
from tamiyo_jax.contracts import (
    Event,
    Metric,
    PolicyUpdate,
    Secret,
    SystemStatePacket,
    TelemetryLevel,
    decode_policy_update,
    sign,
    validate_packet,
)
from tamiyo_jax.controller import (
    Answer,
    AppliedPolicy,
    Mode,
    Outcome,
    Situation,
    TamiyoState,
    conclude,
    fail,
    observe_encoded,
)
from tamiyo_jax.errors import (
    ConfigurationError,
    DeadlineExceededError,
    PersistenceError,
    PolicyFailureError,
    PolicyUpdateRejectedError,
    TamiyoError,
    WorkerUnavailableError,
)
from tamiyo_jax.risk import Stage, admit_call, call_succeeded, enter_by_hand, leave_by_hand
from tamiyo_jax.runtime.assembly import Parts, assemble, resolve_secrets
from tamiyo_jax.runtime.bus import Bus
from tamiyo_jax.runtime.decision import Decision, Latency
from tamiyo_jax.runtime.library import BlueprintLibrary
from tamiyo_jax.runtime.packets import failure_packet, outcome_packet, status_packet
from tamiyo_jax.runtime.policies import choose_policy
from tamiyo_jax.runtime.recording import decided, failure_record, outcome_record
from tamiyo_jax.runtime.seat import Isolation, Seat
from tamiyo_jax.runtime.telemetry import Sink
from tamiyo_jax.runtime.updates import checked_parameters, trial_situation
from tamiyo_jax.storage import StepRecord, Ticket

__all__ = ["Tamiyo"]

# What a stage's breaker counts: calls that were made and not answered as they should be.
_COUNTED: Mapping[Stage, tuple[type[TamiyoError], ...]] = {
    "inference": (DeadlineExceededError, PolicyFailureError),
    "metadata": (DeadlineExceededError, PersistenceError),
}
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
        self._seat = seat
        self._secrets = secrets
        self._state = parts.state
        self._mode = mode
        self._clock = clock
        self._ids = random.Random(os.urandom(32))
        self._last: Situation | None = None
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
            ``"guard"`` runs the risk gate alone.
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
          MissingParametersError: the graph policy without parameters.
          DirectoryLockedError: another process owns the directory.
          PersistenceError: the journal cannot be read or written.
          WorkerUnavailableError: no worker could be started; the message says why.
        """
        if isolation not in ("process", "inline"):
            raise ConfigurationError(f"isolation={isolation!r}; choose 'process' or 'inline'")
        chosen_mode = Mode(mode)
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
            mode=chosen_mode,
            clock=clock,
        )
        seat = None
        try:
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
        return self._state

    @property
    def params(self) -> Any:  # noqa: ANN401 - a policy's own pytree
        """The policy's parameters."""
        return self._seat.choice.params

    @property
    def mode(self) -> Mode:
        """Act, shadow or guard."""
        return self._mode

    def step(self, packet: SystemStatePacket) -> Decision:
        """Decide on one packet.

        Raises:
          TamiyoError: no decision could be made. The failure is on record, a CRITICAL event
            went to the sinks, and the state is what it was; train on without Tamiyo.
        """
        with self._lock:
            self._check_open()
            started = time.perf_counter()
            state = before = self._state
            valid, stage = False, None
            try:
                validate_packet(packet, max_metrics=self._config.packet.max_metrics)
                valid, stage = True, "metadata"
                state = self._admit(state, "metadata")
                arrays, candidates = self._parts.resolver.resolve(
                    packet, self._config.deadlines.metadata_ms
                )
                resolved = time.perf_counter()
                state, stage = self._succeed(state, "metadata"), None
                before = state
                situation = observe_encoded(self._config, state, packet, arrays, candidates)
                encoded = time.perf_counter()
                answer = None
                if self._mode is not Mode.GUARD:
                    stage = "inference"
                    state = self._admit(state, "inference")
                    answer = self._ask(state, situation)
                after, outcome = self._conclude(state, situation, answer)
                if answer is not None:
                    after = self._succeed(after, "inference")
            except WorkerUnavailableError as error:
                self._fail(before, packet, error, None, valid=valid)  # no trial either
            except TamiyoError as error:
                self._fail(state, packet, error, stage, valid=valid)
            return self._commit(after, outcome, (started, resolved, encoded))

    def prepare(self, blueprint_id: str) -> None:
        """Compile for a blueprint ahead of time, so that its first step need not.

        Raises:
          UnknownBlueprintError: the library does not hold it.
          TamiyoError: as a step's inference.
        """
        with self._lock:
            self._check_open()
            last = self._last or trial_situation(self._config, self._state)
            packet = replace(
                last.packet, blueprint_id=blueprint_id, candidate_blueprint_ids=(blueprint_id,)
            )
            arrays, candidates = self._parts.resolver.resolve(
                packet, self._config.deadlines.metadata_ms
            )
            situation = observe_encoded(self._config, self._state, packet, arrays, candidates)
            self._prepare(self._state, situation)

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
                self._tell((event,))
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
            *earlier, live = self._state.policies or (None,)
            if live is None:
                raise PolicyUpdateRejectedError(
                    "no policy update is in force; there is nothing to roll back",
                    reason="no_update",
                )
            choice = self._seating.live(replace(self._state, policies=tuple(earlier)))
            seat = self._seating.warm(choice, self._state, self._last)
            detail = f"{live.policy_id} → {choice.version}"
            with self._lock:
                after = replace(self._state, policies=tuple(earlier))
                self._swap(
                    seat,
                    after,
                    lambda: self._storage.append_operator("policy_rolled_back", detail, after),
                )

    def set_conservative(self, on: bool, reason: str) -> None:
        """Enter conservative mode by hand, or leave it; only a hand ends what a hand began."""
        with self._lock:
            self._check_open()
            before, step = self._state.risk, self._state.steps
            if on:
                risk, events = enter_by_hand(before, reason, step)
            else:
                risk, events = leave_by_hand(before, step)
            after = replace(self._state, risk=risk)
            action = "conservative_on" if on else "conservative_off"
            self._record(lambda: self._storage.append_operator(action, reason, after))
            self._state = after
            self._tell(events)

    def restore(self, state: TamiyoState[Any], params: object = None) -> None:
        """Take over a state; the journal says so.

        Decisions from here on are those that the saved run would have made.

        Args:
          state: a state that `state` gave, of any run of the same policy.
          params: its live parameters; None takes those of its policy update from the run
            directory, or those given to `open` where it has none.

        Raises:
          PersistenceError: it could not be recorded, or parameters are missing; nothing
            has changed.
        """
        with self._updating:
            self._check_open()
            seat = None
            if params is not None:
                state = self._seating.adopted(state, params)
            if params is not None or state.policies != self._state.policies:
                seat = self._seating.warm(self._seating.live(state, params), state, self._last)
            with self._lock:
                self._swap(seat, state, lambda: self._storage.append_restore(state, "restore"))

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
                self._seat.close()
            finally:
                self._parts.closers.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Tamiyo(mode={self._mode.value!r}, policy={self._seat.choice.version!r})"

    def _check_open(self) -> None:
        if self._closed:
            raise PersistenceError("this controller is closed; open it again")

    def _admit(self, state: TamiyoState[Any], stage: Stage) -> TamiyoState[Any]:
        return replace(state, risk=admit_call(state.risk, stage, self._clock()))

    def _succeed(self, state: TamiyoState[Any], stage: Stage) -> TamiyoState[Any]:
        risk, events = call_succeeded(state.risk, stage)
        self._tell(events)
        return replace(state, risk=risk)

    def _ask(self, state: TamiyoState[Any], situation: Situation) -> Answer[Any]:
        self._prepare(state, situation)
        self._last = situation
        return self._seat.ask(state, situation, self._config.deadlines.inference_ms)

    def _prepare(self, state: TamiyoState[Any], situation: Situation) -> None:
        if self._seat.prepare(state, situation):
            self._tell((Event("layout_prepared", TelemetryLevel.INFO),))

    def _update(self, update: PolicyUpdate) -> None:
        params = checked_parameters(
            update,
            self._seating.base.params,
            secrets=self._secrets,
            applied=self._storage.facts.policy_ids,
            now_ns=self._clock(),
            config=self._config,
        )
        state = self._state
        situation = self._last or trial_situation(self._config, state)
        seat = self._seating.tried(update, params, state, situation)
        try:
            digest = self._storage.store_parameters(update.payload)
        except PersistenceError as error:
            seat.close()
            self._tell_persistence_failure(error)
            raise
        applied = AppliedPolicy(update.policy_id, digest, update.policy_version)
        with self._lock:
            policies = (*self._state.policies, applied)[-_KEPT_UPDATES:]
            after = replace(self._state, policies=policies)
            self._swap(
                seat,
                after,
                lambda: self._storage.append_policy_update(
                    applied.policy_id, applied.digest, applied.version, after
                ),
            )
        attributes = {"policy_id": applied.policy_id, "version": applied.version}
        self._tell((Event("policy_update_applied", TelemetryLevel.INFO, attributes),))

    def _swap(
        self, seat: Seat | None, state: TamiyoState[Any], record: Callable[[], Ticket]
    ) -> None:
        """Between two steps: record, and only then let another state, and seat, rule."""
        try:
            self._record(record)
        except BaseException:
            if seat is not None:
                seat.close()
            raise
        self._state = state
        if seat is not None:
            self._seat, old = seat, self._seat
            old.close()

    def _conclude(
        self, state: TamiyoState[Any], situation: Situation, answer: Answer[Any] | None
    ) -> tuple[TamiyoState[Any], Outcome]:
        return conclude(
            self._config,
            state,
            situation,
            answer,
            mode=self._mode,
            policy_version=self._seat.choice.version,
            now_ns=self._clock(),
            command_id=self._new_id(),
            report_id=f"fr-{self._new_id()}",
        )

    def _commit(
        self, after: TamiyoState[Any], outcome: Outcome, marks: tuple[float, float, float]
    ) -> Decision:
        """Sign, write, and only then let the state move and the answer out."""
        shadow = self._mode is Mode.SHADOW
        command = outcome.command
        if command is not None and not shadow:
            command = sign(command, self._secrets[0])
        concluded = time.perf_counter()
        record = outcome_record(
            outcome,
            command,
            self._state,
            after,
            self._mode,
            with_packet=self._config.storage.record_packets,
        )
        ticket = self._record_step(record, after)
        before, self._state = self._state, after
        started, resolved, encoded = marks
        now = time.perf_counter()
        latency = Latency(
            step_ms=(now - started) * 1e3,
            metadata_ms=(resolved - started) * 1e3,
            encode_ms=(encoded - resolved) * 1e3,
            inference_ms=outcome.report.metrics.get("inference_ms", 0.0),
            append_ms=(now - concluded) * 1e3,
        )
        decision = decided(outcome, command, latency, ticket, shadow=shadow)
        if self._parts.telemetry.wanted:
            indicators = self._indicators(before.steps)
            packet = outcome_packet(outcome, after, decision, indicators, self._metrics())
            self._parts.telemetry.emit(packet)
        return decision

    def _fail(
        self,
        state: TamiyoState[Any],
        packet: SystemStatePacket,
        error: TamiyoError,
        stage: Stage | None,
        *,
        valid: bool,
    ) -> NoReturn:
        """Put a failed step on record and raise; nothing else of the state changes."""
        counted = stage if stage and isinstance(error, _COUNTED[stage]) else None
        admitted = replace(self._state, risk=state.risk)
        after, failure = fail(
            self._config,
            admitted,
            packet,
            error,
            stage=counted,
            policy_version=self._seat.choice.version,
            now_ns=self._clock(),
            report_id=f"fr-{self._new_id()}",
        )
        recorded = packet if valid and self._config.storage.record_packets else None
        self._parts.telemetry.emit(failure_packet(failure, self._indicators(self._state.steps)))
        self._record_step(failure_record(failure.report, recorded, after, self._mode), after)
        self._state = after
        raise error

    def _record_step(self, record: StepRecord, after: TamiyoState[Any]) -> Ticket:
        ticket = self._record(lambda: self._storage.append_step(record, after))
        if self._parts.publisher is not None:
            self._parts.publisher.notify()
        return ticket

    def _record(self, append: Callable[[], Ticket]) -> Ticket:
        try:
            return append()
        except PersistenceError as error:
            self._tell_persistence_failure(error)
            raise

    def _tell_persistence_failure(self, error: PersistenceError) -> None:
        attributes = {"error": type(error).__name__, "message": str(error)}
        self._tell((Event("persistence_failure", TelemetryLevel.CRITICAL, attributes),))

    def _tell(self, events: tuple[Event, ...]) -> None:
        if events:
            indicators = self._indicators(self._state.steps)
            self._parts.telemetry.emit(status_packet(events, indicators, self._clock()))

    def _new_id(self) -> str:
        # Unique as uuid4() is, without a system call for each: ids are no secrets.
        return str(uuid.UUID(int=self._ids.getrandbits(128), version=4))

    def _metrics(self) -> tuple[Metric, ...]:
        parts = self._parts
        return (
            *self._seat.runner.metrics(),
            *parts.resolver.metrics(),
            *(() if parts.publisher is None else parts.publisher.metrics()),
            parts.telemetry.metric(),
        )

    def _indicators(self, step_index: int) -> dict[str, str]:
        deadlines = self._config.deadlines
        return {
            "policy": self._seat.choice.version,
            "policy_arch": type(self._seat.choice.policy).__name__,
            "mode": self._mode.value,
            "timeout_budget_ms": f"{deadlines.inference_ms:g}",
            "metadata_timeout_budget_ms": f"{deadlines.metadata_ms:g}",
            "step_index": str(step_index),
        }
