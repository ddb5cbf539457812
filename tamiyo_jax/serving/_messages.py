"""What client and server write into a run's streams.

Every entry has a single field, a sealed message: signature, number of the packet, and content.
The key is the run's own, derived from the server's secret, so that a client which knows it can
speak for its run and for no other. The signature covers the name of the stream, so an entry
that is copied into another stream does not verify there.
"""

from __future__ import annotations

import base64
import json
import re
import struct
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, cast

from tamiyo_jax import errors
from tamiyo_jax.bus import open_envelope, seal
from tamiyo_jax.contracts import (
    Event,
    Secret,
    TelemetryLevel,
    decode_command,
    encode_command,
)
from tamiyo_jax.decision import Decision, Latency, RemoteTicket
from tamiyo_jax.errors import ConfigurationError, InvalidMessageError, TamiyoError

__all__ = [
    "FIELD",
    "HELLO",
    "Request",
    "RunKeys",
    "open_answer",
    "open_request",
    "run_key",
    "seal_answer",
    "seal_request",
]

FIELD = b"m"
HELLO = 0  # the number of a message that asks whether a server decides for the run

_HEAD = struct.Struct("!QI")
_NUMBER = struct.Struct("!Q")
_RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


class RunKeys(NamedTuple):
    """The keys of a run in Redis."""

    packets: str
    answers: str
    state: str

    @classmethod
    def of(cls, run_id: str) -> RunKeys:
        """Return the keys of a run.

        Raises:
          ConfigurationError: the id is no name for keys, files and access rules.
        """
        if not _RUN_ID.fullmatch(run_id):
            raise ConfigurationError(
                f"run_id is {run_id[:200]!r}; give 1 to 128 letters, digits, dots, underscores "
                "and dashes, the first a letter or digit",
                field="run_id",
                value=run_id,
            )
        prefix = f"tamiyo:run:{run_id}"
        return cls(f"{prefix}:packets", f"{prefix}:answers", f"{prefix}:state")


class Request(NamedTuple):
    """A message to the server.

    Attributes:
      number: of the packet, rising within a run; `HELLO` for none.
      deadline_ms: milliseconds for which the client waits, from the time of the entry.
      packet: the packet as the wire has it.
    """

    number: int
    deadline_ms: int
    packet: bytes


def run_key(secret: bytes, run_id: str) -> bytes:
    """The key of a run, 44 bytes of base64: HMAC-SHA256 of its id under the server's secret.

    Give it to the run's client as its secret. It signs the run's packets, answers and commands,
    and says nothing about the keys of other runs.

    Raises:
      MissingSecretError: the secret is too short.
      ConfigurationError: `run_id` is not a name; see `connect`.
    """
    key = Secret(secret)
    key.check_strength()
    return base64.b64encode(key.digest(RunKeys.of(run_id).state.encode()))


def seal_request(keys: RunKeys, request: Request, secret: Secret) -> bytes:
    """Make the entry of a packet."""
    head = _HEAD.pack(request.number, request.deadline_ms)
    return seal(keys.packets, head + request.packet, secret)


def open_request(keys: RunKeys, message: bytes, secret: Secret) -> Request:
    """Verify an entry; raises `SignatureError`, or `InvalidMessageError` if it is too short."""
    content = open_envelope(keys.packets, message, (secret,))
    if len(content) < _HEAD.size:
        raise InvalidMessageError(
            f"a message of {len(content)} bytes has no head; send {_HEAD.size} at least",
            field="message",
            value=len(content),
        )
    number, deadline_ms = _HEAD.unpack_from(content)
    return Request(number, deadline_ms, content[_HEAD.size :])


def seal_answer(
    keys: RunKeys, number: int, result: Decision | TamiyoError | None, secret: Secret
) -> bytes:
    """Make the entry of an answer; None answers `HELLO`."""
    plain = None if result is None else _to_plain(result)
    text = json.dumps(plain, separators=(",", ":"), sort_keys=True)
    return seal(keys.answers, _NUMBER.pack(number) + text.encode(), secret)


def open_answer(
    keys: RunKeys, message: bytes, secret: Secret
) -> tuple[int, Decision | TamiyoError | None]:
    """Verify an answer; returns the number of its packet, and the result.

    Raises:
      SignatureError: it is not of this run's server.
    """
    content = open_envelope(keys.answers, message, (secret,))
    (number,) = _NUMBER.unpack_from(content)
    plain = json.loads(content[_NUMBER.size :])
    return number, None if plain is None else _from_plain(plain)


def _to_plain(result: Decision | TamiyoError) -> dict[str, Any]:
    if isinstance(result, TamiyoError):
        context = {name: _portable(value) for name, value in result.context.items()}
        return {"error": type(result).__name__, "message": str(result), "context": context}
    command = result.command
    encoded = None if command is None else base64.b64encode(encode_command(command)).decode()
    names = ("decision_id", "report_id", "action", "reason", "explanation", "value", "risk_score")
    return {
        **{name: getattr(result, name) for name in (*names, "shadow", "escalate", "restorable")},
        "command": encoded,
        "events": [
            {
                "name": event.name,
                "level": int(event.level),
                "attributes": dict(event.attributes),
                "event_id": event.event_id,
            }
            for event in result.events
        ],
        "coverage": dict(result.coverage),
        "latency": {name: getattr(result.latency, name) for name in Latency.__slots__},
        "sequence": result.ticket.sequence,
    }


def _from_plain(plain: Mapping[str, Any]) -> Decision | TamiyoError:
    if "error" in plain:
        kind = getattr(errors, plain["error"]) if plain["error"] in errors.__all__ else TamiyoError
        context = {name: _tuples(value) for name, value in plain["context"].items()}
        return kind(plain["message"], **context)
    fields: dict[str, Any] = dict(plain)
    command, sequence = fields.pop("command"), fields.pop("sequence")
    fields["command"] = None if command is None else decode_command(base64.b64decode(command))
    fields["events"] = tuple(map(_event, plain["events"]))
    fields["latency"] = Latency(**plain["latency"])
    return Decision(**fields, ticket=RemoteTicket(sequence, done=True))


def _event(plain: Mapping[str, Any]) -> Event:
    level = TelemetryLevel(plain["level"])
    return Event(plain["name"], level, plain["attributes"], plain["event_id"])


def _portable(value: object) -> object:
    """A fact of an error as JSON: text, numbers and lists of them; anything else as its repr."""
    if isinstance(value, list | tuple):
        return [_portable(part) for part in cast(Sequence[object], value)]
    return value if value is None or type(value) in (str, int, float, bool) else repr(value)


def _tuples(value: object) -> object:
    return tuple(map(_tuples, cast(list[object], value))) if isinstance(value, list) else value
