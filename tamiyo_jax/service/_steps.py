"""Decision steps of a controller, one after another.

Pure functions decide. `Stepper` performs the effects around them, in order: resolve blueprints, ask
the policy, sign the command, write the record, and only then update the state and return the
decision.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any

from tamiyo_jax.contracts import Event, SystemStatePacket, TelemetryLevel
from tamiyo_jax.controller import Answer, Mode, Situation
from tamiyo_jax.decision import Decision
from tamiyo_jax.errors import TamiyoError
from tamiyo_jax.inference import make_trial_situation
from tamiyo_jax.policy import ArrayPolicy
from tamiyo_jax.service._attempt import Attempt, Begun
from tamiyo_jax.service._effects import StepEffects

__all__ = ["Stepper"]


class Stepper(StepEffects):
    """Makes decisions. The caller makes one call at a time."""

    def step(self, packet: SystemStatePacket) -> Decision:
        """Decide on one packet; see `Tamiyo.step`."""
        attempt = self.begin_attempt(packet, self.state)
        try:
            return self._try_step(attempt)
        except TamiyoError:
            raise
        except BaseException as error:
            self._abandon(attempt, error)
            raise

    def _try_step(self, attempt: Attempt) -> Decision:
        try:
            situation = self.observe(attempt)
            answer = None
            if self.mode is not Mode.GUARD:
                self.admit(attempt, "inference")
                self.prepare(situation, attempt.state)
                budget_ms = self._config.deadlines.inference_ms
                aside = partial(self.prepare_records, [(attempt, situation)])
                answer = self.deployed.ask(attempt.state, situation, budget_ms, aside)
            after, outcome = self.conclude_step(attempt.state, situation, answer)
            if answer is not None:
                after = self.count_success(after, "inference")
        except TamiyoError as error:
            self.fail_step(attempt, error)
        return self.commit(attempt, after, outcome)

    def _abandon(self, attempt: Attempt, error: BaseException) -> None:
        """Put a step on record that something else ended, as a signal handler that raises."""
        recorded = self._parts.storage.state
        if recorded is not None and recorded is not attempt.start:
            self.state = recorded  # its record was written, and counts
            return
        with suppress(TamiyoError):  # `error` goes on
            self.fail_step(attempt, TamiyoError(f"the step was ended by {type(error).__name__}"))

    def prepare_blueprint(self, blueprint_id: str) -> None:
        """Compile for a blueprint ahead of its first step; see `Tamiyo.prepare`."""
        last = self.last or make_trial_situation(self._config, self.state)
        packet = replace(
            last.packet, blueprint_id=blueprint_id, candidate_blueprint_ids=(blueprint_id,)
        )
        situation = self.situation_of(packet)
        if self.mode is not Mode.GUARD:
            self.prepare(situation, self.state)

    def begin(self, packet: SystemStatePacket) -> Begun | TamiyoError:
        """Make a step up to the policy, for a caller that asks it for several controllers at once.

        Returns:
          What `end` needs next; or the error of the step, which is on record.
        """
        attempt = self.begin_attempt(packet, self.state)
        try:
            situation = self.observe(attempt)
            self.admit(attempt, "inference")
        except TamiyoError as error:
            return self.record_failure(attempt, error)
        return Begun(attempt, situation)

    def end(self, begun: Begun, answer: Answer[Any] | TamiyoError) -> Decision | TamiyoError:
        """Make the rest of a step, with what the policy answered or raised."""
        attempt = begun.attempt
        try:
            if isinstance(answer, TamiyoError):
                raise answer
            after, outcome = self.conclude_step(attempt.state, begun.situation, answer)
            after = self.count_success(after, "inference")
        except TamiyoError as error:
            return self.record_failure(attempt, error)
        try:
            return self.commit(attempt, after, outcome)
        except TamiyoError as error:
            return error

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
            results.append(self.record_failure_behind(*failed))
        return results

    def _observe_some(
        self, packets: Sequence[SystemStatePacket]
    ) -> tuple[list[tuple[Attempt, Situation]], tuple[Attempt, TamiyoError] | None]:
        """Observe packets up to one of another layout, or one that fails."""
        taken: list[tuple[Attempt, Situation]] = []
        state = self.state
        for packet in packets:
            attempt = self.begin_attempt(packet, state)
            try:
                situation = self.observe(attempt)
            except TamiyoError as error:
                return taken, (attempt, error)
            if taken and situation.layout != taken[0][1].layout:
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
        self, taken: Sequence[tuple[Attempt, Situation]]
    ) -> list[Decision | TamiyoError]:
        """Decide on observed packets of one layout, in one pass over the policy's weights.

        The pass ends after a packet that failed, and after a command that moved the host's
        breaker: later answers were computed as if neither had happened.
        """
        attempts, situations = zip(*taken, strict=True)
        first: Attempt = attempts[0]
        try:
            self.admit(first, "inference")
            self.prepare(situations[0], first.state)
            if self.deployed.prepare_many(first.state, situations):
                self.emit((Event("batch_prepared", TelemetryLevel.INFO),))
            budget_ms = self._config.deadlines.inference_ms * len(taken)
            aside = partial(self.prepare_records, taken)
            answers = self.deployed.ask_many(first.state, situations, budget_ms, aside)
        except TamiyoError as error:
            failed = self.record_failure(first, error)  # the one call counts once
            return [
                failed,
                *(self.record_failure_behind(attempt, error) for attempt in attempts[1:]),
            ]
        results: list[Decision | TamiyoError] = []
        state = first.state
        for (attempt, situation), answer in zip(taken, answers, strict=True):
            self.begin_at(attempt, state)
            breaker = attempt.state.host_breaker
            attempt.stage = "inference"
            try:
                after, outcome = self.conclude_step(attempt.state, situation, answer)
                after = self.count_success(after, "inference")
            except TamiyoError as error:
                return [*results, self.record_failure(attempt, error)]
            try:
                results.append(self.commit(attempt, after, outcome))
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
