"""Payloads of the journal's records, and the fold that turns them back into a state."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
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
from tamiyo_jax.controller import TamiyoState, state_from_json, state_to_json
from tamiyo_jax.errors import PersistenceError
from tamiyo_jax.graph import Registries
from tamiyo_jax.storage import records_pb2 as pb
from tamiyo_jax.storage.frames import Record, RecordType

__all__ = [
    "StepRecord",
    "decode_step",
    "encode_operator",
    "encode_restore",
    "encode_snapshot",
    "encode_step",
    "recover_state",
]

PolicyState = TypeVar("PolicyState")
Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True, slots=True)
class StepRecord:
    """One step as the journal keeps it.

    Attributes:
      report: the step's report.
      action: what was decided; empty for a step that failed.
      mode: act, shadow or guard.
      packet: the packet; None if it was invalid or packets are not recorded.
      command: the command; None for WAIT and for a step that failed.
      blueprint_revision: revision of the active blueprint; 0 where none was resolved.
      mask: the legality masks by name.
      outputs: the policy's outputs by name.
      registry_additions: keys that the step added, by registry.
      state: the small state after the step, as text.
      closed_windows: synthesised reports of windows that the step closed.
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


def encode_step(step: StepRecord) -> bytes:
    """Payload of a STEP record.

    Raises:
      InvalidReportError: the report has no id or no time of issue.
    """
    validate_report(step.report)
    message = pb.Step(
        blueprint_revision=step.blueprint_revision,
        report=encode_report(step.report),
        registry_additions=json.dumps(step.registry_additions or {}, separators=(",", ":")),
        state=step.state,
        mode=step.mode,
        action=step.action,
        closed_windows=[encode_report(report) for report in step.closed_windows],
    )
    if step.packet is not None:
        message.packet = encode_packet(step.packet)
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
      InvalidReportError: its report has no id or no time of issue.
    """
    message = pb.Step()
    _parse(message, payload)
    report = decode_report(message.report)
    validate_report(report)
    return StepRecord(
        report=report,
        action=message.action,
        mode=message.mode,
        state=message.state,
        packet=decode_packet(message.packet) if message.HasField("packet") else None,
        command=decode_command(message.command) if message.HasField("command") else None,
        blueprint_revision=message.blueprint_revision,
        mask=_arrays(message.mask),
        outputs=_arrays(message.outputs),
        registry_additions={
            name: tuple(keys) for name, keys in json.loads(message.registry_additions).items()
        },
        closed_windows=tuple(decode_report(report) for report in message.closed_windows),
    )


def encode_snapshot(state: TamiyoState[PolicyState]) -> bytes:
    """Payload of a SNAPSHOT record."""
    return pb.Snapshot(state=state_to_json(state)).SerializeToString(deterministic=True)


def encode_restore(state: TamiyoState[PolicyState], origin: str) -> bytes:
    """Payload of a RESTORE record; `origin` says where the state came from."""
    message = pb.Restore(state=state_to_json(state), origin=origin)
    return message.SerializeToString(deterministic=True)


def encode_operator(action: str, detail: str, state: TamiyoState[PolicyState]) -> bytes:
    """Payload of an OPERATOR record."""
    message = pb.Operator(
        action=action, detail=detail, state=state_to_json(state, registries=False)
    )
    return message.SerializeToString(deterministic=True)


def recover_state(
    records: Iterable[Record], policy_state: PolicyState
) -> TamiyoState[PolicyState] | None:
    """Fold a journal's replay into the state after its last record.

    Args:
      records: a SNAPSHOT or RESTORE and all that follows it, by ascending sequence.
      policy_state: any state of the same policy, for structure, shapes and dtypes.

    Returns:
      The state, or None where there are no records.

    Raises:
      PersistenceError: a payload cannot be read.
      CheckpointMismatchError: the state is of another policy.
    """
    state: TamiyoState[PolicyState] | None = None
    registries = Registries.empty()
    small: str | None = None
    for record in records:
        match record.type:
            case RecordType.SNAPSHOT | RecordType.RESTORE:
                kind = pb.Snapshot if record.type is RecordType.SNAPSHOT else pb.Restore
                message = kind()
                _parse(message, record.payload)
                state = state_from_json(message.state, policy_state)
                registries, small = state.registries, None
            case RecordType.STEP:
                step = pb.Step()
                _parse(step, record.payload)
                additions = json.loads(step.registry_additions)
                if additions:
                    registries = registries.apply_additions(additions)
                small = step.state
            case RecordType.OPERATOR:
                operator = pb.Operator()
                _parse(operator, record.payload)
                small = operator.state
            case _:
                pass  # facts about publishing and policies, not about what decides
    return state if small is None else state_from_json(small, policy_state, registries=registries)


def _parse(message: pb.Step | pb.Snapshot | pb.Restore | pb.Operator, payload: bytes) -> None:
    try:
        message.ParseFromString(payload)
    except DecodeError as error:
        raise PersistenceError(
            f"a record's payload is not a {type(message).__name__}; it passed its checksum, so "
            "it was written by something else",
            kind=type(message).__name__,
        ) from error


def _arrays(stored: Mapping[str, pb.Array]) -> dict[str, np.ndarray]:
    return {
        name: np.frombuffer(array.data, np.dtype(array.dtype)).reshape(tuple(array.shape))
        for name, array in stored.items()
    }
