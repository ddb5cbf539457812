"""Encode and decode the payloads of journal records."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from google.protobuf.message import DecodeError

from tamiyo_jax.contracts import (
    AdaptationCommand,
    FieldReport,
    SystemStatePacket,
    decode_command,
    decode_packet,
    decode_report,
    encode_command,
    encode_packet,
    encode_report,
    validate_report,
)
from tamiyo_jax.controller import AppliedPolicy, TamiyoState, state_to_json
from tamiyo_jax.errors import PersistenceError
from tamiyo_jax.journal import Hole, Record, RecordType, decode_repair
from tamiyo_jax.storage import records_pb2 as pb
from tamiyo_jax.storage._facts import Facts

__all__ = [
    "Content",
    "OperatorRecord",
    "PolicyRecord",
    "PublicationRecord",
    "StateRecord",
    "StepRecord",
    "decode_record",
    "decode_step",
    "encode_operator",
    "encode_policy_update",
    "encode_publication",
    "encode_restore",
    "encode_snapshot",
    "encode_step",
    "parse",
    "policy_from_proto",
]

PolicyState = TypeVar("PolicyState")
Message = TypeVar(
    "Message", pb.Step, pb.Snapshot, pb.Restore, pb.Operator, pb.Publication, pb.PolicyUpdate
)
Arrays = Mapping[str, np.ndarray]

_NO_FACTS = Facts()


@dataclass(frozen=True, slots=True)
class StepRecord:
    """A step as recorded in the journal.

    Attributes:
      report: the step's report.
      action: the decided action; empty for a step that failed.
      mode: act, shadow or guard.
      packet: the packet; None if it was invalid or packets are not recorded.
      command: the command; None for WAIT and for a step that failed.
      blueprint_revision: revision of the active blueprint; 0 where none was resolved.
      mask: the legality masks by name.
      outputs: the policy's outputs by name.
      registry_additions: keys that the step added, by registry.
      state: the small state after the step, as text.
      closed_windows: synthesised reports of windows that the step closed.
      explanation: why the action was decided, in words; empty for a step that failed, and in
        records that were written before there were explanations.
    """

    report: FieldReport
    action: str
    mode: str
    state: str
    packet: SystemStatePacket | None = None
    command: AdaptationCommand | None = None
    blueprint_revision: int = 0
    mask: Arrays | None = None
    outputs: Arrays | None = None
    registry_additions: Mapping[str, Sequence[str]] | None = None
    closed_windows: tuple[FieldReport, ...] = ()
    explanation: str = ""

    @property
    def reports(self) -> tuple[FieldReport, ...]:
        """All reports of the record: the step's own, then those of the windows it closed."""
        return (self.report, *self.closed_windows)


@dataclass(frozen=True, slots=True)
class PublicationRecord:
    """The result of publishing a report; ACK and DROP hold the id only."""

    report_id: str
    attempts: int
    not_before_ns: int


@dataclass(frozen=True, slots=True)
class OperatorRecord:
    """An operator's action and the small state after it, as text."""

    action: str
    detail: str
    state: str


@dataclass(frozen=True, slots=True)
class PolicyRecord:
    """A policy that was applied, and the small state after it, as text."""

    policy: AppliedPolicy
    state: str


@dataclass(frozen=True, slots=True)
class StateRecord:
    """A SNAPSHOT, or a RESTORE from `origin`: the whole state as text, and what was pending.

    `settings` is the controller's configuration as JSON, empty where it is not known.
    """

    state: str
    origin: str
    pending: tuple[str, ...]
    settings: str


Content = (
    StepRecord | PublicationRecord | OperatorRecord | PolicyRecord | StateRecord | tuple[Hole, ...]
)


def encode_step(step: StepRecord, packet: bytes | None = None) -> bytes:
    """Payload of a STEP record.

    Args:
      step: the step.
      packet: its packet in wire format, if it was encoded already.

    Raises:
      InvalidReportError: a report has no id or no time of issue.
    """
    for report in step.reports:
        validate_report(report)
    message = pb.Step(
        blueprint_revision=step.blueprint_revision,
        report=encode_report(step.report),
        registry_additions=json.dumps(step.registry_additions or {}, separators=(",", ":")),
        state=step.state,
        mode=step.mode,
        action=step.action,
        closed_windows=[encode_report(report) for report in step.closed_windows],
        explanation=step.explanation,
    )
    if step.packet is not None:
        message.packet = encode_packet(step.packet) if packet is None else packet
    if step.command is not None:
        message.command = encode_command(step.command)
    for arrays, field in ((step.mask, message.mask), (step.outputs, message.outputs)):
        for name, array in (arrays or {}).items():
            entry = field[name]
            entry.dtype = array.dtype.str
            entry.shape.extend(array.shape)
            entry.data = array.tobytes()
    return message.SerializeToString(deterministic=True)


