"""From packets to decisions: the steps of a controller, one after another.

What is decided comes from pure functions; this performs what they ask for, in order: resolve,
ask, sign, write, and only then let the state move and the answer out.
"""

from __future__ import annotations

import os
import random
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
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
    observe_encoded,
)
from tamiyo_jax.errors import (
    DeadlineExceededError,
    PersistenceError,
    PolicyFailureError,
    TamiyoError,
    WorkerUnavailableError,
)
from tamiyo_jax.policy import ArrayPolicy
from tamiyo_jax.risk import RiskState, Stage, admit_call, call_succeeded
from tamiyo_jax.runtime.assembly import Parts
from tamiyo_jax.runtime.decision import Decision, Latency
from tamiyo_jax.runtime.packets import failure_packet, outcome_packet, status_packet
from tamiyo_jax.runtime.recording import decided, failure_record, outcome_record
from tamiyo_jax.runtime.seat import Seat
from tamiyo_jax.storage import StepRecord, Ticket

__all__ = ["Stepper"]

# What a stage's breaker counts: calls that were made and not answered as they should be.
_COUNTED: Mapping[Stage, tuple[type[TamiyoError], ...]] = {
    "inference": (DeadlineExceededError, PolicyFailureError),
    "metadata": (DeadlineExceededError, PersistenceError),
}


@dataclass
class _Attempt:
    """One step on its way, and what must be known should it fail.

    Attributes:
      packet: what it is about.
      state: the state that it works on.
      before: the state without the trial that `state` may have been admitted for.
      valid: whether the packet was found valid.
      stage: the stage that is under way.
      started, resolved, encoded: seconds on the performance counter.
    """

    packet: SystemStatePacket
    state: TamiyoState[Any]
    before: TamiyoState[Any]
    valid: bool = False
    stage: Stage | None = None
    started: float = 0.0
    resolved: float = 0.0
    encoded: float = 0.0

    @cached_property
    def packet_bytes(self) -> bytes:
        """The packet as the journal keeps it."""
        return encode_packet(self.packet)


