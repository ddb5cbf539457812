"""The contract of all blueprint libraries, and the behaviour particular to each."""

from __future__ import annotations

import multiprocessing
import sqlite3
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib import import_module
from multiprocessing.pool import Pool
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from making import make_blueprint
from redis_server import RedisServer

from tamiyo_jax.config import GraphConfig
from tamiyo_jax.errors import (
    ConfigurationError,
    GraphCapacityError,
    InvalidBlueprintError,
    PersistenceError,
)
from tamiyo_jax.library import (
    BlueprintLibrary,
    Change,
    ChangeKind,
    MemoryBlueprintLibrary,
    RedisBlueprintLibrary,
    SqliteBlueprintLibrary,
    serve_library,
)
from tamiyo_jax.library import _memory as library_module
from tamiyo_jax.library import _redis as redis_module
from tamiyo_jax.library import _sqlite as sqlite_module
from tamiyo_jax.library._memory import Connection

NAMES = ("memory", "sqlite", "redis")
SHARED = ("sqlite", "redis")

Make = Callable[..., BlueprintLibrary]


@pytest.fixture
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Make:
    """Opens the library of this kind that belongs to the test; again opens the same library."""
    match request.param:
        case "memory":
            return MemoryBlueprintLibrary
        case "sqlite":
            path = tmp_path / "deeper" / "blueprints.db"
            return lambda caps=None: SqliteBlueprintLibrary(path, caps)
        case "redis":
            url = request.getfixturevalue("redis_server").url
            return lambda caps=None: RedisBlueprintLibrary(url, caps)
        case other:
            raise AssertionError(other)


@pytest.fixture(scope="module")
def processes() -> Iterator[Pool]:
    """Two other processes."""
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        yield pool
        pool.close()
        pool.join()


every_library = pytest.mark.parametrize("make", NAMES, indirect=True)
every_shared_library = pytest.mark.parametrize("make", SHARED, indirect=True)


def connected(connection: Connection | None) -> BlueprintLibrary:
    """Open a library as a worker process does."""
    assert connection is not None
    module, _, function = connection.factory.partition(":")
    return getattr(import_module(module), function)(**connection.arguments)


def as_put(library: BlueprintLibrary, *names: str) -> list[Change]:
    return [Change(library.put(make_blueprint(name)), name, ChangeKind.PUT) for name in names]


@every_library
def test_a_new_library_is_empty(make: Make) -> None:
    library = make()
    assert library.revision() == 0
    assert library.ids() == []
    assert library.get("host") is None
    assert library.changes(0, 0.0) == []


@every_library
def test_a_blueprint_comes_back_as_it_was_put_with_its_revision(make: Make) -> None:
    library = make()
    odd = make_blueprint("ein Übel 🌱 'quoted'", risk=0.1 + 0.2)
    assert library.put(make_blueprint("other")) == 1
    assert library.put(odd) == 2
    assert library.get(odd.blueprint_id) == replace(odd, revision=2)
    assert library.put(replace(odd, risk=0.5)) == 3
    assert library.get(odd.blueprint_id) == replace(odd, risk=0.5, revision=3)
    assert library.ids() == [odd.blueprint_id, "other"]


@every_library
def test_revisions_grow_by_one_per_change_even_if_there_was_nothing_to_delete(make: Make) -> None:
    library = make()
    assert [library.put(make_blueprint()), library.delete("host"), library.delete("host")] == [
        1,
        2,
        3,
    ]
    assert library.revision() == 3
    assert library.get("host") is None
    kinds = [change.kind for change in library.changes(0, 0.0)]
    assert kinds == [ChangeKind.PUT, ChangeKind.DELETE, ChangeKind.DELETE]


@every_library
def test_changes_begin_above_the_revision_asked_for(make: Make) -> None:
    library = make()
    changes = as_put(library, "a", "b", "a")
    for after in range(4):
        assert library.changes(after, 0.0) == changes[after:]
    assert library.changes(17, 0.0) == []


@every_library
def test_a_reader_waits_no_longer_than_it_said_and_no_longer_than_needed(make: Make) -> None:
    library = make()
    started = time.monotonic()
    assert library.changes(0, 0.15) == []
    assert 0.14 <= time.monotonic() - started < 10.0
    timer = threading.Timer(0.1, library.put, (make_blueprint(),))
    timer.start()
    started = time.monotonic()
    assert [change.revision for change in library.changes(0, 20.0)] == [1]
    assert time.monotonic() - started < 15.0
    timer.join()


