"""Reports that wait for a bus which is away: bounded in number and age, and counted."""

from __future__ import annotations

import time
from pathlib import Path

from bus.test_publishing import IDS, append, counts, open_storage, publishing
from redis_server import RedisServer

from tamiyo_jax.bus import MemoryBus, RedisBus
from tamiyo_jax.config import PublishingConfig
from tamiyo_jax.contracts import Priority
from tamiyo_jax.errors import PublishError

PATIENT = PublishingConfig(backoff_ms=60_000.0, max_retries=1_000, max_pending=3)


class AwayBus(MemoryBus):
    def publish(self, topic: str, payload: bytes, priority: Priority) -> None:
        raise PublishError("the bus is away; start it", topic=topic)


def test_the_oldest_reports_beyond_the_limit_are_dropped_counted_and_reported(
    tmp_path: Path,
) -> None:
    with (
        open_storage(tmp_path) as storage,
        publishing(storage, AwayBus(), PATIENT, chance=lambda: 0.9) as (publisher, events),
    ):
        append(storage, *IDS)
        publisher.publish()
        assert [*storage.facts.pending] == IDS[2:]
        assert counts(publisher)["dropped_total"] == 2.0
        assert [event.attributes["report_id"] for event in events] == IDS[:2]
        assert {event.name for event in events} == {"field_report_drop"}
        assert all("publishing.max_pending" in event.attributes["message"] for event in events)


def test_reports_older_than_the_limit_are_dropped_counted_and_reported(tmp_path: Path) -> None:
    later = PATIENT.model_copy(update={"max_pending": 100, "max_age_s": 3_600.0})
    with open_storage(tmp_path) as storage:
        append(storage, *IDS)
        clock = [time.time_ns()]
        with publishing(storage, AwayBus(), later, chance=lambda: 0.9, clock=lambda: clock[0]) as (
            publisher,
            events,
        ):
            publisher.publish()
            assert [*storage.facts.pending] == IDS
            clock[0] += 3_601 * 1_000_000_000
            publisher.publish()
            assert [event.attributes["report_id"] for event in events] == IDS
            assert all("publishing.max_age_s" in event.attributes["message"] for event in events)
            assert counts(publisher)["dropped_total"] == len(IDS)


def test_a_server_that_hangs_is_waited_for_once_and_not_once_per_report(
    own_redis_server: RedisServer, tmp_path: Path
) -> None:
    bus = RedisBus(own_redis_server.url)
    patient = PublishingConfig(backoff_ms=60_000.0)
    with open_storage(tmp_path) as storage:
        append(storage, *(f"report-{index}" for index in range(20)))
        own_redis_server.freeze()
        started = time.monotonic()
        with publishing(storage, bus, patient, chance=lambda: 0.9) as (publisher, _):
            publisher.publish()
            assert time.monotonic() - started < 20.0  # 20 reports of 2 s each would take 40 s
            assert counts(publisher)["retries_total"] == 20.0
            assert {waiting.attempts for waiting in storage.facts.pending.values()} == {1}
        own_redis_server.thaw()
    bus.close()
