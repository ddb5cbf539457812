"""Reports reach a bus at least once and their reader once, whatever fails on the way."""

from __future__ import annotations

import contextlib
import os
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tamiyo_jax.bus import FIELD_REPORTS, MemoryBus, Publisher, ReportReader, seal
from tamiyo_jax.bus._memory import Handler, open_envelope
from tamiyo_jax.bus._publishing import Retry, schedule_retry
from tamiyo_jax.config import HeuristicConfig, PolicyConfig, PublishingConfig, StorageConfig
from tamiyo_jax.contracts import (
    Event,
    FieldReport,
    Priority,
    ReportOutcome,
    Secret,
    TelemetryLevel,
    encode_report,
)
from tamiyo_jax.controller import TamiyoState, initial_state, state_to_json
from tamiyo_jax.errors import InvalidReportError, PersistenceError, PublishError, SignatureError
from tamiyo_jax.journal import read_journal
from tamiyo_jax.policy import HeuristicPolicy
from tamiyo_jax.storage import StepRecord, StorageManager, read_entries

SECRET = Secret(b"a secret of tests, long enough")
QUICK = PublishingConfig(backoff_ms=2.0)
START_NS = 1_700_000_000_000_000_000
DAY_NS = 86_400 * 1_000_000_000


def start() -> TamiyoState[Any]:
    return initial_state(HeuristicPolicy(HeuristicConfig(), PolicyConfig()).initial_state())


def open_storage(directory: Path, clock: Callable[[], int] = time.time_ns) -> StorageManager[Any]:
    state = start()
    storage = StorageManager.open(
        directory, StorageConfig(), state.policy_state, clock=clock, publishing=True
    )
    storage.start(state if storage.state is None else storage.state)
    return storage


def report(report_id: str) -> FieldReport:
    return FieldReport(
        report_id=report_id,
        command_id="",
        training_run_id="run",
        seed_id="",
        blueprint_id="host",
        outcome=ReportOutcome.NEUTRAL,
        issued_at_ns=time.time_ns(),
    )


def append(storage: StorageManager[Any], *report_ids: str) -> None:
    for report_id in report_ids:
        state = state_to_json(start(), registries=False)
        storage.append_step(StepRecord(report(report_id), "WAIT", "act", state), start())


class Reading:
    """A consumer group with a single consumer, and what it saw."""

    def __init__(self, bus: MemoryBus | DirectoryBus, group: str = "analysis") -> None:
        self.seen: list[str] = []
        self.refused: list[Exception] = []
        self._bus, self._group = bus, group
        self._reader = ReportReader(
            lambda report: self.seen.append(report.report_id),
            secrets=[SECRET],
            refuse=lambda error, _: self.refused.append(error),
        )

    def read(self) -> list[str]:
        self._bus.consume(FIELD_REPORTS, self._group, self._reader)
        return self.seen


class UnreliableBus(MemoryBus):
    """A bus that fails as often as it is set to, for each report; and counts."""

    def __init__(self, failures: float, *, takes_it_anyway: bool = False) -> None:
        super().__init__()
        self.attempts = Counter[str]()
        self._failures, self._takes_it_anyway = failures, takes_it_anyway

    def publish(self, topic: str, payload: bytes, priority: Priority) -> None:
        names: list[str] = []
        ReportReader(
            lambda report: names.append(report.report_id), secrets=[SECRET], refuse=pytest.fail
        )(payload)
        (name,) = names
        self.attempts[name] += 1
        failed = self.attempts[name] <= self._failures
        if not failed or self._takes_it_anyway:
            super().publish(topic, payload, priority)
        if failed:
            raise PublishError("the bus is away; start it", topic=topic)


class DirectoryBus:
    """A bus with a single group, whose messages are files, so that they outlive their publisher."""

    def __init__(self, directory: Path, *, deadly: bool = False) -> None:
        directory.mkdir(exist_ok=True)
        self.directory, self._deadly = directory, deadly

    def publish(self, topic: str, payload: bytes, priority: Priority) -> None:
        name = f"{len(os.listdir(self.directory)):06d}"
        (self.directory / name).write_bytes(payload)
        if self._deadly:
            os.kill(os.getpid(), signal.SIGKILL)

    def consume(self, topic: str, group: str, handler: Handler) -> int:
        messages = sorted(self.directory.iterdir())
        for message in messages:
            handler(message.read_bytes())
        return len(messages)


Events = list[Event]


