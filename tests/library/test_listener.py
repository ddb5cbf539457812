"""The cache on real libraries: what other processes do, and what goes wrong, is noticed."""

from __future__ import annotations

import ctypes
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
from making import make_blueprint, make_config, make_packet
from redis_server import RedisServer

from tamiyo_jax.config import GraphConfig, LibraryConfig
from tamiyo_jax.contracts import Blueprint, Event, TelemetryLevel
from tamiyo_jax.controller import initial_state, observe, observe_encoded
from tamiyo_jax.errors import (
    DeadlineExceededError,
    PersistenceError,
    StaleCacheError,
    UnknownBlueprintError,
)
from tamiyo_jax.library import (
    BlueprintLibrary,
    BlueprintResolver,
    CacheListener,
    Change,
    MemoryBlueprintLibrary,
    RedisBlueprintLibrary,
    SqliteBlueprintLibrary,
    fetch_inline,
)
from tamiyo_jax.library._memory import Connection

LIMIT_MS = 1_500.0
PATIENT_MS = 60_000.0
PACKET = make_packet(candidate_blueprint_ids=())

WRITER = """
import json, sys
from importlib import import_module
sys.path.append(sys.argv[1])
from making import make_blueprint
module, _, function = sys.argv[2].partition(":")
library = getattr(import_module(module), function)(**json.loads(sys.argv[3]))
for line in sys.stdin:
    print(library.put(make_blueprint("host", risk=float(line))), flush=True)
"""


class Watcher:
    """A resolver on a library, its fetches, and the events it emitted."""

    def __init__(
        self,
        library: BlueprintLibrary,
        limit_ms: float = LIMIT_MS,
        capacity: int = 8,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.events: list[Event] = []
        self.fetched: list[tuple[str, ...]] = []
        self._inline = fetch_inline(library)
        config = LibraryConfig(cache_blueprints=capacity, max_staleness_ms=limit_ms)
        self.listener = CacheListener(library, config, self.events.extend, clock=clock)
        self.resolver = BlueprintResolver(self.listener, self._fetch, GraphConfig())

    def _fetch(self, ids: tuple[str, ...], seconds: float) -> Mapping[str, Blueprint | None]:
        self.fetched.append(ids)
        return self._inline(ids, seconds)

    def risk(self) -> float | None:
        """Of the active blueprint, as a step sees it."""
        return self.resolver.resolve(PACKET, PATIENT_MS)[0].blueprint.risk

    def names(self) -> list[str]:
        return [event.name for event in self.events]

    def emitted(self, name: str) -> bool:
        return name in self.names()

    def refuses(self) -> bool:
        try:
            self.risk()
        except StaleCacheError:
            return True
        return False


@contextmanager
def watching(library: BlueprintLibrary, **arguments: float) -> Iterator[Watcher]:
    watcher = Watcher(library, **arguments)  # type: ignore[arg-type]
    try:
        yield watcher
    finally:
        watcher.resolver.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "blueprint-cache"]


def eventually(holds: Callable[[], bool], seconds: float = 60.0) -> None:
    until = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < until, "this never came true"
        time.sleep(0.005)


@pytest.fixture(params=["sqlite", "redis"])
def library(request: pytest.FixtureRequest, tmp_path: Path) -> BlueprintLibrary:
    if request.param == "sqlite":
        return SqliteBlueprintLibrary(tmp_path / "blueprints.db")
    return RedisBlueprintLibrary(request.getfixturevalue("redis_server").url)


@contextmanager
def writer(connection: Connection | None) -> Iterator[Callable[[float], int]]:
    """Another process that puts the active blueprint on request; returns the revision."""
    assert connection is not None
    tests = str(Path(__file__).parents[1])
    arguments = [tests, connection.factory, json.dumps(connection.arguments)]
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        stdin, stdout = process.stdin, process.stdout
        assert stdin is not None
        assert stdout is not None

        def put(risk: float) -> int:
            stdin.write(f"{risk}\n")
            stdin.flush()
            return int(stdout.readline())

        yield put


def test_a_put_in_another_process_is_seen(library: BlueprintLibrary) -> None:
    with writer(library.connection()) as put, watching(library, limit_ms=10_000) as watcher:
        for i in range(1, 6):
            revision = put(i / 10)
            eventually(lambda r=revision: watcher.listener.cache.watermark >= r)
            assert watcher.risk() == i / 10
    assert watcher.events == []


