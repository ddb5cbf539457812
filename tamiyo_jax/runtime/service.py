"""`Tamiyo`: the service that a training loop talks to.

It only routes. What is decided comes from pure functions; inference, blueprints, journal and
telemetry are parts of their own. A step that raises leaves the state as it was, but for what
records failures.
"""

from __future__ import annotations

import os
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NoReturn, Self

import numpy as np

from tamiyo_jax.config import TamiyoConfig
from tamiyo_jax.contracts import (
    Event,
    Secret,
    SystemStatePacket,
    TelemetryLevel,
    sign,
    validate_packet,
)
from tamiyo_jax.controller import (
    Answer,
    Mode,
    Outcome,
    Situation,
    TamiyoState,
    conclude,
    fail,
    initial_state,
    observe,
    state_to_json,
)
from tamiyo_jax.errors import (
    ConfigurationError,
    DeadlineExceededError,
    MissingSecretError,
    PersistenceError,
    PolicyFailureError,
    TamiyoError,
)
from tamiyo_jax.risk import Stage, admit_call, call_succeeded, enter_by_hand, leave_by_hand
from tamiyo_jax.runtime.decision import Decision, Latency
from tamiyo_jax.runtime.inference import InlineRunner, Runner
from tamiyo_jax.runtime.library import BlueprintLibrary
from tamiyo_jax.runtime.metadata import BlueprintResolver
from tamiyo_jax.runtime.packets import damage_events, failure_packet, outcome_packet, status_packet
from tamiyo_jax.runtime.policies import PolicyChoice, choose_policy
from tamiyo_jax.runtime.telemetry import Sink, Telemetry
from tamiyo_jax.storage import (
    DirectoryLock,
    Journal,
    RecordType,
    StepRecord,
    Ticket,
    encode_operator,
    encode_restore,
    encode_snapshot,
    encode_step,
    recover_state,
)

__all__ = ["Tamiyo"]


