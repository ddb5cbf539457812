"""The cache of a controller follows the change notifications of its library."""

from __future__ import annotations

import time
from pathlib import Path

from making import make_blueprint, make_packet, open_tamiyo

from tamiyo_jax.library import SqliteBlueprintLibrary


def test_the_cache_follows_change_notifications_and_nothing_else(tmp_path: Path) -> None:
    library = SqliteBlueprintLibrary(tmp_path / "blueprints.db")
    for name in ("host", "grow-a", "grow-b"):
        library.put(make_blueprint(name))
    elsewhere = SqliteBlueprintLibrary(tmp_path / "blueprints.db")
    with open_tamiyo(tmp_path / "run", library=library) as tamiyo:
        listener = tamiyo._parts.resolver._listener

        def fetched_by(step: int) -> int:
            before = listener.cache.misses
            tamiyo.step(make_packet(step))
            return listener.cache.misses - before

        assert [fetched_by(step) for step in range(3)] == [3, 0, 0]
        revision = elsewhere.put(make_blueprint("grow-a", risk=0.4))
        deadline = time.monotonic() + 10.0
        while listener.cache.watermark < revision:
            assert time.monotonic() < deadline, "the change never arrived"
            time.sleep(0.005)
        assert [fetched_by(step) for step in range(3, 5)] == [1, 0]
        assert listener.cache.entries["grow-a"].blueprint.revision == revision
        assert listener.cache.entries["host"].blueprint.revision == 1
