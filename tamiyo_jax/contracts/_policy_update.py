"""Policy updates: new parameters for the controller's network."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["PolicyUpdate"]


@dataclass(frozen=True, slots=True)
class PolicyUpdate:
    """New parameters for the policy of a running controller.

    Attributes:
      policy_id: unique id; an id that was applied before is refused.
      training_run_id: the run that learned the parameters.
      issued_at_ns: nanoseconds since the epoch; None if the sender left it out, which a
        controller refuses.
      policy_version: version of the policy once the update is applied.
      payload: the parameters as safetensors.
      schema_digest: digest of the graph schema that the parameters belong to, hexadecimal.
      signature: HMAC-SHA256 over the update without it, base64.
    """

    policy_id: str
    training_run_id: str
    issued_at_ns: int | None
    policy_version: str
    payload: bytes
    schema_digest: str
    signature: str = ""
