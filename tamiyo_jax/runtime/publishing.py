"""Reports on their way to a bus: at least once from here, each once to who reads them there.

What is still to be published, and when, stands in the outbox, which is the journal's; nothing
here has to be remembered. A crash between publishing and acknowledging sends a report twice,
and `ReportReader` hands it on once.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from tamiyo_jax.config import PublishingConfig
from tamiyo_jax.contracts import (
    Event,
    FieldReport,
    Metric,
    Priority,
    Secret,
    TelemetryLevel,
    decode_report,
    encode_report,
    validate_report,
)
from tamiyo_jax.errors import InvalidReportError, PersistenceError, PublishError, SignatureError
from tamiyo_jax.runtime.bus import Bus, open_envelope, seal
from tamiyo_jax.storage import Facts, Pending

__all__ = ["FIELD_REPORTS", "Outbox", "Publisher", "ReportReader", "Retry", "after_failure"]

FIELD_REPORTS = "tamiyo.field_reports"
"""The topic of field reports."""

_NS_PER_MS = 1_000_000
_LONGEST_MS = 86_400_000.0  # a day: no schedule outgrows what a record can hold


@dataclass(frozen=True, slots=True)
class Retry:
    """When to publish again, nanoseconds since the epoch, and how often it has failed by now."""

    not_before_ns: int
    attempts: int


def after_failure(
    config: PublishingConfig, attempts: int, now_ns: int, chance: float
) -> Retry | None:
    """What to do about a report that could not be published.

    Exponential backoff with full jitter (Brooker, *Exponential Backoff And Jitter*, AWS
    Architecture Blog, 2015): a uniform share of ``backoff_ms · multiplier^attempts``, and
    never more than a day.

    Args:
      config: backoff, multiplier and how many retries there are.
      attempts: how often publishing it had failed before.
      now_ns: nanoseconds since the epoch.
      chance: a random number in [0, 1).

    Returns:
      The next attempt, or None to drop the report: its retries are used up.
    """
    if attempts >= config.max_retries:
        return None
    try:
        ceiling_ms = min(config.backoff_ms * config.multiplier**attempts, _LONGEST_MS)
    except OverflowError:
        ceiling_ms = _LONGEST_MS
    return Retry(now_ns + int(chance * ceiling_ms * _NS_PER_MS), attempts + 1)


class Outbox(Protocol):
    """Where reports wait; `tamiyo_jax.storage.StorageManager` is one. Safe between threads.

    Each of the three that write raises `PersistenceError` where it cannot.
    """

    @property
    def facts(self) -> Facts:
        """Holds the pending reports by id, oldest first."""
        ...

    def acknowledge(self, report_id: str) -> object:
        """The bus has taken the report."""
        ...

    def retry(self, report_id: str, attempts: int, not_before_ns: int) -> object:
        """Publishing has failed `attempts` times; it is tried again from `not_before_ns` on."""
        ...

    def drop(self, report_id: str) -> object:
        """The report is not tried again."""
        ...


class Publisher:
    """Publishes what stands in an outbox, in a thread of its own; no step waits for it.

    Args:
      outbox: the reports, and what became of them.
      bus: where they go.
      secret: signs their envelopes.
      config: the schedule of retries.
      tell: takes the events, from any thread.
      clock: nanoseconds since the epoch.
      chance: random numbers in [0, 1) for the jitter.
    """

    def __init__(
        self,
        outbox: Outbox,
        bus: Bus,
        secret: Secret,
        config: PublishingConfig,
        *,
        tell: Callable[[tuple[Event, ...]], object],
        clock: Callable[[], int] = time.time_ns,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._outbox = outbox
        self._bus = bus
        self._secret = secret
        self._config = config
        self._tell = tell
        self._clock = clock
        self._chance = chance
        self._published = self._retries = self._dropped = 0
        self._failure: PersistenceError | None = None
        self._sending = threading.Lock()
        self._wake = threading.Event()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="publisher", daemon=True)
        self._thread.start()

    def notify(self) -> None:
        """Say that reports were appended; returns at once."""
        self._wake.set()

    def publish(self) -> int:
        """Try every report that is due now, and wait until that is done.

        Returns:
          How many the bus took from this call; the thread may have published others before.

        Raises:
          PersistenceError: what became of a report could not be recorded, now or earlier;
            nothing is published any more.
        """
        return self._send_due()

    def metrics(self) -> tuple[Metric, ...]:
        """Reports published, retried and dropped since opening, and those pending now."""
        counts = {
            "published": self._published,
            "retries": self._retries,
            "dropped": self._dropped,
            "pending": len(self._outbox.facts.pending),
        }
        return tuple(
            Metric(f"tamiyo.field_reports.{name}_total", float(count), "reports")
            for name, count in counts.items()
        )

    def close(self, timeout: float = 5.0) -> None:
        """Finish the report under way, for at most `timeout` seconds, and end the thread.

        What is pending stays in the outbox and goes out when the directory is opened again.
        """
        self._closing.set()
        self._wake.set()
        self._thread.join(timeout)

    def _run(self) -> None:
        try:
            while not self._closing.is_set():
                self._send_due()
                self._wake.wait(self._seconds_to_next())
                self._wake.clear()
        except PersistenceError:
            return  # told already; `publish` raises it, and so does the next step's own record
        except BaseException as error:  # a bus that raises something else
            attributes = {"error": type(error).__name__, "message": str(error)}
            self._tell((Event("publisher_died", TelemetryLevel.CRITICAL, attributes),))
            raise

    def _send_due(self) -> int:
        """One pass over the outbox; passes exclude each other, so no report is in two."""
        with self._sending:
            if self._failure is not None:
                raise self._failure
            try:
                return sum(map(self._send, self._due()))
            except PersistenceError as error:
                self._failure = error
                attributes = {"error": type(error).__name__, "message": str(error)}
                self._tell((Event("persistence_failure", TelemetryLevel.CRITICAL, attributes),))
                raise

    def _due(self) -> list[Pending]:
        now_ns = self._clock()
        pending = self._outbox.facts.pending.values()
        return [one for one in pending if one.not_before_ns <= now_ns]

    def _seconds_to_next(self) -> float | None:
        """Until something is due, at most a day; None where only news can change that."""
        pending = self._outbox.facts.pending.values()
        next_ns = min((one.not_before_ns for one in pending), default=None)
        if next_ns is None:
            return None
        wait_ms = (next_ns - self._clock()) / _NS_PER_MS
        return min(max(0.0, wait_ms), _LONGEST_MS) / 1e3

    def _send(self, pending: Pending) -> bool:
        if self._closing.is_set():
            return False
        report_id = pending.report.report_id
        envelope = seal(FIELD_REPORTS, encode_report(pending.report), self._secret)
        try:
            self._bus.publish(FIELD_REPORTS, envelope, Priority.NORMAL)
        except PublishError as error:
            self._postpone(pending, error)
            return False
        self._outbox.acknowledge(report_id)
        self._published += 1
        return True

    def _postpone(self, pending: Pending, error: PublishError) -> None:
        report_id = pending.report.report_id
        retry = after_failure(self._config, pending.attempts, self._clock(), self._chance())
        if retry is not None:
            self._outbox.retry(report_id, retry.attempts, retry.not_before_ns)
            self._retries += 1
            return
        self._outbox.drop(report_id)
        self._dropped += 1
        attributes = {
            "report_id": report_id,
            "attempts": str(pending.attempts + 1),
            "message": str(error),
        }
        self._tell((Event("field_report_drop", TelemetryLevel.WARNING, attributes),))


class ReportReader:
    """The consuming end: a handler of envelopes made of a handler of reports.

    ``bus.consume(FIELD_REPORTS, group, ReportReader(handle, ...))`` hands each report id on
    once. An id counts as seen when `handle` has returned, so a report whose handling failed
    comes again. For one thread at a time. What was seen is held in memory: a consumer that must
    be exact across its own restarts keys its store by report_id.

    Args:
      handle: takes a report.
      secrets: the current key, and previous ones while they are being rotated out.
      refuse: takes the error of an envelope that is forged or holds no report; it is not
        handed on, and does not come again.
      remember: how many of the latest ids are known.
    """

    def __init__(
        self,
        handle: Callable[[FieldReport], object],
        *,
        secrets: Sequence[Secret],
        refuse: Callable[[SignatureError | InvalidReportError], object],
        remember: int = 100_000,
    ) -> None:
        self._handle = handle
        self._secrets = tuple(secrets)
        self._refuse = refuse
        self._remember = remember
        self._seen: dict[str, None] = {}

    def __call__(self, envelope: bytes) -> None:
        """Take one envelope of `FIELD_REPORTS`."""
        try:
            report = decode_report(open_envelope(FIELD_REPORTS, envelope, self._secrets))
            validate_report(report)
        except (SignatureError, InvalidReportError) as error:
            self._refuse(error)
            return
        if report.report_id in self._seen:
            return
        self._handle(report)
        self._seen[report.report_id] = None
        if len(self._seen) > self._remember:
            del self._seen[next(iter(self._seen))]