def decode_step(payload: bytes) -> StepRecord:
    """Read a STEP record's payload.

    Raises:
      PersistenceError: the payload is not a step.
      InvalidReportError: a report of it has no id or no time of issue.
    """
    message = parse(pb.Step(), payload)
    step = StepRecord(
        report=decode_report(message.report),
        action=message.action,
        mode=message.mode,
        state=message.state,
        packet=decode_packet(message.packet) if message.HasField("packet") else None,
        command=decode_command(message.command) if message.HasField("command") else None,
        blueprint_revision=message.blueprint_revision,
        mask=_decode_arrays(message.mask),
        outputs=_decode_arrays(message.outputs),
        registry_additions={
            name: tuple(keys) for name, keys in json.loads(message.registry_additions).items()
        },
        closed_windows=tuple(decode_report(report) for report in message.closed_windows),
        explanation=message.explanation,
    )
    for report in step.reports:
        validate_report(report)
    return step


def encode_snapshot(state: TamiyoState[PolicyState], facts: Facts = _NO_FACTS) -> bytes:
    """Payload of a SNAPSHOT record."""
    message = pb.Snapshot(state=state_to_json(state), facts=_facts_to_proto(facts))
    return message.SerializeToString(deterministic=True)


def encode_restore(state: TamiyoState[PolicyState], origin: str, facts: Facts = _NO_FACTS) -> bytes:
    """Payload of a RESTORE record; `origin` says where the state came from."""
    message = pb.Restore(state=state_to_json(state), origin=origin, facts=_facts_to_proto(facts))
    return message.SerializeToString(deterministic=True)


def encode_operator(action: str, detail: str, state: TamiyoState[PolicyState]) -> bytes:
    """Payload of an OPERATOR record."""
    message = pb.Operator(
        action=action, detail=detail, state=state_to_json(state, registries=False)
    )
    return message.SerializeToString(deterministic=True)


def encode_publication(report_id: str, attempts: int = 0, not_before_ns: int = 0) -> bytes:
    """Payload of an ACK, RETRY or DROP record; ACK and DROP hold the id only."""
    message = pb.Publication(report_id=report_id, attempts=attempts, not_before_ns=not_before_ns)
    return message.SerializeToString(deterministic=True)


def encode_policy_update(policy: AppliedPolicy, state: TamiyoState[PolicyState]) -> bytes:
    """Payload of a POLICY_UPDATE record."""
    message = pb.PolicyUpdate(
        policy=_policy_to_proto(policy), state=state_to_json(state, registries=False)
    )
    return message.SerializeToString(deterministic=True)


def decode_record(record: Record) -> Content:
    """Decode a record of any type.

    Raises:
      PersistenceError: its payload cannot be read.
      InvalidReportError: a step's report has no id or no time of issue.
    """
    payload = record.payload
    match record.type:
        case RecordType.STEP:
            return decode_step(payload)
        case RecordType.ACK | RecordType.RETRY | RecordType.DROP:
            publication = parse(pb.Publication(), payload)
            return PublicationRecord(
                publication.report_id, publication.attempts, publication.not_before_ns
            )
        case RecordType.OPERATOR:
            operator = parse(pb.Operator(), payload)
            return OperatorRecord(operator.action, operator.detail, operator.state)
        case RecordType.POLICY_UPDATE:
            update = parse(pb.PolicyUpdate(), payload)
            return PolicyRecord(policy_from_proto(update.policy), update.state)
        case RecordType.SNAPSHOT:
            snapshot = parse(pb.Snapshot(), payload)
            return StateRecord(
                snapshot.state, "", _pending_ids(snapshot.facts), snapshot.facts.settings
            )
        case RecordType.RESTORE:
            restore = parse(pb.Restore(), payload)
            return StateRecord(
                restore.state, restore.origin, _pending_ids(restore.facts), restore.facts.settings
            )
        case RecordType.REPAIR:
            return decode_repair(payload)


def parse(message: Message, payload: bytes) -> Message:
    """Fill a message from a record's payload.

    Raises:
      PersistenceError: the payload is something else.
    """
    try:
        message.ParseFromString(payload)
    except DecodeError as error:
        raise PersistenceError(
            f"a record's payload is not a {type(message).__name__}; it passed its checksum, so "
            "another program wrote it",
            kind=type(message).__name__,
        ) from error
    return message


def policy_from_proto(policy: pb.Policy) -> AppliedPolicy:
    """The policy that a POLICY_UPDATE or SNAPSHOT names."""
    return AppliedPolicy(policy.policy_id, policy.digest, policy.version)


def _policy_to_proto(policy: AppliedPolicy) -> pb.Policy:
    return pb.Policy(policy_id=policy.policy_id, digest=policy.digest, version=policy.version)


def _facts_to_proto(facts: Facts) -> pb.Facts:
    return pb.Facts(
        publishing=facts.publishing,
        pending=[
            pb.Unpublished(
                report_id=report_id,
                sequence=pending.sequence,
                attempts=pending.attempts,
                not_before_ns=pending.not_before_ns,
            )
            for report_id, pending in facts.pending.items()
        ],
        policies=[_policy_to_proto(policy) for policy in facts.policies],
        newest_report_ns=facts.newest_report_ns,
        settings=facts.settings,
    )


def _pending_ids(facts: pb.Facts) -> tuple[str, ...]:
    return tuple(entry.report_id for entry in facts.pending)


def _decode_arrays(stored: Mapping[str, pb.Array]) -> dict[str, np.ndarray]:
    return {
        name: np.frombuffer(array.data, np.dtype(array.dtype)).reshape(tuple(array.shape))
        for name, array in stored.items()
    }
