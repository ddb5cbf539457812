"""What a controller goes on from between two steps: its state, its policy and its mode.

They change only after the record of the change is written.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tamiyo_jax.config import TamiyoConfig
from tamiyo_jax.contracts import Event, Metric, SystemStatePacket, TelemetryLevel
from tamiyo_jax.controller import (
    GUARD_POLICY,
    Mode,
    Situation,
    TamiyoState,
    find_forgotten_runs,
    observe_encoded,
    select_run,
)
from tamiyo_jax.errors import PersistenceError
from tamiyo_jax.inference import DeployedPolicy
from tamiyo_jax.journal import Ticket
from tamiyo_jax.service._assembly import Parts
from tamiyo_jax.telemetry import status_packet

__all__ = ["Standing"]


class Standing:
    """The state, policy and mode of a controller, and what it emits about itself.

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
        mode: Mode,
        clock: Callable[[], int],
    ) -> None:
        self.state = parts.state
        self.deployed = deployed
        self.mode = mode
        self.last: Situation | None = None
        self._config = config
        self._parts = parts
        self._clock = clock

    @property
    def policy_version(self) -> str:
        """The version of the deciding policy, as in annotations and reports."""
        return GUARD_POLICY if self.mode is Mode.GUARD else self.deployed.choice.version

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
    ) -> DeployedPolicy | None:
        """Between two steps: record, and only then go on from another state, with another policy.

        Returns:
          The policy that was replaced, if one was; the caller closes it after it has let steps
          go on.
        """
        try:
            self.record(record)
        except BaseException:
            if deployed is not None:
                deployed.close()
            raise
        self.state = state
        if deployed is None:
            return None
        replaced, self.deployed = self.deployed, deployed
        return replaced

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
            indicators = self.indicators(self.state.steps)
            self._parts.telemetry.emit(status_packet(events, indicators, self._clock()))

    def metrics(self) -> tuple[Metric, ...]:
        """Figures of all parts for telemetry."""
        parts = self._parts
        return (
            *self.deployed.runner.metrics(),
            *(() if parts.metadata is None else parts.metadata.metrics("tamiyo.metadata_worker")),
            *parts.resolver.metrics(),
            *(() if parts.publisher is None else parts.publisher.metrics()),
            parts.telemetry.metric(),
        )

    def indicators(
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
