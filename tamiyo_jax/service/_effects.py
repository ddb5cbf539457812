"""The parts of a step with their effects: blueprints are resolved, calls admitted, records written.

A step begins as an `Attempt` and ends committed, or on record as failed. Only what is on record
changes the state.
"""

from __future__ import annotations

import os
import random
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NoReturn

from tamiyo_jax.config import TamiyoConfig
from tamiyo_jax.contracts import Secret, SystemStatePacket, sign, validate_packet
from tamiyo_jax.controller import (
    Answer,
    Mode,
    Outcome,
    Situation,
    TamiyoState,
    conclude,
    fail,
    observe_encoded,
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
from tamiyo_jax.risk import RiskState, Stage, admit_call, call_succeeded
from tamiyo_jax.service._assembly import Parts
from tamiyo_jax.service._attempt import Attempt
from tamiyo_jax.service._recording import failure_record, make_decision, outcome_record
from tamiyo_jax.service._standing import Standing
from tamiyo_jax.storage import StepRecord
from tamiyo_jax.telemetry import failure_packet, outcome_packet

__all__ = ["StepEffects"]

# What a stage's breaker counts: calls that were made and not answered as they should be.
_COUNTED: Mapping[Stage, tuple[type[TamiyoError], ...]] = {
    "inference": (DeadlineExceededError, PolicyFailureError),
    "metadata": (DeadlineExceededError, PersistenceError),
}


class StepEffects(Standing):
    """What a controller does around the pure functions that decide; `Stepper` puts it in order."""

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
        super().__init__(config, parts, deployed, mode=mode, clock=clock)
        self._secret = secret
        self._ids = random.Random(os.urandom(32))

    def begin_attempt(self, packet: SystemStatePacket, state: TamiyoState[Any]) -> Attempt:
        """Begin a step on a packet that is not validated yet."""
        return Attempt(packet, state, state, state, started=time.perf_counter())

    def begin_at(self, attempt: Attempt, state: TamiyoState[Any]) -> None:
        """Let an attempt go on from a state, with its packet's run as the current one."""
        selected = self.select_run(state, attempt.packet.training_run_id)
        attempt.state = attempt.before = selected

    def observe(self, attempt: Attempt) -> Situation:
        """Validate the packet, resolve its blueprints and encode them together.

        Raises:
          TamiyoError: the packet is invalid, or its blueprints cannot be had or do not fit.
        """
        packet = attempt.packet
        validate_packet(packet, max_metrics=self._config.packet.max_metrics)
        attempt.valid = True
        self.begin_at(attempt, attempt.state)
        self.admit(attempt, "metadata")
        arrays, candidates = self._parts.resolver.resolve(
            packet, self._config.deadlines.metadata_ms
        )
        attempt.resolved = time.perf_counter()
        attempt.state = attempt.before = self.count_success(attempt.state, "metadata")
        attempt.stage = None
        situation = observe_encoded(self._config, attempt.state, packet, arrays, candidates)
        if self.mode is not Mode.GUARD:
            _ = situation.observation  # encoded here, and not within the policy's deadline
        attempt.encoded = time.perf_counter()
        return situation

    def admit(self, attempt: Attempt, stage: Stage) -> None:
        """Ask the breaker of a stage whether it may be tried.

        Raises:
          TamiyoError: the breaker is open.
        """
        attempt.stage = stage
        risk = admit_call(attempt.state.risk, stage, self._clock())
        attempt.state = _with_risk(attempt.state, risk)

    def count_success(self, state: TamiyoState[Any], stage: Stage) -> TamiyoState[Any]:
        """Return the state after a stage's breaker has counted a success."""
        risk, events = call_succeeded(state.risk, stage)
        self.emit(events)
        return _with_risk(state, risk)

    def prepare_records(self, taken: Sequence[tuple[Attempt, Situation]]) -> None:
        """Compute, while the policy runs, what `conclude_step` and `commit` need later."""
        for attempt, situation in taken:
            _ = self._packet_bytes(attempt), situation.events

    def conclude_step(
        self, state: TamiyoState[Any], situation: Situation, answer: Answer[Any] | None
    ) -> tuple[TamiyoState[Any], Outcome]:
        """Turn an answer into an outcome and the next state; see `controller.conclude`."""
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

    def commit(self, attempt: Attempt, after: TamiyoState[Any], outcome: Outcome) -> Decision:
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
            indicators = self.indicators(before.steps, attempt.packet)
            packet = outcome_packet(outcome, after, decision, indicators, self.metrics())
            self._parts.telemetry.emit(packet)
        return decision

    def fail_step(self, attempt: Attempt, error: TamiyoError) -> NoReturn:
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
        indicators = self.indicators(self.state.steps, valid)
        self._parts.telemetry.emit(failure_packet(failure, indicators))
        record = failure_record(failure.report, packet, after, self.mode)
        self._record_step(attempt, record, after)
        before, self.state = self.state, after
        self.emit(self.find_forgotten_runs(before, after))
        raise error

    def record_failure(self, attempt: Attempt, error: TamiyoError) -> TamiyoError:
        """Record a failed step; its stage's breaker counts it only if the call was admitted."""
        try:
            self.fail_step(attempt, error)
        except TamiyoError as raised:
            return raised

    def record_failure_behind(self, attempt: Attempt, error: TamiyoError) -> TamiyoError:
        """`record_failure` for an attempt that began before the state was what it is now."""
        if attempt.valid:
            self.begin_at(attempt, self.state)
        return self.record_failure(attempt, error)

    def _record_step(self, attempt: Attempt, record: StepRecord, after: TamiyoState[Any]) -> Ticket:
        packet = self._packet_bytes(attempt)
        ticket = self.record(lambda: self._parts.storage.append_step(record, after, packet))
        if self._parts.publisher is not None:
            self._parts.publisher.notify()
        return ticket

    def _packet_bytes(self, attempt: Attempt) -> bytes | None:
        """The packet as the journal keeps it, if it does."""
        return attempt.packet_bytes if self._keeps_packet(attempt) else None

    def _keeps_packet(self, attempt: Attempt) -> bool:
        return attempt.valid and self._config.storage.record_packets

    def _new_id(self) -> str:
        # Unique as uuid4() is, without a system call for each: ids are no secrets.
        return str(uuid.UUID(int=self._ids.getrandbits(128), version=4))


def _with_risk(state: TamiyoState[Any], risk: RiskState) -> TamiyoState[Any]:
    return state if risk is state.risk else replace(state, risk=risk)