class Tamiyo:
    """A controller and the run directory that it owns; made by `Tamiyo.open`.

    Usable as a context manager. Calls from several threads are served one after another.
    """

    def __init__(
        self,
        config: TamiyoConfig,
        *,
        choice: PolicyChoice,
        runner: Runner[Any],
        resolver: BlueprintResolver,
        secret: Secret,
        journal: Journal,
        lock: DirectoryLock,
        telemetry: Telemetry,
        state: TamiyoState[Any],
        mode: Mode,
        clock: Callable[[], int],
    ) -> None:
        self._config = config
        self._choice = choice
        self._runner = runner
        self._resolver = resolver
        self._secret = secret
        self._journal = journal
        self._directory_lock = lock
        self._telemetry = telemetry
        self._state = state
        self._mode = mode
        self._clock = clock
        self._lock = threading.Lock()
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
        state: TamiyoState[Any] | None = None,
        isolation: Literal["inline"] = "inline",
        clock: Callable[[], int] = time.time_ns,
    ) -> Self:
        """Open a run directory and go on from its latest state.

        Args:
          config: all settings; nothing is read from elsewhere afterwards.
          directory: the run directory; made if it is not there.
          library: where blueprints come from.
          params: the policy's parameters; the heuristic has none.
          policy: ``"graph"``, ``"heuristic"`` or ``"package.module:factory"``.
          mode: ``"act"`` signs commands, ``"shadow"`` only tells what it would do,
            ``"guard"`` runs the risk gate alone.
          secret: at least 16 bytes; None reads the variable `config.security.secret_env`.
          sinks: where telemetry goes.
          state: wins over the directory's own; the journal says so.
          isolation: ``"inline"`` runs inference in this process; it cannot end late work.
          clock: nanoseconds since the epoch.

        Raises:
          MissingSecretError: no secret, or a short one; nothing was created.
          MissingParametersError: the graph policy without parameters.
          DirectoryLockedError: another process owns the directory.
          PersistenceError: the journal cannot be read or written.
        """
        chosen_mode = Mode(mode)
        if isolation != "inline":
            raise ConfigurationError(f"isolation={isolation!r}; 'inline' is what there is")
        key = _secret(config, secret)
        choice = choose_policy(config, policy, params, chosen_mode)
        root = Path(directory)
        lock = DirectoryLock(root)
        telemetry = Telemetry(sinks)
        try:
            template = choice.policy.initial_state()
            journal, recovered = Journal.open(
                root,
                durability=config.storage.durability,
                flush_ms=config.storage.flush_ms,
                recovery=config.storage.recovery,
            )
            stored = recover_state(recovered.replay, template)
            current = initial_state(template) if stored is None else stored
            journal.start(encode_snapshot(current))
            if state is not None:
                current = state
                journal.append(RecordType.RESTORE, encode_restore(state, "state given to open"))
        except BaseException:
            telemetry.close()
            lock.release()
            raise
        tamiyo = cls(
            config,
            choice=choice,
            runner=InlineRunner(choice.policy, choice.params),
            resolver=BlueprintResolver(library),
            secret=key,
            journal=journal,
            lock=lock,
            telemetry=telemetry,
            state=current,
            mode=chosen_mode,
            clock=clock,
        )
        tamiyo._tell(damage_events(recovered))
        return tamiyo

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
        return self._choice.params

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
            state, valid, stage = self._state, False, None
            try:
                validate_packet(packet, max_metrics=self._config.packet.max_metrics)
                valid, stage = True, "metadata"
                state = self._admit(state, "metadata")
                blueprint, candidates = self._resolver.resolve(
                    packet, self._config.deadlines.metadata_ms
                )
                resolved = time.perf_counter()
                state, stage = self._succeed(state, "metadata"), None
                situation = observe(self._config, state, packet, blueprint, candidates)
                encoded = time.perf_counter()
                answer = None
                if self._mode is not Mode.GUARD:
                    stage = "inference"
                    state = self._admit(state, "inference")
                    answer = self._ask(state, situation)
                after, outcome = self._conclude(state, situation, answer)
                if answer is not None:
                    after = self._succeed(after, "inference")
            except TamiyoError as error:
                self._fail(state, packet, error, stage, valid=valid)
            return self._commit(after, outcome, (started, resolved, encoded))

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
            self._append(RecordType.OPERATOR, encode_operator(action, reason, after))
            self._state = after
            self._tell(events)

    def restore(self, state: TamiyoState[Any], params: object = None) -> None:
        """Take over a state, and parameters if given; the journal says so.

        Decisions from here on are those that the saved run would have made.
        """
        with self._lock:
            self._check_open()
            self._append(RecordType.RESTORE, encode_restore(state, "restore"))
            self._state = state
            if params is not None:
                self._choice = replace(self._choice, params=params)
                self._runner.close()
                self._runner = InlineRunner(self._choice.policy, params)

    def flush(self) -> None:
        """Wait until every record is on disk.

        Raises:
          PersistenceError: the journal was sealed before that.
        """
        self._journal.flush()

    def close(self) -> None:
        """Bring everything to disk and release the directory; closing twice is harmless."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            try:
                self._runner.close()
                self._journal.close()
            finally:
                self._telemetry.close()
                self._directory_lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Tamiyo(mode={self._mode.value!r}, policy={self._choice.version!r})"

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
        observation = situation.observation
        if self._runner.prepare(state.policy_state, observation):
            self._tell((Event("layout_prepared", TelemetryLevel.INFO),))
        budget_ms = self._config.deadlines.inference_ms
        return self._runner.run(state.policy_state, observation, budget_ms)

    def _conclude(
        self, state: TamiyoState[Any], situation: Situation, answer: Answer[Any] | None
    ) -> tuple[TamiyoState[Any], Outcome]:
        return conclude(
            self._config,
            state,
            situation,
            answer,
            mode=self._mode,
            policy_version=self._choice.version,
            now_ns=self._clock(),
            command_id=str(uuid.uuid4()),
            report_id=f"fr-{uuid.uuid4()}",
        )

    def _commit(
        self, after: TamiyoState[Any], outcome: Outcome, marks: tuple[float, float, float]
    ) -> Decision:
        """Sign, write, and only then let the state move and the answer out."""
        shadow = self._mode is Mode.SHADOW
        command = outcome.command
        if command is not None and not shadow:
            command = sign(command, self._secret)
        concluded = time.perf_counter()
        ticket = self._append(
            RecordType.STEP,
            encode_step(
                StepRecord(
                    report=outcome.report,
                    action=outcome.action,
                    mode=self._mode.value,
                    state=state_to_json(after, registries=False),
                    command=command,
                    blueprint_revision=outcome.situation.blueprint.revision,
                    registry_additions=after.registries.additions(self._state.registries),
                    **self._recorded(outcome),
                )
            ),
        )
        before, self._state = self._state, after
        started, resolved, encoded = marks
        now = time.perf_counter()
        proposal = outcome.proposal
        latency = Latency(
            step_ms=(now - started) * 1e3,
            metadata_ms=(resolved - started) * 1e3,
            encode_ms=(encoded - resolved) * 1e3,
            inference_ms=outcome.report.metrics.get("inference_ms", 0.0),
            append_ms=(now - concluded) * 1e3,
        )
        decision = Decision(
            decision_id=outcome.report.report_id if command is None else command.command_id,
            report_id=outcome.report.report_id,
            action=outcome.action,
            command=command,
            reason=outcome.verdict.reason,
            events=outcome.events,
            coverage=outcome.situation.coverage,
            value=None if proposal is None else proposal.value,
            risk_score=None if proposal is None else proposal.risk_score,
            latency=latency,
            shadow=shadow,
            escalate=outcome.escalate,
            ticket=ticket,
        )
        self._telemetry.emit(
            outcome_packet(outcome, after, decision, self._indicators(before.steps))
        )
        return decision

    def _recorded(self, outcome: Outcome) -> dict[str, Any]:
        """What lets a journal be replayed, unless the configuration leaves it out."""
        if not self._config.storage.record_packets:
            return {}
        outputs = outcome.outputs
        return {
            "packet": outcome.situation.packet,
            "mask": _named(outcome.situation.observation.legality._asdict()),
            "outputs": None if outputs is None else _named(outputs._asdict()),
        }

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
        counted = stage if isinstance(error, DeadlineExceededError | PolicyFailureError) else None
        admitted = replace(self._state, risk=state.risk)
        after, failure = fail(
            self._config,
            admitted,
            packet,
            error,
            stage=counted,
            policy_version=self._choice.version,
            now_ns=self._clock(),
            report_id=f"fr-{uuid.uuid4()}",
        )
        record = StepRecord(
            report=failure.report,
            action="",
            mode=self._mode.value,
            state=state_to_json(after, registries=False),
            packet=packet if valid and self._config.storage.record_packets else None,
        )
        self._telemetry.emit(failure_packet(failure, self._indicators(self._state.steps)))
        self._append(RecordType.STEP, encode_step(record))
        self._state = after
        raise error

    def _append(self, kind: RecordType, payload: bytes) -> Ticket:
        try:
            return self._journal.append(kind, payload)
        except PersistenceError as error:
            attributes = {"error": type(error).__name__, "message": str(error)}
            self._tell((Event("persistence_failure", TelemetryLevel.CRITICAL, attributes),))
            raise

    def _tell(self, events: tuple[Event, ...]) -> None:
        if events:
            indicators = self._indicators(self._state.steps)
            self._telemetry.emit(status_packet(events, indicators, self._clock()))

    def _indicators(self, step_index: int) -> dict[str, str]:
        deadlines = self._config.deadlines
        return {
            "policy": self._choice.version,
            "policy_arch": type(self._choice.policy).__name__,
            "mode": self._mode.value,
            "timeout_budget_ms": f"{deadlines.inference_ms:g}",
            "metadata_timeout_budget_ms": f"{deadlines.metadata_ms:g}",
            "step_index": str(step_index),
        }


def _secret(config: TamiyoConfig, given: bytes | None) -> Secret:
    name = config.security.secret_env
    found = os.environb.get(name.encode()) if given is None else given
    if found is None:
        raise MissingSecretError(
            f"no signing secret: pass secret=… or set the variable {name} to at least 16 bytes",
            variable=name,
        )
    secret = Secret(found)
    secret.check_strength()
    return secret


def _named(arrays: Mapping[str, Any]) -> dict[str, np.ndarray]:
    return {name: np.asarray(array) for name, array in arrays.items()}