def test_what_did_not_change_is_asked_for_once(library: BlueprintLibrary) -> None:
    for name in ("host", "grow-a", "grow-b"):
        library.put(make_blueprint(name))
    with watching(library, limit_ms=10_000) as watcher:
        arrays, candidates = watcher.resolver.resolve(make_packet(), PATIENT_MS)
        for _ in range(20):
            assert watcher.resolver.resolve(make_packet(), PATIENT_MS)[0] is arrays
        revision = library.put(make_blueprint("grow-a", risk=0.7))
        eventually(lambda: watcher.listener.cache.watermark == revision)
        again, changed = watcher.resolver.resolve(make_packet(), PATIENT_MS)
    assert again is arrays
    assert [blueprint.risk for blueprint in candidates] == [0.2, 0.2]
    assert [blueprint.risk for blueprint in changed] == [0.7, 0.2]
    assert watcher.fetched == [("host", "grow-a", "grow-b"), ("grow-a",)]


def kill(thread: threading.Thread) -> None:
    """End a thread from outside, wherever it is."""
    assert thread.ident is not None
    ctypes.pythonapi.PyThreadState_SetAsyncExc(
        ctypes.c_ulong(thread.ident), ctypes.py_object(SystemExit)
    )
    thread.join(10.0)
    assert not thread.is_alive()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_killed_listener_emits_an_event_and_is_restarted(library: BlueprintLibrary) -> None:
    library.put(make_blueprint(risk=0.1))
    with watching(library, limit_ms=10_000) as watcher:
        assert watcher.risk() == 0.1
        (thread,) = (thread for thread in threading.enumerate() if thread.name == "blueprint-cache")
        kill(thread)
        (event,) = watcher.events
        assert event.name == "blueprint_cache_listener_died"
        assert event.level is TelemetryLevel.CRITICAL
        assert event.attributes["error"] == "SystemExit"
        library.put(make_blueprint(risk=0.9))
        eventually(lambda: watcher.risk() == 0.9)


class Wrapped:
    """A real library whose notifications a test may distort."""

    def __init__(
        self, library: BlueprintLibrary, spoil: Callable[[list[Change]], list[Change]]
    ) -> None:
        self._spoil = spoil
        self.get = library.get
        self.put = library.put
        self.delete = library.delete
        self.ids = library.ids
        self.revision = library.revision
        self.connection = library.connection
        self._changes = library.changes

    def changes(self, after: int, timeout: float) -> list[Change]:
        return self._spoil(self._changes(after, timeout))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_listener_that_dies_whenever_it_is_started_ends_the_answers(
    library: BlueprintLibrary,
) -> None:
    def spoil(changes: list[Change]) -> list[Change]:
        if not watched:
            return changes
        raise RuntimeError("an unexpected error")

    watched: list[Watcher] = []
    library.put(make_blueprint(risk=0.1))
    # A listener is started again no earlier than after a second.
    with watching(Wrapped(library, spoil), limit_ms=800.0) as watcher:
        assert watcher.risk() == 0.1
        watched.append(watcher)
        library.put(make_blueprint(risk=0.9))
        started = time.monotonic()
        answers = set[float | None]()
        while not watcher.emitted("blueprint_cache_stale"):
            assert time.monotonic() - started < 30.0
            with suppress(StaleCacheError):
                answers.add(watcher.risk())
            time.sleep(0.01)
        assert watcher.refuses()
        assert answers <= {0.1, 0.9}
        assert watcher.events[0].attributes == {
            "error": "RuntimeError",
            "message": "an unexpected error",
        }
        watched.clear()
        eventually(lambda: not watcher.refuses())
        assert watcher.risk() == 0.9


@pytest.mark.parametrize(
    "spoil",
    [
        lambda changes: [],
        lambda changes: changes[1:],
        lambda changes: changes[:-1],
        lambda changes: changes[::-1],
        lambda changes: [*changes, *changes],
    ],
    ids=["all are missed", "the first", "the last", "reversed", "repeated"],
)
def test_missed_reordered_and_repeated_notifications_are_healed(
    library: BlueprintLibrary, spoil: Callable[[list[Change]], list[Change]]
) -> None:
    with watching(Wrapped(library, spoil), limit_ms=10_000) as watcher:
        for i in range(1, 5):
            for name in ("grow-a", "host", "grow-b"):
                library.put(make_blueprint(name, risk=i / 10))
            eventually(lambda now=i / 10: watcher.risk() == now)
        assert watcher.events == []


