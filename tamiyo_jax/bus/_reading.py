"""Handlers of envelopes for the consumers of a bus: verify, decode, and refuse what is forged."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from tamiyo_jax.bus._memory import open_envelope
from tamiyo_jax.contracts import FieldReport, Secret, decode_report, validate_report
from tamiyo_jax.errors import InvalidMessageError, InvalidReportError, SignatureError

__all__ = ["FIELD_REPORTS", "EnvelopeReader", "Refuse", "Refused", "ReportReader"]

FIELD_REPORTS = "tamiyo.field_reports"
"""The topic of field reports."""

T = TypeVar("T")

Refused = SignatureError | InvalidMessageError | InvalidReportError
Refuse = Callable[[Refused, bytes], object]
"""Called with the error and the envelope of a message that is forged or malformed."""


class EnvelopeReader(Generic[T]):
    """Turns a handler of messages into a handler of envelopes, for the consumer of a bus.

    ``bus.consume(TELEMETRY, group, EnvelopeReader(TELEMETRY, decode_telemetry, show, ...))``
    calls `show` with each genuine packet. A forged or malformed envelope is given to `refuse`
    and acknowledged, so that it does not hold up the messages behind it.

    Args:
      topic: the topic that is consumed; the signature covers it.
      decode: decodes a payload; raises InvalidMessageError or InvalidReportError.
      handle: called with each message. What it raises reaches the caller of `consume`, and
        the message comes again.
      secrets: the current key, and previous ones while they are being rotated out.
      refuse: called with the error and the envelope, as `RedisBus.dead_letters` makes it.
    """

    def __init__(
        self,
        topic: str,
        decode: Callable[[bytes], T],
        handle: Callable[[T], object],
        *,
        secrets: Sequence[Secret],
        refuse: Refuse,
    ) -> None:
        self._topic = topic
        self._decode = decode
        self._handle = handle
        self._secrets = tuple(secrets)
        self._refuse = refuse

    def __call__(self, envelope: bytes) -> None:
        """Verify, decode and handle an envelope, or refuse it."""
        try:
            message = self._decode(open_envelope(self._topic, envelope, self._secrets))
        except (SignatureError, InvalidMessageError, InvalidReportError) as error:
            self._refuse(error, envelope)
            return
        self._handle(message)


class ReportReader(EnvelopeReader[FieldReport]):
    """Hands each report of `FIELD_REPORTS` on once.

    ``bus.consume(FIELD_REPORTS, group, ReportReader(handle, ...))``. An id counts as seen when
    `handle` has returned, so a report whose handling failed comes again. Not thread-safe. The
    ids seen are held in memory: a consumer that must be exact across its own restarts keys its
    store by report_id.

    Args:
      handle: called with each report.
      secrets: the current key, and previous ones while they are being rotated out.
      refuse: called with the error and the envelope of a message that is forged or holds no
        report; the message is not handed on, and does not come again.
      remember: number of the latest ids that are remembered.
    """

    def __init__(
        self,
        handle: Callable[[FieldReport], object],
        *,
        secrets: Sequence[Secret],
        refuse: Refuse,
        remember: int = 100_000,
    ) -> None:
        seen: dict[str, None] = {}

        def handle_once(report: FieldReport) -> None:
            if report.report_id in seen:
                return
            handle(report)
            seen[report.report_id] = None
            if len(seen) > remember:
                del seen[next(iter(seen))]

        super().__init__(FIELD_REPORTS, _decode, handle_once, secrets=secrets, refuse=refuse)


def _decode(payload: bytes) -> FieldReport:
    report = decode_report(payload)
    validate_report(report)
    return report