@contextlib.contextmanager
def publishing(
    storage: StorageManager[Any],
    bus: Any,
    config: PublishingConfig = QUICK,
    **arguments: Any,
) -> Iterator[tuple[Publisher, Events]]:
    events: Events = []
    publisher = Publisher(storage, bus, SECRET, config, emit=events.extend, **arguments)
    try:
        yield publisher, events
    finally:
        publisher.close()


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.002)


def nothing_pending(storage: StorageManager[Any]) -> Callable[[], bool]:
    return lambda: not storage.facts.pending


def counts(publisher: Publisher) -> dict[str, float]:
    prefix = "tamiyo.field_reports."
    return {metric.name.removeprefix(prefix): metric.value for metric in publisher.metrics()}


IDS = [f"report-{index}" for index in range(5)]


def test_what_is_appended_is_published_without_being_asked_for(tmp_path: Path) -> None:
    bus = MemoryBus()
    with open_storage(tmp_path) as storage, publishing(storage, bus) as (publisher, events):
        append(storage, *IDS)
        publisher.notify()
        wait_until(nothing_pending(storage))
        assert Reading(bus).read() == IDS
        wait_until(lambda: counts(publisher)["published_total"] == len(IDS))
        assert counts(publisher) == {
            "published_total": 5.0,
            "retries_total": 0.0,
            "dropped_total": 0.0,
            "pending_total": 0.0,
        }
        assert events == []


@pytest.mark.parametrize("takes_it_anyway", [False, True])
def test_a_bus_that_fails_three_times_then_works_gets_each_report_and_its_reader_sees_it_once(
    tmp_path: Path, takes_it_anyway: bool
) -> None:
    bus = UnreliableBus(3, takes_it_anyway=takes_it_anyway)
    with open_storage(tmp_path) as storage, publishing(storage, bus) as (publisher, events):
        append(storage, *IDS)
        publisher.notify()
        wait_until(nothing_pending(storage))
        assert bus.attempts == dict.fromkeys(IDS, 4)
        assert sorted(Reading(bus).read()) == IDS
        assert counts(publisher)["retries_total"] == 15.0
        assert counts(publisher)["dropped_total"] == 0.0
        assert events == []


def test_a_bus_that_always_fails_has_a_report_dropped_loudly_and_kept_in_the_journal(
    tmp_path: Path,
) -> None:
    bus = UnreliableBus(float("inf"))
    with open_storage(tmp_path) as storage, publishing(storage, bus) as (publisher, events):
        append(storage, *IDS)
        publisher.notify()
        wait_until(nothing_pending(storage))
        wait_until(lambda: len(events) == len(IDS))
        assert bus.attempts == dict.fromkeys(IDS, 1 + QUICK.max_retries)
        assert sorted(event.attributes["report_id"] for event in events) == IDS
        for event in events:
            assert (event.name, event.level) == ("field_report_drop", TelemetryLevel.WARNING)
            assert event.attributes["attempts"] == "4"
            assert event.attributes["message"] == "the bus is away; start it"
        assert counts(publisher)["dropped_total"] == 5.0
        assert counts(publisher)["published_total"] == 0.0
    entries = read_entries(read_journal(tmp_path))
    steps = [entry.content for entry in entries if isinstance(entry.content, StepRecord)]
    assert [step.report.report_id for step in steps] == IDS
    with open_storage(tmp_path) as storage:
        assert not storage.facts.pending


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_bus_that_breaks_its_contract_ends_the_thread_with_an_event(tmp_path: Path) -> None:
    class Broken(MemoryBus):
        def publish(self, topic: str, payload: bytes, priority: Priority) -> None:
            raise BrokenPipeError("the bus is gone")

    with open_storage(tmp_path) as storage, publishing(storage, Broken()) as (publisher, events):
        append(storage, "report-0")
        publisher.notify()
        wait_until(lambda: bool(events))
        (event,) = events
        assert (event.name, event.level) == ("publisher_died", TelemetryLevel.CRITICAL)
        assert event.attributes == {"error": "BrokenPipeError", "message": "the bus is gone"}
        assert [*storage.facts.pending] == ["report-0"]


