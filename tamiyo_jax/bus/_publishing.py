"""Publish field reports to a bus at least once, and read each of them once.

The outbox is kept in the journal: it says which reports are pending and when each is due, so this
module keeps no state of its own. A crash between publishing and acknowledging sends a report
twice, and `ReportReader` hands it on once.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

from tamiyo_jax.bus._memory import Bus, seal
from tamiyo_jax.bus._reading import FIELD_REPORTS
from tamiyo_jax.config import PublishingConfig
from tamiyo_jax.contracts import (
    Event,
    Metric,
    Priority,
    Secret,
    TelemetryLevel,
    encode_report,
)
from tamiyo_jax.errors import PersistenceError, PublishError
from tamiyo_jax.storage import Facts, Pending

__all__ = ["Outbox", "Publisher", "Retry", "schedule_retry"]

_NS_PER_MS = 1_000_000
_NS_PER_S = 1_000_000_000
_LONGEST_MS = 86_400_000.0  # a day: no schedule outgrows what a record can hold
_SLOW_NS = 250_000_000  # a failure that took longer is a bus that does not answer


@dataclass(frozen=True, slots=True)
class Retry:
    """When to publish again, nanoseconds since the epoch, and how often it has failed by now."""

    not_before_ns: int
    attempts: int


def schedule_retry(
    config: PublishingConfig, attempts: int, now_ns: int, chance: float
) -> Retry | None:
    """Schedule the next attempt for a report that could not be published.

    Exponential backoff with full jitter (Brooker, *Exponential Backoff And Jitter*, AWS
    Architecture Blog, 2015): a uniform share of ``backoff_ms · multiplier^attempts``, and
    never more than a day.

    Args:
      config: bound of the first wait, its multiplier and the number of retries.
      attempts: number of earlier attempts that failed.
      now_ns: nanoseconds since the epoch.
      chance: a random number, uniform in [0, 1).

    Returns:
      The next attempt, or None if the retries are used up and the report is to be dropped.
    """
    if attempts >= config.max_retries:
        return None
    try:
        ceiling_ms = min(config.backoff_ms * config.multiplier**attempts, _LONGEST_MS)
    except OverflowError:
        ceiling_ms = _LONGEST_MS
    return Retry(now_ns + int(chance * ceiling_ms * _NS_PER_MS), attempts + 1)


class Outbox(Protocol):
    """Where reports wait, as `tamiyo_jax.storage.StorageManager` implements it. Thread-safe.

    The three methods that write raise `PersistenceError` if they cannot.
    """

    @property
    def facts(self) -> Facts:
        """The pending reports by id, oldest first, among other facts."""
        ...

    def acknowledge(self, report_id: str) -> object:
        """Record that the bus has accepted the report."""
        ...

    def retry(self, report_id: str, attempts: int, not_before_ns: int) -> object:
        """Record that publishing failed `attempts` times; `not_before_ns` is the next attempt."""
        ...

    def drop(self, report_id: str) -> object:
        """Record that the report is not tried again."""
        ...


class Publisher:
    """Publishes the reports of an outbox in a thread of its own; no step waits for it.

    Reports beyond ``max_pending`` and older than ``max_age_s`` are dropped, the oldest first.
    Once the bus has let a call time out, the other due reports of the same pass count as failed
    too, so that a pass waits for a bus that does not answer only once.

    Args:
      outbox: where reports wait, and where their fate is recorded.
      bus: where reports are published.
      secret: signs the envelopes.
      config: the schedule of retries.
      emit: called with events, from any thread.
      clock: returns nanoseconds since the epoch.
      chance: returns random numbers in [0, 1) for the jitter.
    """

    def __init__(
        self,
        outbox: Outbox,
        bus: Bus,
        secret: Secret,
        config: PublishingConfig,
        *,
        emit: Callable[[tuple[Event, ...]], object],
        clock: Callable[[], int] = time.time_ns,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._outbox = outbox
        self._bus = bus
        self._secret = secret
        self._config = config
        self._emit = emit
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
        """Wake the thread because reports were appended; returns at once."""
        self._wake.set()

    def publish(self) -> int:
        """Publish every report that is due now, and wait for the result.

        Returns:
          The number of reports that the bus accepted from this call.

        Raises:
          PersistenceError: the fate of a report could not be recorded, now or earlier; nothing
            is published any more.
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
            return  # already emitted; `publish` raises it, and so does the next step's own record
        except BaseException as error:  # a bus that raises something else
            attributes = {"error": type(error).__name__, "message": str(error)}
            self._emit((Event("publisher_died", TelemetryLevel.CRITICAL, attributes),))
            raise

    def _send_due(self) -> int:
        """Run a pass over the outbox; passes exclude each other, so no report is in two."""
        with self._sending:
            if self._failure is not None:
                raise self._failure
            try:
                self._drop_surplus()
                return self._send_all(self._list_due())
            except PersistenceError as error:
                self._failure = error
                attributes = {"error": type(error).__name__, "message": str(error)}
                self._emit((Event("persistence_failure", TelemetryLevel.CRITICAL, attributes),))
                raise

    def _drop_surplus(self) -> None:
        """Drop reports that are too old, and the oldest beyond the limit of their number."""
        pending = list(self._outbox.facts.pending.values())
        surplus = len(pending) - self._config.max_pending
        oldest_ns = self._clock() - int(self._config.max_age_s * _NS_PER_S)
        for position, waiting in enumerate(pending):
            if (waiting.report.issued_at_ns or 0) < oldest_ns:
                reason = f"older than publishing.max_age_s, {self._config.max_age_s:g} s"
            elif position < surplus:
                reason = f"more than publishing.max_pending, {self._config.max_pending}, wait"
            else:
                continue
            self._drop(waiting, waiting.attempts, reason)

    def _list_due(self) -> list[Pending]:
        now_ns = self._clock()
        pending = self._outbox.facts.pending.values()
        return [report for report in pending if report.not_before_ns <= now_ns]

    def _seconds_to_next(self) -> float | None:
        """Seconds until a report is due, at most a day; None if no report is pending."""
        pending = self._outbox.facts.pending.values()
        next_ns = min((report.not_before_ns for report in pending), default=None)
        if next_ns is None:
            return None
        wait_ms = (next_ns - self._clock()) / _NS_PER_MS
        return min(max(0.0, wait_ms), _LONGEST_MS) / 1e3

    def _send_all(self, due: Iterable[Pending]) -> int:
        """Publish reports until the bus lets a call time out; the rest count as failed."""
        published, timeout = 0, None
        for pending in due:
            if self._closing.is_set():
                break
            started_ns = time.monotonic_ns()
            try:
                if timeout is not None:
                    raise timeout
                self._send(pending)
                published += 1
            except PublishError as error:
                self._postpone(pending, error)
                if time.monotonic_ns() - started_ns > _SLOW_NS:
                    timeout = error
        return published

    def _send(self, pending: Pending) -> None:
        report_id = pending.report.report_id
        envelope = seal(FIELD_REPORTS, encode_report(pending.report), self._secret)
        self._bus.publish(FIELD_REPORTS, envelope, Priority.NORMAL)
        self._outbox.acknowledge(report_id)
        self._published += 1

    def _postpone(self, pending: Pending, error: PublishError) -> None:
        report_id = pending.report.report_id
        retry = schedule_retry(self._config, pending.attempts, self._clock(), self._chance())
        if retry is not None:
            self._outbox.retry(report_id, retry.attempts, retry.not_before_ns)
            self._retries += 1
            return
        self._drop(pending, pending.attempts + 1, str(error))

    def _drop(self, pending: Pending, attempts: int, reason: str) -> None:
        report_id = pending.report.report_id
        self._outbox.drop(report_id)
        self._dropped += 1
        attributes = {"report_id": report_id, "attempts": str(attempts), "message": reason}
        self._emit((Event("field_report_drop", TelemetryLevel.WARNING, attributes),))
