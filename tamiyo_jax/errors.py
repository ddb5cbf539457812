"""The errors that Tamiyo raises; each says what happened and what to do about it.

`TamiyoError` is the root, so ``except tj.TamiyoError`` around a step is enough to
go on training without Tamiyo. Context travels as attributes: every keyword given to
an error is readable from it, and from `TamiyoError.context`.
"""

from __future__ import annotations

__all__ = [
    "CheckpointMismatchError",
    "CircuitOpenError",
    "CommandRejectedError",
    "ConfigurationError",
    "DeadlineExceededError",
    "DirectoryLockedError",
    "GraphCapacityError",
    "GraphSchemaError",
    "IllegalTransitionError",
    "InvalidBlueprintError",
    "InvalidMessageError",
    "InvalidPacketError",
    "InvalidReportError",
    "JournalSealedError",
    "MissingBlueprintIdError",
    "MissingFeatureError",
    "MissingParametersError",
    "MissingSecretError",
    "NoLegalActionError",
    "NoSeedCandidatesError",
    "NonFiniteOutputError",
    "PersistenceError",
    "PolicyFailureError",
    "PolicyUpdateRejectedError",
    "PublishError",
    "ReplayDivergedError",
    "ReplayError",
    "SignatureError",
    "StaleCacheError",
    "StaleMessageError",
    "TamiyoError",
    "UnknownBlueprintError",
    "WorkerUnavailableError",
]


class TamiyoError(Exception):
    """Root of all errors of this package.

    Args:
      message: what is wrong and what to do about it, in one or two sentences.
      **context: the facts behind the message, each readable as an attribute.
    """

    def __init__(self, message: str, **context: object) -> None:
        super().__init__(message)
        self.context = context

    def __getattr__(self, name: str) -> object:
        context = self.__dict__.get("context", {})
        if name in context:
            return context[name]
        raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (type(self), self.args[0], self.context))


def _rebuild(kind: type[TamiyoError], message: str, context: dict[str, object]) -> TamiyoError:
    """Unpickle an error with its context (a worker process sends errors home)."""
    return kind(message, **context)


class ConfigurationError(TamiyoError):
    """A setting, or a combination of settings, cannot be honoured."""


class InvalidPacketError(TamiyoError):
    """A state packet breaks its contract; `field` and `value` say where."""


class MissingBlueprintIdError(InvalidPacketError):
    """The packet names no blueprint; identity is never derived from other ids."""


class UnknownBlueprintError(TamiyoError):
    """The blueprint library does not hold `blueprint_id`."""


class InvalidBlueprintError(TamiyoError):
    """A blueprint breaks its contract; `field` and `value` say where."""


class InvalidMessageError(TamiyoError):
    """Bytes that are no command or telemetry packet of this format; `field` says where."""


class GraphSchemaError(TamiyoError):
    """A node type, relation or statistic that the schema table does not list."""


class GraphCapacityError(TamiyoError):
    """More of `name` than its cap: `count` against `cap`."""


class MissingFeatureError(TamiyoError):
    """Required features are absent; `features` lists all of them."""


class NoSeedCandidatesError(TamiyoError):
    """The packet carries no seed although the host is not declared seedless."""


class NoLegalActionError(TamiyoError):
    """The policy chose an action that the mask forbids, or none is allowed."""


class PolicyFailureError(TamiyoError):
    """The policy raised; its own error is the cause of this one."""


class NonFiniteOutputError(PolicyFailureError):
    """The policy's outputs hold NaN or infinity; `outputs` names them."""


class DeadlineExceededError(TamiyoError):
    """`stage` overran its `budget_ms`; the late answer was discarded."""


class CircuitOpenError(TamiyoError):
    """The breaker of `stage` is open; nothing was started."""


class WorkerUnavailableError(TamiyoError):
    """No worker process is warm."""


class StaleCacheError(TamiyoError):
    """Blueprint changes have not been heard of for too long."""


class PersistenceError(TamiyoError):
    """Storage cannot keep its promise."""


class JournalSealedError(PersistenceError):
    """The journal failed to write earlier and takes no further record."""


class DirectoryLockedError(PersistenceError):
    """Another process (`pid`) owns the run directory."""


class InvalidReportError(TamiyoError):
    """A report breaks its contract, for instance by lacking `issued_at_ns`."""


class MissingParametersError(TamiyoError):
    """The graph policy was asked for without parameters."""


class MissingSecretError(TamiyoError):
    """No signing secret was given, or the variable that names it is unset."""


class SignatureError(TamiyoError):
    """A message is unsigned, or its signature does not verify."""


class ReplayError(TamiyoError):
    """A message with this id was accepted before."""


class ReplayDivergedError(TamiyoError):
    """A run no longer goes the way of the journal that it replays; `differences` says where."""


class StaleMessageError(TamiyoError):
    """A message is too old, from the future, or carries no time of issue."""


class PolicyUpdateRejectedError(TamiyoError):
    """A policy update was refused; `reason` says at which check."""


class PublishError(TamiyoError):
    """The bus did not take a message of `topic`, or cannot tell whether it did."""


class CheckpointMismatchError(TamiyoError):
    """A checkpoint and this build or configuration differ in a digest."""


class IllegalTransitionError(TamiyoError):
    """A seed in `stage` cannot take `operation`."""


class CommandRejectedError(TamiyoError):
    """A verified command that this host cannot apply."""
