"""The errors that Tamiyo raises; each says what happened and what to do about it.

`TamiyoError` is the root, so ``except tj.TamiyoError`` around a step is enough to
go on training without Tamiyo. Every class declares its attributes. They are given as keywords
and kept in `TamiyoError.context` too; an attribute with a default may be left out.
"""

from __future__ import annotations

__all__ = [
    "CheckpointMismatchError",
    "CircuitOpenError",
    "CommandRejectedError",
    "CompilationError",
    "ConfigurationError",
    "DeadlineExceededError",
    "DirectoryLockedError",
    "ForkedProcessError",
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
      **context: attributes of the class.
    """

    context: dict[str, object]

    def __init__(self, message: str, **context: object) -> None:
        super().__init__(message)
        self.context = context
        vars(self).update(context)

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (type(self), self.args[0], self.context))


def _rebuild(kind: type[TamiyoError], message: str, context: dict[str, object]) -> TamiyoError:
    """Unpickle an error with its attributes (a worker process sends its errors to the caller)."""
    return kind(message, **context)


class ConfigurationError(TamiyoError):
    """A setting, or a combination of settings, cannot be honoured."""

    field: str | None = None
    value: object = None
    limit: object = None
    origins: tuple[object, ...] = ()
    variables: tuple[str, ...] = ()
    path: str | None = None
    directory: str | None = None
    extra: str | None = None
    policy: str | None = None
    blueprint_id: str | None = None
    recorded: object = None
    expected: object = None
    actual: object = None
    monitors: int | None = None
    layers: int | None = None
    layer: str | None = None
    measured: int | None = None
    key: object = None


class InvalidPacketError(TamiyoError):
    """A state packet breaks its contract; `field` and `value` say where."""

    field: str
    value: object = None
    reason: str | None = None


class CompilationError(TamiyoError):
    """The program of a network that is to grow could not be traced or compiled."""


class MissingBlueprintIdError(InvalidPacketError):
    """The packet names no blueprint; identity is never derived from other ids."""


class UnknownBlueprintError(TamiyoError):
    """The blueprint library does not hold `blueprint_id`."""

    blueprint_id: str
    blueprint_ids: tuple[str, ...] = ()


class InvalidBlueprintError(TamiyoError):
    """A blueprint breaks its contract; `field` and `value` say where."""

    field: str | None = None
    value: object = None
    file: str | None = None


class InvalidMessageError(TamiyoError):
    """Bytes that are no command or telemetry packet of this format; `field` says where."""

    field: str
    value: object = None
    reason: str | None = None


class GraphSchemaError(TamiyoError):
    """A node type, relation or statistic that the schema table does not list."""

    name: str


class GraphCapacityError(TamiyoError):
    """More of `name` than its cap: `count` against `cap`."""

    name: str
    count: int
    cap: int


class MissingFeatureError(TamiyoError):
    """Required features are absent; `features` lists all of them."""

    features: tuple[str, ...]


class NoSeedCandidatesError(TamiyoError):
    """The packet carries no seed although the host is not declared seedless."""

    packet_id: str


class NoLegalActionError(TamiyoError):
    """The policy chose an action that the mask forbids, or none is allowed."""

    action: int | None = None
    seed: object = None
    blueprint: object = None
    packet_id: str | None = None
    reason: str | None = None


class PolicyFailureError(TamiyoError):
    """The policy raised; its own error is the `__cause__`."""

    packet_id: str | None = None


class NonFiniteOutputError(PolicyFailureError):
    """The policy's outputs hold NaN or infinity; `outputs` names them."""

    outputs: tuple[str, ...]


class DeadlineExceededError(TamiyoError):
    """`stage` overran its `budget_ms`; the late answer was discarded."""

    stage: str
    budget_ms: float
    latency_ms: float | None = None


class CircuitOpenError(TamiyoError):
    """The breaker of `stage` is open; nothing was started."""

    stage: str
    failures: int
    retry_ms: float


class WorkerUnavailableError(TamiyoError):
    """No worker process is warm."""

    stage: str


class StaleCacheError(TamiyoError):
    """The blueprint library has not answered for longer than the limit."""

    age_s: float
    max_staleness_s: float


class PersistenceError(TamiyoError):
    """The run directory, a library or a checkpoint cannot be read or written."""

    path: str | None = None
    url: str | None = None
    errno: int | None = None
    action: str | None = None
    name: str | None = None
    kind: str | None = None
    type: object = None
    digest: str | None = None
    found: object = None
    version: object = None
    report_id: str | None = None
    sequence: int | None = None
    segment: str | None = None
    offset: int | None = None
    length: int | None = None
    limit: int | None = None
    records: int | None = None
    missing: int | None = None
    corrupt: object = ()
    files: tuple[str, ...] = ()


class JournalSealedError(PersistenceError):
    """The journal failed to write earlier and takes no further record."""


class ForkedProcessError(PersistenceError):
    """A forked child (`pid`) used the controller of its parent (`owner`)."""

    pid: int
    owner: int


class DirectoryLockedError(PersistenceError):
    """Another process (`pid`) owns the run directory."""

    pid: int | None


class InvalidReportError(TamiyoError):
    """A report breaks its contract, for instance by lacking `issued_at_ns`."""

    field: str
    value: object = None
    reason: str | None = None


class MissingParametersError(TamiyoError):
    """The graph policy was asked for without parameters."""

    mode: str


class MissingSecretError(TamiyoError):
    """No signing secret was given, or the variable that names it is unset."""

    field: str | None = None
    variable: str | None = None
    limit: int | None = None


class SignatureError(TamiyoError):
    """A message is unsigned, or its signature does not verify."""

    field: str


class ReplayError(TamiyoError):
    """A message with this id was accepted before."""

    command_id: str
    accepted_ns: int | None = None
    capacity: int | None = None


class ReplayDivergedError(TamiyoError):
    """A replayed run has diverged from its journal; `differences` names the fields."""

    packet_id: str
    differences: tuple[str, ...]


class StaleMessageError(TamiyoError):
    """A message is too old, from the future, or carries no time of issue."""

    command_id: str
    issued_at_ns: int | None = None
    now_ns: int | None = None


class PolicyUpdateRejectedError(TamiyoError):
    """A policy update was refused; `reason` says at which check."""

    reason: str
    policy_id: str | None = None
    field: str | None = None
    value: object = None


class PublishError(TamiyoError):
    """The bus did not take a message of `topic`, or it is unknown whether it did."""

    topic: str
    url: str | None = None
    group: str | None = None
    capacity: int | None = None


class CheckpointMismatchError(TamiyoError):
    """A checkpoint and this build or configuration differ in a digest."""

    path: str | None = None
    name: str | None = None
    names: tuple[str, ...] = ()
    missing: object = ()
    unexpected: object = ()
    wrong: object = ()
    expected: object = None
    stored: object = None
    found: object = None
    cause: str | None = None


class IllegalTransitionError(TamiyoError):
    """A seed in `stage` cannot take `operation`."""

    stage: object
    operation: object


class CommandRejectedError(TamiyoError):
    """A verified command that this host cannot apply."""

    command_id: str | None = None
    command_type: object = None