def test_a_redis_that_restarts_is_noticed_and_healed_and_nothing_stale_is_answered(
    own_redis_server: RedisServer,
) -> None:
    library = RedisBlueprintLibrary(own_redis_server.url)
    library.put(make_blueprint(risk=0.1))
    with watching(library) as watcher:
        assert watcher.risk() == 0.1
        own_redis_server.kill()
        killed = time.monotonic()
        eventually(lambda: watcher.emitted("blueprint_library_failed"))
        eventually(watcher.refuses)
        assert time.monotonic() - killed < LIMIT_MS / 1e3 + 5.0
        own_redis_server.start()
        library.put(make_blueprint(risk=0.9))
        eventually(lambda: not watcher.refuses())
        assert watcher.risk() == 0.9
        assert watcher.names() == ["blueprint_library_failed", "blueprint_cache_stale"]
        failed, stale = watcher.events
        assert "127.0.0.1" in failed.attributes["message"]
        assert (failed.level, stale.level) == (TelemetryLevel.WARNING, TelemetryLevel.CRITICAL)
    library.close()


def test_a_redis_that_lost_everything_and_was_filled_again_gives_no_answer_of_before(
    own_redis_server: RedisServer,
) -> None:
    library = RedisBlueprintLibrary(own_redis_server.url)
    library.put(make_blueprint(risk=0.1))
    with watching(library, limit_ms=20_000) as watcher:
        assert watcher.risk() == 0.1
        own_redis_server.kill()
        for file in own_redis_server.directory.rglob("*.*"):
            if file.is_file():
                file.unlink()
        own_redis_server.start()
        for name in ("other", "host", "another"):
            library.put(make_blueprint(name, risk=0.9))
        eventually(lambda: watcher.risk() == 0.9)
        assert watcher.names() == ["blueprint_library_failed"]
    library.close()


def test_a_redis_that_was_flushed_runs_backwards_which_is_noticed(
    redis_server: RedisServer,
) -> None:
    from redis import Redis

    library = RedisBlueprintLibrary(redis_server.url)
    for _ in range(3):
        library.put(make_blueprint(risk=0.1))
    with watching(library, limit_ms=20_000) as watcher:
        assert watcher.risk() == 0.1
        with Redis.from_url(redis_server.url) as client:
            client.flushall()
        eventually(lambda: watcher.listener.cache.watermark == 0)
        with pytest.raises(UnknownBlueprintError):
            watcher.risk()
        library.put(make_blueprint(risk=0.9))
        eventually(lambda: watcher.listener.cache.watermark == 1)
        assert watcher.risk() == 0.9
    library.close()


def test_a_redis_that_hangs_ends_the_answers_at_the_limit(own_redis_server: RedisServer) -> None:
    library = RedisBlueprintLibrary(own_redis_server.url)
    library.put(make_blueprint())
    with watching(library) as watcher:
        watcher.risk()
        own_redis_server.freeze()
        frozen = time.monotonic()
        eventually(watcher.refuses)
        assert time.monotonic() - frozen < LIMIT_MS / 1e3 + 5.0
        assert watcher.names().count("blueprint_cache_stale") == 1
        own_redis_server.thaw()
        eventually(lambda: not watcher.refuses())
    library.close()


def test_a_file_that_was_replaced_is_noticed(tmp_path: Path) -> None:
    library = SqliteBlueprintLibrary(tmp_path / "blueprints.db")
    for _ in range(3):
        library.put(make_blueprint(risk=0.1))
    with watching(library, limit_ms=20_000) as watcher:
        assert watcher.risk() == 0.1
        fresh = SqliteBlueprintLibrary(tmp_path / "fresh.db")
        fresh.put(make_blueprint(risk=0.9))
        (tmp_path / "fresh.db").replace(tmp_path / "blueprints.db")
        eventually(lambda: watcher.risk() == 0.9)


def test_a_library_that_cannot_be_read_raises_at_once(own_redis_server: RedisServer) -> None:
    library = RedisBlueprintLibrary(own_redis_server.url)
    own_redis_server.kill()
    with pytest.raises(PersistenceError):
        Watcher(library)
    library.close()


