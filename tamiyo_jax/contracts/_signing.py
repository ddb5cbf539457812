"""Sign and verify messages. Pure: key, bytes and time are arguments.

A signature is HMAC-SHA256 (RFC 2104) over the deterministic serialisation of the message
without its signature, in base64.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NoReturn

from tamiyo_jax.config import SecurityConfig
from tamiyo_jax.contracts._command import AdaptationCommand
from tamiyo_jax.contracts._policy_update import PolicyUpdate
from tamiyo_jax.contracts._wire import encode_command, encode_policy_update
from tamiyo_jax.errors import MissingSecretError, ReplayError, SignatureError, StaleMessageError

__all__ = [
    "MIN_SECRET_BYTES",
    "SIGNATURE",
    "NonceLedger",
    "Secret",
    "Verifier",
    "sign",
    "sign_bytes",
    "sign_update",
    "signature_of",
    "verify",
    "verify_bytes",
    "verify_update",
]

MIN_SECRET_BYTES = 16
SIGNATURE = "signature"
NANOSECONDS = 1_000_000_000


class Secret:
    """A signing key that is hidden from `repr` and cannot be pickled."""

    __slots__ = ("_key",)

    def __init__(self, key: str | bytes) -> None:
        self._key = key.encode() if isinstance(key, str) else key

    def __repr__(self) -> str:
        return "Secret(...)"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Secret is not pickled; give it to the process that needs it")

    def check_strength(self) -> None:
        """Refuse a key that is too short.

        Raises:
          MissingSecretError: fewer than `MIN_SECRET_BYTES` bytes.
        """
        if len(self._key) < MIN_SECRET_BYTES:
            raise MissingSecretError(
                f"the signing secret has {len(self._key)} bytes; give at least {MIN_SECRET_BYTES}",
                field="secret",
                limit=MIN_SECRET_BYTES,
            )

    def digest(self, data: bytes) -> bytes:
        """HMAC-SHA256 of `data` under this key, 32 bytes."""
        return hmac.digest(self._key, data, hashlib.sha256)


def sign_bytes(data: bytes, secret: Secret) -> str:
    """The signature of `data`, base64."""
    return base64.b64encode(secret.digest(data)).decode("ascii")


def verify_bytes(data: bytes, signature: str, secrets: Sequence[Secret]) -> None:
    """Check a signature in constant time against every secret.

    Args:
      data: what was signed.
      signature: base64, as `sign_bytes` gives it.
      secrets: the current key, and previous ones while they are being rotated out.

    Raises:
      SignatureError: the signature is empty, or matches none of the secrets.
    """
    if not signature:
        raise SignatureError("the message is unsigned; sign it before sending", field=SIGNATURE)
    given = signature.encode("utf-8", "surrogatepass")
    matches = [hmac.compare_digest(sign_bytes(data, secret).encode(), given) for secret in secrets]
    if not any(matches):
        raise SignatureError(
            f"the signature matches none of {len(secrets)} secrets; the message was changed, or "
            "its sender has another key",
            field=SIGNATURE,
        )


def signature_of(command: AdaptationCommand, secret: Secret) -> str:
    """Compute the signature of `command`; an existing signature is not covered by it."""
    return sign_bytes(_encode_unsigned(command), secret)


def sign(command: AdaptationCommand, secret: Secret) -> AdaptationCommand:
    """Return the command with the annotation ``signature``, replacing an earlier signature."""
    annotations = {**command.annotations, SIGNATURE: signature_of(command, secret)}
    return replace(command, annotations=annotations)


def _encode_unsigned(command: AdaptationCommand) -> bytes:
    annotations = {name: text for name, text in command.annotations.items() if name != SIGNATURE}
    return encode_command(replace(command, annotations=annotations))


def sign_update(update: PolicyUpdate, secret: Secret) -> PolicyUpdate:
    """Return the policy update with its signature, replacing an earlier signature."""
    unsigned = encode_policy_update(replace(update, signature=""))
    return replace(update, signature=sign_bytes(unsigned, secret))


def verify_update(update: PolicyUpdate, secrets: Sequence[Secret]) -> None:
    """Check the signature of a policy update; raises `SignatureError` if it does not match."""
    unsigned = encode_policy_update(replace(update, signature=""))
    verify_bytes(unsigned, update.signature, secrets)


@dataclass(frozen=True, slots=True)
class NonceLedger:
    """The commands accepted within the nonce window.

    Attributes:
      started_ns: commands issued before this time are refused, so that an empty ledger after a
        restart accepts no command twice.
      accepted: time of acceptance by command id, nanoseconds since the epoch, in the order of
        acceptance.
    """

    started_ns: int
    accepted: Mapping[str, int] = field(default_factory=dict[str, int])

    def record(self, command_id: str, now_ns: int, *, window_ns: int, capacity: int) -> NonceLedger:
        """Return the ledger with `command_id` added and ids older than the window removed.

        Raises:
          ReplayError: `capacity` ids are within the window; forgetting an id would allow a replay.
        """
        accepted = dict(self.accepted)
        for oldest, accepted_ns in self.accepted.items():
            if now_ns - accepted_ns <= window_ns:
                break
            del accepted[oldest]
        if len(accepted) >= capacity:
            raise ReplayError(
                f"{len(accepted)} commands were accepted within the nonce window, which is its "
                "capacity; raise security.nonce_capacity or send fewer commands",
                command_id=command_id,
                capacity=capacity,
            )
        accepted[command_id] = now_ns
        return replace(self, accepted=accepted)


def verify(
    command: AdaptationCommand,
    secrets: Sequence[Secret],
    now_ns: int,
    ledger: NonceLedger,
    config: SecurityConfig,
) -> NonceLedger:
    """Check that a command is authentic, new and fresh.

    In this order: signature present, signature valid, command id present, id not accepted
    within the nonce window, time of issue present, not from the future, not too old and not
    from before the ledger started.

    Args:
      command: the command as decoded.
      secrets: the current key, and previous ones while they are being rotated out.
      now_ns: the time, nanoseconds since the epoch.
      ledger: the commands accepted earlier.
      config: ages, window and capacity.

    Returns:
      The ledger including this command.

    Raises:
      SignatureError: the command is unsigned, or its signature does not match.
      ReplayError: the id is empty or was accepted before, or the ledger is full.
      StaleMessageError: the time of issue is missing, in the future, or too old.
    """
    verify_bytes(_encode_unsigned(command), command.annotations.get(SIGNATURE, ""), secrets)
    window_ns = _nanoseconds(config.nonce_window_s)
    _check_new(command.command_id, now_ns, ledger, window_ns)
    _check_fresh(command, now_ns, ledger, config)
    return ledger.record(
        command.command_id, now_ns, window_ns=window_ns, capacity=config.nonce_capacity
    )


def _check_new(command_id: str, now_ns: int, ledger: NonceLedger, window_ns: int) -> None:
    if not command_id:
        raise ReplayError(
            "command_id is empty, so a replay could not be detected; give every command a UUID",
            command_id=command_id,
        )
    accepted_ns = ledger.accepted.get(command_id)
    if accepted_ns is not None and now_ns - accepted_ns <= window_ns:
        raise ReplayError(
            f"command {command_id} was accepted before; a command is applied once",
            command_id=command_id,
            accepted_ns=accepted_ns,
        )


def _check_fresh(
    command: AdaptationCommand, now_ns: int, ledger: NonceLedger, config: SecurityConfig
) -> None:
    issued_ns = command.issued_at_ns
    if issued_ns is None:
        raise StaleMessageError(
            f"command {command.command_id} has no issued_at; it could be of any age",
            command_id=command.command_id,
        )
    age_ns = now_ns - issued_ns
    if age_ns < -_nanoseconds(config.max_future_s):
        fault = f"is {-age_ns} ns from the future; set the clocks of sender and receiver"
    elif age_ns > _nanoseconds(config.max_age_s):
        fault = f"is {age_ns} ns old; the limit is {config.max_age_s} s"
    elif issued_ns < ledger.started_ns:
        fault = f"was issued {ledger.started_ns - issued_ns} ns before this verifier started"
    else:
        return
    raise StaleMessageError(
        f"command {command.command_id} {fault}",
        command_id=command.command_id,
        issued_at_ns=issued_ns,
        now_ns=now_ns,
    )


def _nanoseconds(seconds: float) -> int:
    return round(seconds * NANOSECONDS)


@dataclass(frozen=True, slots=True)
class Verifier:
    """Secrets, limits and ledger together; `verify` returns the next verifier.

    Attributes:
      secrets: the current key, and previous ones while they are being rotated out.
      ledger: the commands accepted so far.
      config: ages, window and capacity.
    """

    secrets: tuple[Secret, ...]
    ledger: NonceLedger
    config: SecurityConfig

    def verify(self, command: AdaptationCommand, *, now_ns: int) -> Verifier:
        """Verify `command` and return the next verifier; raises the errors of `verify`."""
        ledger = verify(command, self.secrets, now_ns, self.ledger, self.config)
        return replace(self, ledger=ledger)
