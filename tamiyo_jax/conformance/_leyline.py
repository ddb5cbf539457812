"""Decode, verify and re-encode golden messages of a Leyline peer, byte for byte."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from google.protobuf import json_format
from google.protobuf.message import Message

from tamiyo_jax.contracts import (
    Secret,
    decode_command,
    decode_packet,
    decode_report,
    encode_command,
    encode_packet,
    encode_report,
    leyline_pb2,
    signature_of,
)

__all__ = ["LeylineResult", "compare_leyline"]


@dataclass(frozen=True, slots=True)
class LeylineResult:
    """The result for a golden message.

    Attributes:
      name: the file's name.
      bytes_differing: bytes that differ after decoding and encoding again.
      fields_equal: whether its fields equal those of ``leyline.json``.
      verified: whether its signature is the one computed here; None if it is unsigned.
    """

    name: str
    bytes_differing: int
    fields_equal: bool
    verified: bool | None

    @property
    def holds(self) -> bool:
        """Whether everything agrees."""
        return self.bytes_differing == 0 and self.fields_equal and self.verified is not False


def compare_leyline(directory: Path) -> list[LeylineResult]:
    """Compare every ``leyline_*.bin`` of a directory with its ``leyline.json``."""
    expected = json.loads((directory / "leyline.json").read_text())
    results: list[LeylineResult] = []
    for name, (field, message, again) in _MESSAGES.items():
        data = (directory / name).read_bytes()
        encoded = again(data)
        differing = sum(a != b for a, b in zip(data, encoded, strict=False))
        message.ParseFromString(encoded)
        signed = "signature" in expected[field].get("annotations", {})
        results.append(
            LeylineResult(
                name=name,
                bytes_differing=differing + abs(len(data) - len(encoded)),
                fields_equal=_fields(message) == expected[field],
                verified=_verify_signature(data, expected["secret"]) if signed else None,
            )
        )
    return results


def _fields(message: Message) -> Mapping[str, Any]:
    return json_format.MessageToDict(message, preserving_proto_field_name=True)


def _verify_signature(data: bytes, secret: str) -> bool:
    command = decode_command(data)
    return signature_of(command, Secret(secret)) == command.annotations["signature"]


_MESSAGES: Mapping[str, tuple[str, Message, Callable[[bytes], bytes]]] = {
    "leyline_system_state.bin": (
        "system_state",
        leyline_pb2.SystemStatePacket(),
        lambda data: encode_packet(decode_packet(data)),
    ),
    "leyline_command_signed.bin": (
        "command",
        leyline_pb2.AdaptationCommand(),
        lambda data: encode_command(decode_command(data)),
    ),
    "leyline_field_report.bin": (
        "field_report",
        leyline_pb2.FieldReport(),
        lambda data: encode_report(decode_report(data)),
    ),
}