def test_schedules_survive_a_restart(tmp_path: Path) -> None:
    config = PublishingConfig(backoff_ms=1_000.0)
    now = [START_NS]
    bus = UnreliableBus(2)

    def attempts(directory: Path) -> list[tuple[int, int]]:
        with (
            open_storage(directory, lambda: now[0]) as storage,
            publishing(storage, bus, config, clock=lambda: now[0], chance=lambda: 0.5) as (
                publisher,
                _,
            ),
        ):
            if not bus.attempts:
                append(storage, "a report")
            publisher.publish()
            held = storage.facts.pending.values()
            return [(report.attempts, report.not_before_ns - START_NS) for report in held]

    assert attempts(tmp_path) == [(1, 500_000_000)]
    assert attempts(tmp_path) == [(1, 500_000_000)]
    assert bus.attempts["a report"] == 1
    now[0] = START_NS + 500_000_000
    assert attempts(tmp_path) == [(2, 1_500_000_000)]
    assert bus.attempts["a report"] == 2
    now[0] = START_NS + 1_500_000_000
    assert attempts(tmp_path) == []
    assert Reading(bus).read() == ["a report"]


def test_a_crash_between_publishing_and_acknowledging_publishes_twice_and_is_seen_once(
    tmp_path: Path,
) -> None:
    run, messages = tmp_path / "run", tmp_path / "messages"
    child = subprocess.run([sys.executable, __file__, run, messages], timeout=120, check=False)
    assert child.returncode == -signal.SIGKILL
    bus = DirectoryBus(messages)
    assert len(list(messages.iterdir())) == 1
    with open_storage(run) as storage, publishing(storage, bus) as (publisher, _):
        publisher.publish()
        wait_until(nothing_pending(storage))
        first, second = (
            open_envelope(FIELD_REPORTS, path.read_bytes(), [SECRET])
            for path in sorted(messages.iterdir())
        )
        assert first == second
        assert Reading(bus).read() == ["the report of a process that was killed"]


def publish_and_die(run: Path, messages: Path) -> None:
    """The child of the test above: killed when the bus has the report, before the ACK."""
    storage = open_storage(run)
    append(storage, "the report of a process that was killed")
    with publishing(storage, DirectoryBus(messages, deadly=True)) as (publisher, _):
        publisher.publish()
        time.sleep(60)


def test_publish_returns_when_everything_due_has_been_sent(tmp_path: Path) -> None:
    gate, bus = threading.Event(), MemoryBus()

    class Gated(MemoryBus):
        def publish(self, topic: str, payload: bytes, priority: Priority) -> None:
            gate.wait(20)
            bus.publish(topic, payload, priority)

    with open_storage(tmp_path) as storage, publishing(storage, Gated()) as (publisher, _):
        append(storage, "first")
        publisher.notify()
        append(storage, "second", "third")
        threading.Timer(0.1, gate.set).start()
        by_this_call = publisher.publish()
        assert not storage.facts.pending
        assert by_this_call <= counts(publisher)["published_total"] == 3.0
        assert publisher.publish() == 0
        append(storage, "fourth", "fifth")
        assert publisher.publish() <= 2
        assert not storage.facts.pending
    assert Reading(bus).read() == ["first", "second", "third", "fourth", "fifth"]


def test_a_bus_that_hangs_delays_no_step(tmp_path: Path) -> None:
    hung, entered = threading.Event(), threading.Event()

    class Hanging(MemoryBus):
        def publish(self, topic: str, payload: bytes, priority: Priority) -> None:
            entered.set()
            hung.wait(60)

    with open_storage(tmp_path) as storage, publishing(storage, Hanging()) as (publisher, _):
        append(storage, "the first")
        publisher.notify()
        assert entered.wait(20)
        notified_ms: list[float] = []
        for index in range(100):
            append(storage, f"report-{index}")
            before = time.perf_counter()
            publisher.notify()
            notified_ms.append((time.perf_counter() - before) * 1e3)
        assert counts(publisher)["pending_total"] == 101.0
        hung.set()
    assert statistics.median(notified_ms) < 1.0


def test_what_is_pending_at_closing_goes_out_after_the_next_opening(tmp_path: Path) -> None:
    bus = UnreliableBus(1)
    later = PublishingConfig(backoff_ms=10.0)
    with open_storage(tmp_path) as storage:
        with publishing(storage, bus, later) as (publisher, _):
            append(storage, *IDS)
            publisher.publish()
        published = len(IDS) - len(storage.facts.pending)
        assert not any(thread.name == "publisher" for thread in threading.enumerate())
    with open_storage(tmp_path) as storage, publishing(storage, bus, later) as (publisher, _):
        wait_until(nothing_pending(storage))
        wait_until(lambda: counts(publisher)["published_total"] == len(IDS) - published)
    assert sorted(Reading(bus).read()) == IDS