def test_a_library_in_memory_needs_no_thread_and_the_next_look_sees_every_change() -> None:
    library = MemoryBlueprintLibrary()
    with watching(library) as watcher:
        assert "blueprint-cache" not in [thread.name for thread in threading.enumerate()]
        for i in range(1, 10):
            library.put(make_blueprint(risk=i / 10))
            assert watcher.risk() == i / 10


def test_all_unknown_blueprints_are_named_and_a_storm_of_them_is_one_fetch() -> None:
    library = MemoryBlueprintLibrary()
    library.put(make_blueprint("grow-a"))
    packet = make_packet(candidate_blueprint_ids=("grow-a", "nowhere", "host"))
    with watching(library) as watcher:
        for _ in range(50):
            with pytest.raises(UnknownBlueprintError, match="'host', 'nowhere'") as raised:
                watcher.resolver.resolve(packet, PATIENT_MS)
            assert raised.value.blueprint_ids == ("host", "nowhere")
        assert watcher.fetched == [("host", "grow-a", "nowhere")]
        library.put(make_blueprint("host"))
        library.put(make_blueprint("nowhere"))
        arrays, candidates = watcher.resolver.resolve(packet, PATIENT_MS)
    assert arrays.blueprint.blueprint_id == "host"
    assert [blueprint.blueprint_id for blueprint in candidates] == ["grow-a", "nowhere", "host"]


def test_a_late_fetch_is_an_error_and_what_it_brought_is_kept() -> None:
    class Slow(MemoryBlueprintLibrary):
        def get(self, blueprint_id: str) -> Blueprint | None:
            time.sleep(0.03)
            return super().get(blueprint_id)

    library = Slow()
    for name in ("host", "grow-a", "grow-b"):
        library.put(make_blueprint(name))
    with watching(library) as watcher:
        for _ in range(3):
            with pytest.raises(DeadlineExceededError, match="metadata_ms") as raised:
                watcher.resolver.resolve(make_packet(), 5.0)
            assert raised.value.stage == "metadata"
        assert watcher.resolver.resolve(make_packet(), 5.0)
    assert [len(ids) for ids in watcher.fetched] == [3, 2, 1]


def test_a_fetch_that_was_overtaken_is_made_again() -> None:
    library = MemoryBlueprintLibrary()
    library.put(make_blueprint(risk=0.1))
    with watching(library) as watcher:
        listener = watcher.listener

        def overtaken(ids: tuple[str, ...], seconds: float) -> Mapping[str, Blueprint | None]:
            answers = {name: library.get(name) for name in ids}
            if library.revision() == 1:
                library.put(make_blueprint(risk=0.9))
                listener.look(())
            return answers

        resolver = BlueprintResolver(listener, overtaken, GraphConfig())
        assert resolver.resolve(PACKET, PATIENT_MS)[0].blueprint.risk == 0.9


def test_a_cache_of_one_still_answers_a_packet_of_many() -> None:
    library = MemoryBlueprintLibrary()
    for name in ("host", "grow-a", "grow-b"):
        library.put(make_blueprint(name))
    with watching(library, capacity=1) as watcher:
        for _ in range(3):
            _, candidates = watcher.resolver.resolve(make_packet(), PATIENT_MS)
            assert [blueprint.blueprint_id for blueprint in candidates] == ["grow-a", "grow-b"]
        assert len(watcher.listener.cache.entries) == 1


def test_arrays_of_the_cache_give_what_encoding_anew_gives_and_are_not_written_to() -> None:
    library, config = MemoryBlueprintLibrary(), make_config()
    for name in ("host", "grow-a", "grow-b"):
        library.put(make_blueprint(name))
    with watching(library) as watcher:
        arrays, candidates = watcher.resolver.resolve(make_packet(), PATIENT_MS)
        before = [array.copy() for array in arrays.raw]
        for step in range(3):
            packet = make_packet(
                step,
                training_metrics={
                    **make_packet().training_metrics,
                    "layer/L1/latency_ms": float(step),
                },
            )
            again = observe_encoded(config, initial_state({}), packet, arrays, candidates)
            anew = observe(config, initial_state({}), packet, arrays.blueprint, candidates)
            for left, right in zip(again.observation.raw, anew.observation.raw, strict=True):
                np.testing.assert_array_equal(left, right)
            assert again.coverage == anew.coverage
    for left, right in zip(before, arrays.raw, strict=True):
        np.testing.assert_array_equal(left, right)
