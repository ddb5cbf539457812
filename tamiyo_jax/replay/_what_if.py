"""Compare recorded decisions with those of another policy, mode or configuration.

The other controller watches the run that there was. Its own state goes on as if its answers
had been given; the packets stay what they were, so it sees seeds that it would have culled
live on. Nothing is signed, written or sent.

A packet without seeds is only ever decided upon where the host was declared seedless
(``packet.seedless``), so it is asked about as that host's, whatever the configuration says.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from tamiyo_jax.config import TamiyoConfig
from tamiyo_jax.contracts import (
    AdaptationCommand,
    Payload,
    SystemStatePacket,
    decode_command,
    encode_command,
)
from tamiyo_jax.controller import (
    Mode,
    Outcome,
    TamiyoState,
    conclude,
    initial_state,
    observe,
    select_run,
    set_conservative,
)
from tamiyo_jax.errors import TamiyoError
from tamiyo_jax.inference import InlineRunner, PolicyChoice
from tamiyo_jax.library import BlueprintLibrary, find_in
from tamiyo_jax.policy import Policy
from tamiyo_jax.replay._history import HistoryEvent
from tamiyo_jax.storage import OperatorRecord, StepRecord

__all__ = ["Comparison", "Reply", "what_if"]

_State = TamiyoState[Any]


@dataclass(frozen=True, slots=True)
class Reply:
    """What a controller answered to a packet.

    Attributes:
      action: what it decided; the name of the error where it raised.
      seed_id: the seed to act upon; None where there is none.
      payload: what to do exactly.
      reason: why; the error's message where it raised.
      failed: it raised.
    """

    action: str
    seed_id: str | None
    payload: Payload | None
    reason: str
    failed: bool = False

    def agrees(self, other: Reply) -> bool:
        """Whether the host would do the same, for whatever reason."""
        mine = (self.action, self.seed_id, self.payload)
        return mine == (other.action, other.seed_id, other.payload)


@dataclass(frozen=True, slots=True)
class Comparison:
    """One packet and its two answers.

    Attributes:
      packet: the packet.
      recorded: the recorded answer.
      instead: the other controller's answer.
      revised: the library holds another revision of the active blueprint than was evaluated.
    """

    packet: SystemStatePacket
    recorded: Reply
    instead: Reply
    revised: bool

    @property
    def agrees(self) -> bool:
        """Whether the host would have done the same."""
        return self.recorded.agrees(self.instead)


def what_if(
    config: TamiyoConfig,
    history: Iterable[HistoryEvent],
    library: BlueprintLibrary,
    choice: PolicyChoice,
    *,
    mode: Mode | None = None,
) -> Iterator[Comparison]:
    """Ask another controller about every packet that was decided upon.

    Steps that failed on record are left out: there is no decision to compare with, and here no
    worker can be late.

    Args:
      config: of the other controller; `packet.seedless` is on for packets without seeds.
      history: as `read_history` gives it.
      library: holds the blueprints that the packets name.
      choice: the policy; not asked in guard mode.
      mode: of the other controller; None takes the one on record, step by step.

    Raises:
      UnknownBlueprintError: the library does not hold a blueprint of a packet.
    """
    state: _State = initial_state(choice.policy.initial_state())
    runner = InlineRunner[Any](choice)
    find = find_in(library)
    seedless = _seedless(config)
    for event in history:
        if isinstance(event, OperatorRecord):
            state = _set_by_hand(state, event, config, choice.policy)
        if not isinstance(event, StepRecord) or not event.action:
            continue
        packet = event.packet
        if packet is None:
            continue
        active, candidates = find(packet.blueprint_id), tuple(map(find, packet.candidates))
        here = Mode(event.mode) if mode is None else mode
        asked = config if packet.seeds else seedless
        state = select_run(
            state, packet.training_run_id, choice.policy, max_runs=config.storage.max_runs
        )
        try:
            situation = observe(asked, state, packet, active, candidates)
            answer = None
            if here is not Mode.GUARD:
                runner.prepare(state.policy_state, situation.observation)
                answer = runner.run(state.policy_state, situation.observation, math.inf)
            state, outcome = conclude(
                asked,
                state,
                situation,
                answer,
                mode=here,
                policy_version=choice.version,
                now_ns=event.report.issued_at_ns or 0,
                command_id=event.report.report_id,
                report_id=event.report.report_id,
            )
            instead = _reply(outcome)
        except TamiyoError as error:
            instead = Reply(type(error).__name__, None, None, str(error), failed=True)
        yield Comparison(
            packet,
            _make_reply(event.action, event.command, event.report.notes),
            instead,
            revised=active.revision != event.blueprint_revision,
        )


def _seedless(config: TamiyoConfig) -> TamiyoConfig:
    packet = config.packet.model_copy(update={"seedless": True})
    return config.model_copy(update={"packet": packet})


def _set_by_hand(
    state: _State, record: OperatorRecord, config: TamiyoConfig, policy: Policy[Any, Any]
) -> _State:
    """Conservative mode as the operator set it; the rest concerns the run on record."""
    scope, _, on = record.action.rpartition("conservative_")
    if scope not in ("", "run_") or on not in ("on", "off"):
        return state
    if scope:
        run_id = json.loads(record.state)["run"]
        state = select_run(state, run_id, policy, max_runs=config.storage.max_runs)
    changed, _ = set_conservative(state, on == "on", record.detail, everywhere=not scope)
    return changed


def _reply(outcome: Outcome) -> Reply:
    command = outcome.command
    sent = None if command is None else decode_command(encode_command(command))  # numbers in f32
    return _make_reply(outcome.action, sent, outcome.report.notes)


def _make_reply(action: str, command: AdaptationCommand | None, reason: str) -> Reply:
    if command is None:
        return Reply(action, None, None, reason)
    return Reply(action, command.target_seed_id, command.payload, reason)
