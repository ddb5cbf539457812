"""Decision steps of a controller, one after another.

Pure functions decide. This performs the effects around them, in order: resolve blueprints, ask the
policy, sign the command, write the record, and only then update the state and return the decision.
"""

from __future__ import annotations

import os
import random
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, NoReturn

from tamiyo_jax.config import TamiyoConfig
from tamiyo_jax.contracts import (
    Event,
    Metric,
    Secret,
    SystemStatePacket,
    TelemetryLevel,
    encode_packet,
    sign,
    validate_packet,
)
from tamiyo_jax.controller import (
    GUARD_POLICY,
    Answer,
    Mode,
    Outcome,
    Situation,
    TamiyoState,
    conclude,
    fail,
    find_forgotten_runs,
    observe_encoded,
    select_run,
)
from tamiyo_jax.decision import Decision, Latency
from tamiyo_jax.errors import (
    DeadlineExceededError,
    PersistenceError,
    PolicyFailureError,
    TamiyoError,
    WorkerUnavailableError,
)
from tamiyo_jax.inference import DeployedPolicy
from tamiyo_jax.journal import Ticket
from tamiyo_jax.policy import ArrayPolicy
from tamiyo_jax.risk import RiskState, Stage, admit_call, call_succeeded
from tamiyo_jax.service._assembly import Parts
from tamiyo_jax.service._recording import failure_record, make_decision, outcome_record
from tamiyo_jax.storage import StepRecord
from tamiyo_jax.telemetry import failure_packet, outcome_packet, status_packet

__all__ = ["Begun", "Stepper"]

# What a stage's breaker counts: calls that were made and not answered as they should be.
_COUNTED: Mapping[Stage, tuple[type[TamiyoError], ...]] = {
    "inference": (DeadlineExceededError, PolicyFailureError),
    "metadata": (DeadlineExceededError, PersistenceError),
}


@dataclass
class _Attempt:
    """A step in progress, and what its failure record needs.

    Attributes:
      packet: what it is about.
      state: the state that it works on.
      before: the state without the trial that `state` may have been admitted for.
      start: the state of the controller before the step.
      valid: whether the packet was found valid.
      stage: the stage in progress; None between stages.
      started, resolved, encoded: seconds on the performance counter.
    """

    packet: SystemStatePacket
    state: TamiyoState[Any]
    before: TamiyoState[Any]
    start: TamiyoState[Any]
    valid: bool = False
    stage: Stage | None = None
    started: float = 0.0
    resolved: float = 0.0
    encoded: float = 0.0

    @cached_property
    def packet_bytes(self) -> bytes:
        """The packet as the journal keeps it."""
        return encode_packet(self.packet)


@dataclass(frozen=True, slots=True)
class Begun:
    """A step up to the policy; see `Stepper.begin`."""

    attempt: _Attempt
    situation: Situation


