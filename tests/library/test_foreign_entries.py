"""Entries that other programs wrote into a library's changes are skipped, and reported once."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from making import make_blueprint, make_packet
from redis import Redis
from redis_server import RedisServer

from tamiyo_jax.config import GraphConfig, LibraryConfig
from tamiyo_jax.contracts import Event
from tamiyo_jax.library import (
    BlueprintLibrary,
    BlueprintResolver,
    CacheListener,
    ChangeKind,
    RedisBlueprintLibrary,
    SqliteBlueprintLibrary,
    fetch_inline,
)

STREAM = "{tamiyo}:changes"
PACKET = make_packet(candidate_blueprint_ids=())
ENTRIES = [
    {b"hello": b"world"},
    {b"blueprint_id": b"host"},
    {b"blueprint_id": b"host", b"kind": b"rename"},
    {b"blueprint_id": b"", b"kind": b"put"},
    {b"blueprint_id": b"host", b"kind": b"foreign"},
    {b"\xff\xfe": b"\x80"},
]


def eventually(holds: Callable[[], bool]) -> None:
    until = time.monotonic() + 15.0
    while not holds():
        assert time.monotonic() < until, "this never came true"
        time.sleep(0.005)


def write_foreign_entries(library: BlueprintLibrary, tmp_path: Path, server: RedisServer) -> None:
    if isinstance(library, SqliteBlueprintLibrary):
        with sqlite3.connect(tmp_path / "blueprints.db") as db:
            rows = [("host", "rename"), ("", "put"), (b"\xff", "put"), ("host", b"\x80")]
            db.executemany("INSERT INTO changes (blueprint_id, kind) VALUES (?, ?)", rows)
        db.close()
        return
    with Redis.from_url(server.url) as client:
        for fields in ENTRIES:
            client.xadd(STREAM, fields)
        (newest,) = client.xrevrange(STREAM, count=1)
        client.xadd(STREAM, ENTRIES[0], id=newest[0].split(b"-")[0] + b"-77")


@pytest.fixture(params=["sqlite", "redis"])
def library(request: pytest.FixtureRequest, tmp_path: Path) -> BlueprintLibrary:
    if request.param == "sqlite":
        return SqliteBlueprintLibrary(tmp_path / "blueprints.db")
    return RedisBlueprintLibrary(request.getfixturevalue("redis_server").url)


def test_a_controller_goes_on_behind_foreign_entries_and_reports_them_once(
    library: BlueprintLibrary, tmp_path: Path, redis_server: RedisServer
) -> None:
    library.put(make_blueprint("host", risk=0.2))
    events: list[Event] = []
    fetches: list[tuple[str, ...]] = []
    inline = fetch_inline(library)

    def fetch(ids: tuple[str, ...], seconds: float) -> object:
        fetches.append(ids)
        return inline(ids, seconds)

    listener = CacheListener(library, LibraryConfig(max_staleness_ms=2_000.0), events.extend)
    resolver = BlueprintResolver(listener, fetch, GraphConfig())  # type: ignore[arg-type]

    def read_risk() -> float | None:
        return resolver.resolve(PACKET, 60_000.0)[0].blueprint.risk

    try:
        assert read_risk() == 0.2
        write_foreign_entries(library, tmp_path, redis_server)
        eventually(lambda: bool(events))
        assert library.put(make_blueprint("host", risk=0.7)) == library.revision()
        eventually(lambda: read_risk() == 0.7)
        write_foreign_entries(library, tmp_path, redis_server)
        library.put(make_blueprint("host", risk=0.3))
        eventually(lambda: read_risk() == 0.3)
        eventually(lambda: listener.cache.watermark == library.revision())
        before = len(fetches)
        for _ in range(20):
            read_risk()
            time.sleep(0.05)  # several polls, none of which reads the entries again
        assert len(fetches) <= before + 1
    finally:
        resolver.close()
    assert [event.name for event in events] == ["blueprint_library_foreign_entry"]


@given(fields=st.dictionaries(st.binary(max_size=9), st.binary(max_size=9), min_size=1, max_size=3))
@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_the_fields_of_an_entry_reading_changes_raises_nothing(
    fields: dict[bytes, bytes], redis_server: RedisServer
) -> None:
    library = RedisBlueprintLibrary(redis_server.url)
    before = library.revision()
    with Redis.from_url(redis_server.url) as client:
        client.xadd(STREAM, fields)
    revision = library.put(make_blueprint("host"))
    *foreign, ours = library.changes(before, 0.0)
    assert [change.kind for change in foreign] == [ChangeKind.FOREIGN]
    assert (ours.revision, ours.blueprint_id, ours.kind) == (revision, "host", ChangeKind.PUT)
    library.close()
