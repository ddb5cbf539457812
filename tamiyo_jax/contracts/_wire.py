"""The wire format: dataclasses to bytes and back, a superset of Leyline v1.

Serialisation is deterministic (map keys sorted), so that equal values give equal bytes and a
signature over them holds. Numbers of metrics and parameters are f32 on the wire; times are
exact. Bytes of a Leyline v1 peer decode, and encode to the same bytes again: its scalars carry
no presence, so a zero is not written and reads as absent.
"""

from __future__ import annotations

from typing import TypeVar

from google.protobuf.message import DecodeError, Message

from tamiyo_jax.contracts import leyline_pb2 as pb
from tamiyo_jax.contracts._checks import Checks
from tamiyo_jax.contracts._codec import Codec, WireError
from tamiyo_jax.contracts._command import AdaptationCommand
from tamiyo_jax.contracts._packet import SystemStatePacket
from tamiyo_jax.contracts._policy_update import PolicyUpdate
from tamiyo_jax.contracts._report import FieldReport
from tamiyo_jax.contracts._tables import COMMAND, PACKET, POLICY_UPDATE, REPORT, TELEMETRY
from tamiyo_jax.contracts._telemetry import TelemetryPacket
from tamiyo_jax.errors import (
    InvalidMessageError,
    InvalidPacketError,
    InvalidReportError,
    PolicyUpdateRejectedError,
    TamiyoError,
)

__all__ = [
    "WIRE_VERSION",
    "decode_command",
    "decode_packet",
    "decode_policy_update",
    "decode_report",
    "decode_telemetry",
    "encode_command",
    "encode_packet",
    "encode_policy_update",
    "encode_report",
    "encode_telemetry",
]

WIRE_VERSION = 1
T = TypeVar("T")


def encode_packet(packet: SystemStatePacket) -> bytes:
    """Encode a state packet; raises `InvalidPacketError` if a value does not fit its field."""
    return _encode(PACKET, packet, pb.SystemStatePacket(version=WIRE_VERSION), InvalidPacketError)


def decode_packet(data: bytes) -> SystemStatePacket:
    """Decode a state packet; a Leyline v1 packet has no blueprint id and gets an empty id.

    Raises:
      InvalidPacketError: malformed bytes, another version, or an unknown stage.
    """
    return _decode(PACKET, data, pb.SystemStatePacket(), InvalidPacketError)


def encode_command(command: AdaptationCommand) -> bytes:
    """Encode a command; raises `InvalidMessageError` if a value does not fit its field."""
    return _encode(
        COMMAND, command, pb.AdaptationCommand(version=WIRE_VERSION), InvalidMessageError
    )


def decode_command(data: bytes) -> AdaptationCommand:
    """Decode a command without verifying it.

    Raises:
      InvalidMessageError: malformed bytes, another version, or an unknown enum value.
    """
    return _decode(COMMAND, data, pb.AdaptationCommand(), InvalidMessageError)


def encode_report(report: FieldReport) -> bytes:
    """Encode a report; raises `InvalidReportError` if a value does not fit its field."""
    return _encode(REPORT, report, pb.FieldReport(version=WIRE_VERSION), InvalidReportError)


def decode_report(data: bytes) -> FieldReport:
    """Decode a report; `validate_report` checks its required fields.

    Raises:
      InvalidReportError: malformed bytes, another version, or an unknown outcome.
    """
    return _decode(REPORT, data, pb.FieldReport(), InvalidReportError)


def encode_policy_update(update: PolicyUpdate) -> bytes:
    """Encode a policy update; raises `PolicyUpdateRejectedError` if a value does not fit."""
    return _encode(
        POLICY_UPDATE, update, pb.PolicyUpdate(version=WIRE_VERSION), PolicyUpdateRejectedError
    )


def decode_policy_update(data: bytes) -> PolicyUpdate:
    """Decode a policy update without verifying it.

    Raises:
      PolicyUpdateRejectedError: `reason` is ``invalid_payload`` for malformed bytes and
        ``version_mismatch`` for another version.
    """
    return _decode(POLICY_UPDATE, data, pb.PolicyUpdate(), PolicyUpdateRejectedError)


def encode_telemetry(packet: TelemetryPacket) -> bytes:
    """Encode a telemetry packet; raises `InvalidMessageError` if a value does not fit."""
    return _encode(TELEMETRY, packet, pb.TelemetryPacket(), InvalidMessageError)


def decode_telemetry(data: bytes) -> TelemetryPacket:
    """Decode a telemetry packet; an event's name is the wire field `description`.

    Raises:
      InvalidMessageError: malformed bytes, no timestamp, no health, or an unknown enum value.
    """
    return _decode(TELEMETRY, data, pb.TelemetryPacket(), InvalidMessageError)


def _encode(codec: Codec[T], value: T, message: Message, error: type[TamiyoError]) -> bytes:
    try:
        codec.write(value, message)
    except WireError as fault:
        raise _failure(error, fault, "invalid_payload") from fault
    return message.SerializeToString(deterministic=True)


def _decode(codec: Codec[T], data: bytes, message: Message, error: type[TamiyoError]) -> T:
    name = message.DESCRIPTOR.name
    try:
        message.ParseFromString(data)
    except DecodeError as cause:
        fault = WireError(name, f"{len(data)} bytes", f"give the bytes of such a message: {cause}")
        raise _failure(error, fault, "invalid_payload") from cause
    version = getattr(message, "version", WIRE_VERSION)
    if version != WIRE_VERSION:
        fault = WireError("version", version, f"this build reads version {WIRE_VERSION} of {name}")
        raise _failure(error, fault, "version_mismatch")
    try:
        return codec.read(message)
    except WireError as fault:
        raise _failure(error, fault, "invalid_payload") from fault


def _failure(error: type[TamiyoError], fault: WireError, reason: str) -> TamiyoError:
    return Checks(error).failure(fault.where, fault.value, fault.remedy, reason=reason)