class Stepper:
    """Makes decisions; whoever holds it sees to it that one call is made at a time.

    Attributes:
      state: the state after the last step.
      seat: what decides, and where it runs.
      mode: act, shadow or guard.
      last: the situation of the last step.
    """

    def __init__(
        self,
        config: TamiyoConfig,
        parts: Parts,
        seat: Seat,
        *,
        secret: Secret,
        mode: Mode,
        clock: Callable[[], int],
    ) -> None:
        self.state = parts.state
        self.seat = seat
        self.mode = mode
        self.last: Situation | None = None
        self._config = config
        self._parts = parts
        self._secret = secret
        self._clock = clock
        self._ids = random.Random(os.urandom(32))

    @property
    def policy_version(self) -> str:
        """What annotations and reports call that which decides."""
        return GUARD_POLICY if self.mode is Mode.GUARD else self.seat.choice.version

    def step(self, packet: SystemStatePacket) -> Decision:
        """Decide on one packet; see `Tamiyo.step`."""
        attempt = self._begin(packet, self.state)
        try:
            situation = self._observe(attempt)
            answer = None
            if self.mode is not Mode.GUARD:
                self._admit(attempt, "inference")
                self.prepare(situation, attempt.state)
                budget_ms = self._config.deadlines.inference_ms
                aside = partial(self._prepare_records, [(attempt, situation)])
                answer = self.seat.ask(attempt.state, situation, budget_ms, aside)
            after, outcome = self._conclude(attempt.state, situation, answer)
            if answer is not None:
                after = self._succeed(after, "inference")
        except TamiyoError as error:
            self._fail(attempt, error)
        return self._commit(attempt, after, outcome)

    def step_many(self, packets: Sequence[SystemStatePacket]) -> list[Decision | TamiyoError]:
        """Decide on packets as if one after another; see `Tamiyo.step_many`."""
        results: list[Decision | TamiyoError] = []
        while len(results) < len(packets):
            results += self._step_some(packets[len(results) :])
        return results

    def situation_of(self, packet: SystemStatePacket) -> Situation:
        """What a packet looks like in the state that rules.

        Raises:
          TamiyoError: its blueprints cannot be had, or they do not fit together.
        """
        arrays, candidates = self._parts.resolver.resolve(
            packet, self._config.deadlines.metadata_ms
        )
        return observe_encoded(self._config, self.state, packet, arrays, candidates)

    def prepare(self, situation: Situation, state: TamiyoState[Any]) -> None:
        """Compile for a situation's layout if that is new."""
        if self.seat.prepare(state, situation):
            self.tell((Event("layout_prepared", TelemetryLevel.INFO),))

    def swap(
        self, seat: Seat | None, state: TamiyoState[Any], record: Callable[[], Ticket]
    ) -> None:
        """Between two steps: record, and only then let another state, and seat, rule."""
        try:
            self.record(record)
        except BaseException:
            if seat is not None:
                seat.close()
            raise
        self.state = state
        if seat is not None:
            self.seat, old = seat, self.seat
            old.close()

    def record(self, append: Callable[[], Ticket]) -> Ticket:
        """Write a record; operators are told where that fails."""
        try:
            return append()
        except PersistenceError as error:
            self.tell_persistence_failure(error)
            raise

    def tell_persistence_failure(self, error: PersistenceError) -> None:
        """Tell the sinks that a record could not be kept."""
        attributes = {"error": type(error).__name__, "message": str(error)}
        self.tell((Event("persistence_failure", TelemetryLevel.CRITICAL, attributes),))

    def tell(self, events: tuple[Event, ...]) -> None:
        """Hand events to the sinks."""
        if events:
            indicators = self._indicators(self.state.steps)
            self._parts.telemetry.emit(status_packet(events, indicators, self._clock()))

    def _prepare_records(self, taken: Sequence[tuple[_Attempt, Situation]]) -> None:
        """Find, while the policy is at work, what `_conclude` and `_commit` read again."""
        for attempt, situation in taken:
            _ = self._packet_bytes(attempt), situation.events

    def _packet_bytes(self, attempt: _Attempt) -> bytes | None:
        """The packet as the journal keeps it, if it does."""
        return attempt.packet_bytes if self._keeps_packet(attempt) else None

    def _keeps_packet(self, attempt: _Attempt) -> bool:
        return attempt.valid and self._config.storage.record_packets

    def _begin(self, packet: SystemStatePacket, state: TamiyoState[Any]) -> _Attempt:
        return _Attempt(packet, state, state, started=time.perf_counter())

    def _observe(self, attempt: _Attempt) -> Situation:
        packet = attempt.packet
        validate_packet(packet, max_metrics=self._config.packet.max_metrics)
        attempt.valid = True
        self._admit(attempt, "metadata")
        arrays, candidates = self._parts.resolver.resolve(
            packet, self._config.deadlines.metadata_ms
        )
        attempt.resolved = time.perf_counter()
        attempt.state = attempt.before = self._succeed(attempt.state, "metadata")
        attempt.stage = None
        situation = observe_encoded(self._config, attempt.state, packet, arrays, candidates)
        attempt.encoded = time.perf_counter()
        return situation

    def _step_some(self, packets: Sequence[SystemStatePacket]) -> list[Decision | TamiyoError]:
        """Decide on the first packets, at least one: as many as can share a pass."""
        batched = isinstance(self.seat.choice.policy, ArrayPolicy) and self.mode is not Mode.GUARD
        if len(packets) == 1 or not batched:
            return [self._tried(packets[0])]
        taken, failed = self._observe_some(packets)
        results = self._decide_some(taken) if taken else []
        if failed is not None and len(results) == len(taken):
            results.append(self._failed_behind(*failed))
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

        What the packets behind a failed one were answered rests on it, and so does what they
        may ask of a host's breaker that a command has moved: there the pass ends.
        """
        attempts, situations = zip(*taken, strict=True)
        first: _Attempt = attempts[0]
        try:
            self._admit(first, "inference")
            self.prepare(situations[0], first.state)
            if self.seat.prepare_many(first.state, situations):
                self.tell((Event("batch_prepared", TelemetryLevel.INFO),))
            budget_ms = self._config.deadlines.inference_ms * len(taken)
            aside = partial(self._prepare_records, taken)
            answers = self.seat.ask_many(first.state, situations, budget_ms, aside)
        except TamiyoError as error:
            failed = self._failed(first, error)  # the one call counts once
            return [failed, *(self._failed_behind(attempt, error) for attempt in attempts[1:])]
        results: list[Decision | TamiyoError] = []
        breaker, state = self.state.host_breaker, first.state
        for (attempt, situation), answer in zip(taken, answers, strict=True):
            attempt.state = attempt.before = state
            attempt.stage = "inference"
            try:
                after, outcome = self._conclude(state, situation, answer)
                after = self._succeed(after, "inference")
            except TamiyoError as error:
                return [*results, self._failed(attempt, error)]
            try:
                results.append(self._commit(attempt, after, outcome))
            except TamiyoError as error:
                return [*results, error]
            state = self.state
            if state.host_breaker is not breaker:
                break
        return results

    def _tried(self, packet: SystemStatePacket) -> Decision | TamiyoError:
        try:
            return self.step(packet)
        except TamiyoError as error:
            return error

    def _failed(self, attempt: _Attempt, error: TamiyoError) -> TamiyoError:
        """Put a failed step on record; only one that was admitted counts for its breaker."""
        try:
            self._fail(attempt, error)
        except TamiyoError as raised:
            return raised

    def _failed_behind(self, attempt: _Attempt, error: TamiyoError) -> TamiyoError:
        """`_failed` for an attempt that began before the state was what it is now."""
        attempt.state = attempt.before = self.state
        return self._failed(attempt, error)

    def _admit(self, attempt: _Attempt, stage: Stage) -> None:
        attempt.stage = stage
        risk = admit_call(attempt.state.risk, stage, self._clock())
        attempt.state = _with_risk(attempt.state, risk)

    def _succeed(self, state: TamiyoState[Any], stage: Stage) -> TamiyoState[Any]:
        risk, events = call_succeeded(state.risk, stage)
        self.tell(events)
        return _with_risk(state, risk)

    def _fail(self, attempt: _Attempt, error: TamiyoError) -> NoReturn:
        """Put a failed step on record and raise; nothing else of the state changes."""
        tried = not isinstance(error, WorkerUnavailableError)  # that is no trial either
        stage = attempt.stage if tried else None
        state = attempt.state if tried else attempt.before
        after, failure = fail(
            self._config,
            replace(self.state, risk=state.risk),
            attempt.packet,
            error,
            stage=stage if stage and isinstance(error, _COUNTED[stage]) else None,
            policy_version=self.policy_version,
            now_ns=self._clock(),
            report_id=f"fr-{self._new_id()}",
        )
        packet = attempt.packet if self._keeps_packet(attempt) else None
        told = attempt.packet if attempt.valid else None
        indicators = self._indicators(self.state.steps, told)
        self._parts.telemetry.emit(failure_packet(failure, indicators))
        record = failure_record(failure.report, packet, after, self.mode)
        self._record_step(attempt, record, after)
        self.state = after
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
        """Sign, write, and only then let the state move and the answer out."""
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
        now = time.perf_counter()
        latency = Latency(
            step_ms=(now - attempt.started) * 1e3,
            metadata_ms=(attempt.resolved - attempt.started) * 1e3,
            encode_ms=(attempt.encoded - attempt.resolved) * 1e3,
            inference_ms=outcome.report.metrics.get("inference_ms", 0.0),
            append_ms=(now - concluded) * 1e3,
        )
        decision = decided(outcome, command, latency, ticket, shadow=shadow)
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
            *self.seat.runner.metrics(),
            *(() if parts.metadata is None else parts.metadata.metrics("tamiyo.metadata_worker")),
            *parts.resolver.metrics(),
            *(() if parts.publisher is None else parts.publisher.metrics()),
            parts.telemetry.metric(),
        )

    def _indicators(
        self, step_index: int, packet: SystemStatePacket | None = None
    ) -> dict[str, str]:
        """What every telemetry packet says; `packet` is the valid one that it is about."""
        deadlines = self._config.deadlines
        training = {} if packet is None else {"global_step": str(packet.global_step)}
        return training | {
            "policy": self.policy_version,
            "policy_arch": type(self.seat.choice.policy).__name__,
            "mode": self.mode.value,
            "timeout_budget_ms": f"{deadlines.inference_ms:g}",
            "metadata_timeout_budget_ms": f"{deadlines.metadata_ms:g}",
            "step_index": str(step_index),
        }


def _with_risk(state: TamiyoState[Any], risk: RiskState) -> TamiyoState[Any]:
    return state if risk is state.risk else replace(state, risk=risk)