def test_what_cannot_be_recorded_stops_publishing_loudly(tmp_path: Path) -> None:
    bus = MemoryBus()
    storage = open_storage(tmp_path)
    append(storage, *IDS)
    storage.close()  # from here on no record can be written
    with publishing(storage, bus) as (publisher, events):
        wait_until(lambda: bool(events))
        (event,) = events
        assert (event.name, event.level) == ("persistence_failure", TelemetryLevel.CRITICAL)
        with pytest.raises(PersistenceError):
            publisher.publish()
        publisher.notify()
        wait_until(lambda: all(thread.name != "publisher" for thread in threading.enumerate()))
        assert len(events) == 1
        assert counts(publisher)["published_total"] == 0.0
    assert Reading(bus).read() == IDS[:1]  # the bus accepted it, which could not be recorded
    with open_storage(tmp_path) as reopened, publishing(reopened, bus) as (publisher, _):
        wait_until(nothing_pending(reopened))


LIMITS = st.builds(
    PublishingConfig,
    backoff_ms=st.floats(1e-3, 1e300),
    multiplier=st.floats(1.0, 1e300),
    max_retries=st.integers(0, 2000),
)


@given(
    config=LIMITS,
    attempts=st.integers(0, 2500),
    now_ns=st.integers(0, 2**62),
    chance=st.floats(0.0, 1.0, exclude_max=True),
)
def test_a_schedule_holds_its_limits_whatever_the_configuration(
    config: PublishingConfig, attempts: int, now_ns: int, chance: float
) -> None:
    retry = schedule_retry(config, attempts, now_ns, chance)
    if attempts >= config.max_retries:
        assert retry is None
    else:
        assert retry is not None
        assert retry.attempts == attempts + 1
        assert now_ns <= retry.not_before_ns <= now_ns + DAY_NS


def test_the_backoff_doubles_and_the_jitter_takes_any_share_of_it() -> None:
    config = PublishingConfig()
    for attempts, ceiling_ms in enumerate((1_000, 2_000, 4_000)):
        for chance in (0.0, 0.25, 0.75):
            waits_ns = int(chance * ceiling_ms) * 1_000_000
            expected = Retry(START_NS + waits_ns, attempts + 1)
            assert schedule_retry(config, attempts, START_NS, chance) == expected
    assert schedule_retry(config, 3, START_NS, 0.5) is None
    assert schedule_retry(PublishingConfig(max_retries=0), 0, START_NS, 0.5) is None


def envelope(report_id: str) -> bytes:
    return seal(FIELD_REPORTS, encode_report(report(report_id)), SECRET)


def test_a_report_whose_handling_failed_comes_again_and_one_that_was_handled_does_not() -> None:
    bus, seen, away = MemoryBus(), [], [True]

    def handle(report: FieldReport) -> None:
        if away[0]:
            raise ConnectionError("the consumer's own store is away")
        seen.append(report.report_id)

    reader = ReportReader(handle, secrets=[SECRET], refuse=pytest.fail)
    for _ in range(2):
        bus.publish(FIELD_REPORTS, envelope("a report"), Priority.NORMAL)
    with pytest.raises(ConnectionError):
        bus.consume(FIELD_REPORTS, "analysis", reader)
    away[0] = False
    assert bus.consume(FIELD_REPORTS, "analysis", reader) == 2
    assert seen == ["a report"]


def test_forged_and_senseless_envelopes_are_refused_and_hold_nothing_up() -> None:
    bus = MemoryBus()
    for message in (
        b"",
        seal(FIELD_REPORTS, encode_report(report("forged")), Secret(b"guessed, and guessed wrong")),
        seal("another topic", encode_report(report("moved")), SECRET),
        seal(FIELD_REPORTS, b"\xff\xff", SECRET),
        seal(FIELD_REPORTS, b"", SECRET),
        envelope("genuine"),
    ):
        bus.publish(FIELD_REPORTS, message, Priority.NORMAL)
    reading = Reading(bus)
    assert reading.read() == ["genuine"]
    kinds = [type(error) for error in reading.refused]
    assert kinds == [SignatureError] * 3 + [InvalidReportError] * 2


def test_a_reader_remembers_as_many_ids_as_it_should() -> None:
    seen: list[str] = []
    reader = ReportReader(
        lambda report: seen.append(report.report_id),
        secrets=[SECRET],
        refuse=pytest.fail,
        remember=2,
    )
    for name in ("a", "b", "b", "c", "b", "a"):
        reader(envelope(name))
    assert seen == ["a", "b", "c", "a"]


if __name__ == "__main__":
    publish_and_die(*map(Path, sys.argv[1:]))