@every_library
def test_a_bad_blueprint_is_refused_and_changes_nothing(make: Make) -> None:
    library = make(GraphConfig(max_layers=2))
    for bad, error in (
        (make_blueprint(), GraphCapacityError),
        (make_blueprint("", layers=()), InvalidBlueprintError),
        (make_blueprint("nan", layers=(), risk=float("nan")), InvalidBlueprintError),
    ):
        with pytest.raises(error):
            library.put(bad)
    assert (library.revision(), library.ids(), library.changes(0, 0.0)) == (0, [], [])


@every_library
def test_threads_that_write_at_once_lose_nothing_and_share_one_count(make: Make) -> None:
    library = make()
    revisions: list[int] = []

    def write(name: str) -> None:
        for turn in range(15):
            blueprint = make_blueprint(name, risk=turn / 100)
            revisions.append(library.put(blueprint) if turn % 5 else library.delete(name))

    threads = [threading.Thread(target=write, args=(f"b{i % 2}",)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert_consistent(library, revisions, 60)


def write_in_process(connection: Connection, name: str) -> list[int]:
    library = connected(connection)
    return [library.put(make_blueprint(name, risk=turn / 100)) for turn in range(15)]


def open_first(path: str, at: float) -> int:
    time.sleep(max(0.0, at - time.monotonic()))
    return SqliteBlueprintLibrary(path).put(make_blueprint())


@every_shared_library
def test_processes_that_write_at_once_lose_nothing_and_share_one_count(
    processes: Pool, make: Make
) -> None:
    library = make()
    jobs = [(library.connection(), name) for name in ("a", "b", "a", "b")]
    revisions = [
        revision for part in processes.starmap(write_in_process, jobs) for revision in part
    ]
    assert_consistent(library, revisions, 60)


def assert_consistent(library: BlueprintLibrary, revisions: list[int], count: int) -> None:
    """Each change once, in order; and each blueprint is that of its newest change."""
    assert sorted(revisions) == list(range(1, count + 1))
    changes = library.changes(0, 0.0)
    assert [change.revision for change in changes] == list(range(1, count + 1))
    newest = {change.blueprint_id: change for change in changes}
    for name, change in newest.items():
        blueprint = library.get(name)
        if change.kind is ChangeKind.DELETE:
            assert blueprint is None
        else:
            assert blueprint is not None
            assert blueprint.revision == change.revision


operations = st.lists(
    st.tuples(st.sampled_from(["put", "delete"]), st.sampled_from("abc"), st.integers(0, 9)),
    max_size=12,
)


@every_library
@settings(
    max_examples=15,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(steps=operations)
def test_any_history_gives_what_a_plain_dictionary_would(
    make: Make, steps: list[tuple[str, str, int]]
) -> None:
    library = make()
    base = library.revision()
    model = {name: library.get(name) for name in library.ids()}
    changes: list[Change] = []
    for kind, name, risk in steps:
        if kind == "put":
            blueprint = make_blueprint(name, risk=risk / 10)
            revision = library.put(blueprint)
            model[name] = replace(blueprint, revision=revision)
        else:
            revision = library.delete(name)
            model.pop(name, None)
        changes.append(Change(revision, name, ChangeKind(kind)))
    assert [change.revision for change in changes] == [base + 1 + i for i in range(len(steps))]
    assert library.ids() == sorted(model)
    assert {name: library.get(name) for name in model} == model
    assert library.changes(base, 0.0) == changes


@every_shared_library
def test_what_one_opening_writes_every_other_reads(make: Make) -> None:
    first = make(GraphConfig(max_layers=7))
    second = connected(first.connection())
    changes = as_put(first, "host")
    assert second.changes(0, 5.0) == changes
    assert second.get("host") == first.get("host")
    with pytest.raises(GraphCapacityError, match="7"):
        second.put(make_blueprint("big", layers=make_blueprint().layers * 3))


@every_shared_library
def test_old_changes_are_forgotten_and_their_absence_shows(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (sqlite_module, redis_module):
        monkeypatch.setattr(module, "CHANGES_KEPT", 3)
    library = make()
    changes = as_put(library, *"abcde")
    assert library.changes(0, 0.0) == changes[2:]
    assert library.revision() == 5
    assert library.ids() == [*"abcde"]
    assert library_module.CHANGES_KEPT >= 1_000


def test_a_library_in_memory_cannot_be_opened_by_another_process() -> None:
    assert MemoryBlueprintLibrary().connection() is None


def test_a_file_that_processes_open_first_at_once_is_made_once(
    processes: Pool, tmp_path: Path
) -> None:
    for turn in range(20):
        path = str(tmp_path / f"{turn}.db")
        at = time.monotonic() + 0.03
        assert sorted(processes.starmap(open_first, [(path, at)] * 2, chunksize=1)) == [1, 2]


def test_a_file_that_is_no_database_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "blueprints.db"
    path.write_bytes(b"this is no database, and long enough to be looked at" * 20)
    with pytest.raises(PersistenceError, match=r"blueprints\.db"):
        SqliteBlueprintLibrary(path)
    with pytest.raises(PersistenceError, match=r"blueprints\.db"):
        SqliteBlueprintLibrary(path / "below" / "a file")


def test_a_database_that_was_taken_away_is_an_error_and_is_not_made_anew(tmp_path: Path) -> None:
    path = tmp_path / "blueprints.db"
    library = SqliteBlueprintLibrary(path)
    library.put(make_blueprint())
    path.unlink()
    for call in (library.revision, lambda: library.get("host"), lambda: library.changes(0, 0.0)):
        with pytest.raises(PersistenceError, match="unable to open"):
            call()
    assert not path.exists()


def test_a_writer_that_fails_in_the_middle_leaves_neither_blueprint_nor_change(
    tmp_path: Path,
) -> None:
    library = SqliteBlueprintLibrary(tmp_path / "blueprints.db")
    library.put(make_blueprint())
    with sqlite3.connect(tmp_path / "blueprints.db") as db:
        db.execute(
            "CREATE TRIGGER full BEFORE INSERT ON blueprints "
            "BEGIN SELECT RAISE(ABORT, 'no room'); END"
        )
    db.close()
    with pytest.raises(PersistenceError, match="no room"):
        library.put(make_blueprint("late"))
    assert (library.revision(), library.ids()) == (1, ["host"])
    assert library.delete("late") == 2


def test_a_relative_path_keeps_its_meaning_when_the_process_moves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    library = SqliteBlueprintLibrary("blueprints.db")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert library.put(make_blueprint()) == 1
    assert (tmp_path / "blueprints.db").exists()


def test_a_server_that_is_away_is_a_persistence_error_and_coming_back_is_enough(
    own_redis_server: RedisServer,
) -> None:
    library = RedisBlueprintLibrary(own_redis_server.url)
    library.put(make_blueprint())
    own_redis_server.kill()
    for call in (library.revision, lambda: library.get("host"), lambda: library.changes(1, 1.0)):
        with pytest.raises(PersistenceError, match="127"):
            call()
    with pytest.raises(PersistenceError, match="127"):
        RedisBlueprintLibrary(own_redis_server.url)
    own_redis_server.start()
    assert library.put(make_blueprint()) == 2
    assert [change.revision for change in library.changes(0, 0.0)] == [1, 2]
    library.close()


def test_a_server_that_hangs_is_given_up_in_time(own_redis_server: RedisServer) -> None:
    library = RedisBlueprintLibrary(own_redis_server.url)
    own_redis_server.freeze()
    started = time.monotonic()
    with pytest.raises(PersistenceError, match="Timeout"):
        library.changes(0, 60.0)
    assert time.monotonic() - started < 30.0
    own_redis_server.thaw()
    assert library.revision() == 0
    library.close()


def test_passwords_of_a_server_are_never_shown(redis_server: RedisServer) -> None:
    url = redis_server.url.replace("redis://", "redis://user:hunter2@")
    with pytest.raises(PersistenceError) as refused:
        RedisBlueprintLibrary(url)
    assert "hunter2" not in str(refused.value) + repr(refused.value.context)
    assert f"127.0.0.1:{redis_server.port}" in str(refused.value)
    library = RedisBlueprintLibrary(f"{redis_server.url}?client_name=hunter2")
    assert "hunter2" not in repr(library)
    library.close()


def test_a_malformed_redis_url_is_a_configuration_error(redis_server: RedisServer) -> None:
    with pytest.raises(ConfigurationError, match="cannot be read"):
        RedisBlueprintLibrary("http://user:hunter2@nowhere")


def test_without_redis_py_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "redis", None)
    with pytest.raises(ConfigurationError, match=r"tamiyo_jax\[redis\]"):
        RedisBlueprintLibrary("redis://127.0.0.1:1/0")


def test_a_blueprint_too_large_for_this_reader_does_not_keep_others_from_being_served(
    tmp_path: Path,
) -> None:
    path = tmp_path / "blueprints.db"
    generous = SqliteBlueprintLibrary(path)
    for name in ("a-large-one", "host"):
        generous.put(make_blueprint(name, layers=make_blueprint().layers[: 3 - (name == "host")]))
    connection = SqliteBlueprintLibrary(path, GraphConfig(max_layers=2)).connection()
    assert connection is not None
    serve = serve_library(connection.factory, connection.arguments)
    assert serve(("host",))["host"] is not None
    with pytest.raises(GraphCapacityError):
        serve(("a-large-one",))