class Stepper:
    """Makes decisions. The caller makes one call at a time.

    Attributes:
      state: the state after the last step.
      deployed: the policy and where it runs.
      mode: act, shadow or guard.
      last: the situation of the last step.
    """

    def __init__(
        self,
        config: TamiyoConfig,
        parts: Parts,
        deployed: DeployedPolicy,
        *,
        secret: Secret,
        mode: Mode,
        clock: Callable[[], int],
    ) -> None:
        self.state = parts.state
        self.deployed = deployed
        self.mode = mode
        self.last: Situation | None = None
        self._config = config
        self._parts = parts
        self._secret = secret
        self._clock = clock
        self._ids = random.Random(os.urandom(32))

    @property
    def policy_version(self) -> str:
        """The version of the deciding policy, as in annotations and reports."""
        return GUARD_POLICY if self.mode is Mode.GUARD else self.deployed.choice.version

    def step(self, packet: SystemStatePacket) -> Decision:
        """Decide on one packet; see `Tamiyo.step`."""
        attempt = self._begin(packet, self.state)
        try:
            return self._try_step(attempt)
        except TamiyoError:
            raise
        except BaseException as error:
            self._abandon(attempt, error)
            raise

    def _try_step(self, attempt: _Attempt) -> Decision:
        try:
            situation = self._observe(attempt)
            answer = None
            if self.mode is not Mode.GUARD:
                self._admit(attempt, "inference")
                self.prepare(situation, attempt.state)
                budget_ms = self._config.deadlines.inference_ms
                aside = partial(self._prepare_records, [(attempt, situation)])
                answer = self.deployed.ask(attempt.state, situation, budget_ms, aside)
            after, outcome = self._conclude(attempt.state, situation, answer)
            if answer is not None:
                after = self._count_success(after, "inference")
        except TamiyoError as error:
            self._fail(attempt, error)
        return self._commit(attempt, after, outcome)

    def _abandon(self, attempt: _Attempt, error: BaseException) -> None:
        """Put a step on record that something else ended, as a signal handler that raises."""
        recorded = self._parts.storage.state
        if recorded is not None and recorded is not attempt.start:
            self.state = recorded  # its record was written, and counts
            return
        with suppress(TamiyoError):  # `error` goes on
            self._fail(attempt, TamiyoError(f"the step was ended by {type(error).__name__}"))

    def step_many(self, packets: Sequence[SystemStatePacket]) -> list[Decision | TamiyoError]:
        """Decide on packets as if one after another; see `Tamiyo.step_many`."""
        results: list[Decision | TamiyoError] = []
        try:
            while len(results) < len(packets):
                results += self._step_some(packets[len(results) :])
        except BaseException:  # ended by a signal handler: what is on record counts
            self.state = self._parts.storage.state or self.state
            raise
        return results

    def begin(self, packet: SystemStatePacket) -> Begun | TamiyoError:
        """Make a step up to the policy, for a caller that asks it for several controllers at once.

        Returns:
          What `end` needs next; or the error of the step, which is on record.
        """
        attempt = self._begin(packet, self.state)
        try:
            situation = self._observe(attempt)
            self._admit(attempt, "inference")
        except TamiyoError as error:
            return self._record_failure(attempt, error)
        return Begun(attempt, situation)

    def end(self, begun: Begun, answer: Answer[Any] | TamiyoError) -> Decision | TamiyoError:
        """Make the rest of a step, with what the policy answered or raised."""
        attempt = begun.attempt
        try:
            if isinstance(answer, TamiyoError):
                raise answer
            after, outcome = self._conclude(attempt.state, begun.situation, answer)
            after = self._count_success(after, "inference")
        except TamiyoError as error:
            return self._record_failure(attempt, error)
        try:
            return self._commit(attempt, after, outcome)
        except TamiyoError as error:
            return error

    def select_run(self, state: TamiyoState[Any], run_id: str) -> TamiyoState[Any]:
        """The state with a run as the current one; see `controller.select_run`."""
        limit = self._config.storage.max_runs
        return select_run(state, run_id, self.deployed.choice.policy, max_runs=limit)

    def find_forgotten_runs(
        self, before: TamiyoState[Any], after: TamiyoState[Any]
    ) -> tuple[Event, ...]:
        """See `controller.find_forgotten_runs`."""
        return find_forgotten_runs(before, after, self._config.storage.max_runs)

    def situation_of(self, packet: SystemStatePacket) -> Situation:
        """Observe a packet in the current state.

        Raises:
          TamiyoError: its blueprints cannot be had, or they do not fit together.
        """
        arrays, candidates = self._parts.resolver.resolve(
            packet, self._config.deadlines.metadata_ms
        )
        return observe_encoded(self._config, self.state, packet, arrays, candidates)

    def prepare(self, situation: Situation, state: TamiyoState[Any]) -> None:
        """Compile for a situation's layout if that is new."""
        if self.deployed.prepare(state, situation):
            self.emit((Event("layout_prepared", TelemetryLevel.INFO),))

    def swap(
        self, deployed: DeployedPolicy | None, state: TamiyoState[Any], record: Callable[[], Ticket]
    ) -> None:
        """Between two steps: record, and only then go on from another state, with another policy.

        The caller closes the policy that was deployed before, after it has let steps go on.
        """
        try:
            self.record(record)
        except BaseException:
            if deployed is not None:
                deployed.close()
            raise
        self.state = state
        if deployed is not None:
            self.deployed = deployed

    def record(self, append: Callable[[], Ticket]) -> Ticket:
        """Write a record; a failure to do so is also emitted as an event."""
        try:
            return append()
        except PersistenceError as error:
            self.emit_persistence_failure(error)
            raise

    def emit_persistence_failure(self, error: PersistenceError) -> None:
        """Emit that a record could not be written."""
        attributes = {"error": type(error).__name__, "message": str(error)}
        self.emit((Event("persistence_failure", TelemetryLevel.CRITICAL, attributes),))

    def emit(self, events: tuple[Event, ...]) -> None:
        """Emit events to the sinks."""
        if events:
            indicators = self._indicators(self.state.steps)
            self._parts.telemetry.emit(status_packet(events, indicators, self._clock()))

    def _prepare_records(self, taken: Sequence[tuple[_Attempt, Situation]]) -> None:
        """Compute, while the policy runs, what `_conclude` and `_commit` need later."""
        for attempt, situation in taken:
            _ = self._packet_bytes(attempt), situation.events

    def _packet_bytes(self, attempt: _Attempt) -> bytes | None:
        """The packet as the journal keeps it, if it does."""
        return attempt.packet_bytes if self._keeps_packet(attempt) else None

    def _keeps_packet(self, attempt: _Attempt) -> bool:
        return attempt.valid and self._config.storage.record_packets

    def _begin(self, packet: SystemStatePacket, state: TamiyoState[Any]) -> _Attempt:
        return _Attempt(packet, state, state, state, started=time.perf_counter())

    def _observe(self, attempt: _Attempt) -> Situation:
        packet = attempt.packet
        validate_packet(packet, max_metrics=self._config.packet.max_metrics)
        attempt.valid = True
        self._begin_at(attempt, attempt.state)
        self._admit(attempt, "metadata")
        arrays, candidates = self._parts.resolver.resolve(
            packet, self._config.deadlines.metadata_ms
        )
        attempt.resolved = time.perf_counter()
        attempt.state = attempt.before = self._count_success(attempt.state, "metadata")
        attempt.stage = None
        situation = observe_encoded(self._config, attempt.state, packet, arrays, candidates)
        attempt.encoded = time.perf_counter()
        return situation

    def _step_some(self, packets: Sequence[SystemStatePacket]) -> list[Decision | TamiyoError]:
        """Decide on as many of the first packets as can share a pass, at least one."""
        batched = (
            isinstance(self.deployed.choice.policy, ArrayPolicy) and self.mode is not Mode.GUARD
        )
        if len(packets) == 1 or not batched:
            return [self._step_or_error(packets[0])]
        taken, failed = self._observe_some(packets)
        results = self._decide_some(taken) if taken else []
        if failed is not None and len(results) == len(taken):
            results.append(self._record_failure_behind(*failed))
        return results

    def _observe_some(
        self, packets: Sequence[SystemStatePacket]
    ) -> tuple[list[tuple[_Attempt, Situation]], tuple[_Attempt, TamiyoError] | None]:
        """Observe packets up to one of another layout, or one that fails."""
        taken: list[tuple[_Attempt, Situation]] = []
        state = self.state
        for packet in packets:
            attempt = self._begin(packet, state)
            try:
                situation = self._observe(attempt)
            except TamiyoError as error:
                return taken, (attempt, error)
            if taken and situation.observation.layout != taken[0][1].observation.layout:
                break
            taken.append((attempt, situation))
            state = replace(
                attempt.state,
                registries=situation.registries,
                missing_features=situation.missing,
                truncated=situation.truncated,
            )
        return taken, None

    def _decide_some(
        self, taken: Sequence[tuple[_Attempt, Situation]]
    ) -> list[Decision | TamiyoError]:
        """Decide on observed packets of one layout, in one pass over the policy's weights.

        The pass ends after a packet that failed, and after a command that moved the host's
        breaker: later answers were computed as if neither had happened.
        """
        attempts, situations = zip(*taken, strict=True)
        first: _Attempt = attempts[0]
        try:
            self._admit(first, "inference")
            self.prepare(situations[0], first.state)
            if self.deployed.prepare_many(first.state, situations):
                self.emit((Event("batch_prepared", TelemetryLevel.INFO),))
            budget_ms = self._config.deadlines.inference_ms * len(taken)
            aside = partial(self._prepare_records, taken)
            answers = self.deployed.ask_many(first.state, situations, budget_ms, aside)
        except TamiyoError as error:
            failed = self._record_failure(first, error)  # the one call counts once
            return [
                failed,
                *(self._record_failure_behind(attempt, error) for attempt in attempts[1:]),
            ]
        results: list[Decision | TamiyoError] = []
        state = first.state
        for (attempt, situation), answer in zip(taken, answers, strict=True):
            self._begin_at(attempt, state)
            breaker = attempt.state.host_breaker
            attempt.stage = "inference"
            try:
                after, outcome = self._conclude(attempt.state, situation, answer)
                after = self._count_success(after, "inference")
            except TamiyoError as error:
                return [*results, self._record_failure(attempt, error)]
            try:
                results.append(self._commit(attempt, after, outcome))
            except TamiyoError as error:
                return [*results, error]
            state = self.state
            if state.host_breaker is not breaker:
                break
        return results

    def _step_or_error(self, packet: SystemStatePacket) -> Decision | TamiyoError:
        try:
            return self.step(packet)
        except TamiyoError as error:
            return error

    def _record_failure(self, attempt: _Attempt, error: TamiyoError) -> TamiyoError:
        """Record a failed step; its stage's breaker counts it only if the call was admitted."""
        try:
            self._fail(attempt, error)
        except TamiyoError as raised:
            return raised

    def _record_failure_behind(self, attempt: _Attempt, error: TamiyoError) -> TamiyoError:
        """`_record_failure` for an attempt that began before the state was what it is now."""
        if attempt.valid:
            self._begin_at(attempt, self.state)
        return self._record_failure(attempt, error)

    def _begin_at(self, attempt: _Attempt, state: TamiyoState[Any]) -> None:
        """Let an attempt go on from a state, with its packet's run as the current one."""
        selected = self.select_run(state, attempt.packet.training_run_id)
        attempt.state = attempt.before = selected

    def _admit(self, attempt: _Attempt, stage: Stage) -> None:
        attempt.stage = stage
        risk = admit_call(attempt.state.risk, stage, self._clock())
        attempt.state = _with_risk(attempt.state, risk)

    def _count_success(self, state: TamiyoState[Any], stage: Stage) -> TamiyoState[Any]:
        risk, events = call_succeeded(state.risk, stage)
        self.emit(events)
        return _with_risk(state, risk)

    def _fail(self, attempt: _Attempt, error: TamiyoError) -> NoReturn:
        """Record a failed step and raise; nothing else of the state changes."""
        tried = not isinstance(error, WorkerUnavailableError)  # without a worker nothing was tried
        stage = attempt.stage if tried else None
        state = attempt.state if tried else attempt.before
        base = self.state
        if attempt.valid:
            base = replace(self.select_run(base, attempt.packet.training_run_id), risk=state.risk)
        after, failure = fail(
            self._config,
            base,
            attempt.packet,
            error,
            stage=stage if stage and isinstance(error, _COUNTED[stage]) else None,
            policy_version=self.policy_version,
            now_ns=self._clock(),
            report_id=f"fr-{self._new_id()}",
        )
        packet = attempt.packet if self._keeps_packet(attempt) else None
        valid = attempt.packet if attempt.valid else None
        indicators = self._indicators(self.state.steps, valid)
        self._parts.telemetry.emit(failure_packet(failure, indicators))
        record = failure_record(failure.report, packet, after, self.mode)
        self._record_step(attempt, record, after)
        before, self.state = self.state, after
        self.emit(self.find_forgotten_runs(before, after))
        raise error

    def _conclude(
        self, state: TamiyoState[Any], situation: Situation, answer: Answer[Any] | None
    ) -> tuple[TamiyoState[Any], Outcome]:
        return conclude(
            self._config,
            state,
            situation,
            answer,
            mode=self.mode,
            policy_version=self.policy_version,
            now_ns=self._clock(),
            command_id=self._new_id(),
            report_id=f"fr-{self._new_id()}",
        )

    def _commit(self, attempt: _Attempt, after: TamiyoState[Any], outcome: Outcome) -> Decision:
        """Sign, write the record, and only then update the state and return the decision."""
        shadow = self.mode is Mode.SHADOW
        command = outcome.command
        if command is not None and not shadow:
            command = sign(command, self._secret)
        concluded = time.perf_counter()
        record = outcome_record(
            outcome,
            command,
            self.state,
            after,
            self.mode,
            with_packet=self._keeps_packet(attempt),
        )
        ticket = self._record_step(attempt, record, after)
        before, self.state, self.last = self.state, after, outcome.situation
        self.emit(self.find_forgotten_runs(before, after))
        now = time.perf_counter()
        latency = Latency(
            step_ms=(now - attempt.started) * 1e3,
            metadata_ms=(attempt.resolved - attempt.started) * 1e3,
            encode_ms=(attempt.encoded - attempt.resolved) * 1e3,
            inference_ms=outcome.report.metrics.get("inference_ms", 0.0),
            append_ms=(now - concluded) * 1e3,
        )
        decision = make_decision(outcome, command, latency, ticket, shadow=shadow)
        if self._parts.telemetry.wanted:
            indicators = self._indicators(before.steps, attempt.packet)
            packet = outcome_packet(outcome, after, decision, indicators, self._metrics())
            self._parts.telemetry.emit(packet)
        return decision

    def _record_step(
        self, attempt: _Attempt, record: StepRecord, after: TamiyoState[Any]
    ) -> Ticket:
        packet = self._packet_bytes(attempt)
        ticket = self.record(lambda: self._parts.storage.append_step(record, after, packet))
        if self._parts.publisher is not None:
            self._parts.publisher.notify()
        return ticket

    def _new_id(self) -> str:
        # Unique as uuid4() is, without a system call for each: ids are no secrets.
        return str(uuid.UUID(int=self._ids.getrandbits(128), version=4))

    def _metrics(self) -> tuple[Metric, ...]:
        parts = self._parts
        return (
            *self.deployed.runner.metrics(),
            *(() if parts.metadata is None else parts.metadata.metrics("tamiyo.metadata_worker")),
            *parts.resolver.metrics(),
            *(() if parts.publisher is None else parts.publisher.metrics()),
            parts.telemetry.metric(),
        )

    def _indicators(
        self, step_index: int, packet: SystemStatePacket | None = None
    ) -> dict[str, str]:
        """Indicators of every telemetry packet; `packet` is the valid state packet it is about."""
        deadlines = self._config.deadlines
        training = {} if packet is None else {"global_step": str(packet.global_step)}
        return training | {
            "policy": self.policy_version,
            "policy_arch": type(self.deployed.choice.policy).__name__,
            "mode": self.mode.value,
            "timeout_budget_ms": f"{deadlines.inference_ms:g}",
            "metadata_timeout_budget_ms": f"{deadlines.metadata_ms:g}",
            "step_index": str(step_index),
        }


def _with_risk(state: TamiyoState[Any], risk: RiskState) -> TamiyoState[Any]:
    return state if risk is state.risk else replace(state, risk=risk)
