"""One server, many runs: what each gets is what a controller of its own would decide."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from redis_server import RedisServer
from served import alone, client_of, put_blueprints, served, story_of, summarize

from tamiyo_jax.errors import (
    InvalidPacketError,
    UnknownBlueprintError,
)


def test_interleaved_runs_get_the_decisions_of_controllers_of_their_own(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    put_blueprints(redis_server.url)
    stories = {f"run-{i}": story_of(f"run-{i}", 8, shift=3 * i) for i in range(3)}
    order = [run_id for run_id, packets in stories.items() for _ in packets]
    random.Random(0).shuffle(order)
    got: dict[str, list] = {run_id: [] for run_id in stories}
    with served(redis_server.url, tmp_path / "served"):
        clients = {run_id: client_of(redis_server.url, run_id) for run_id in stories}
        for run_id in order:
            packet = stories[run_id][len(got[run_id])]
            got[run_id].append(summarize(clients[run_id].step(packet)))
        for client in clients.values():
            client.close()
    for run_id, packets in stories.items():
        assert got[run_id] == alone(tmp_path / run_id, packets)


def test_errors_of_a_step_arrive_with_their_type_and_context(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    put_blueprints(redis_server.url)
    (packet,) = story_of("run-1", 1)
    import dataclasses

    with served(redis_server.url, tmp_path), client_of(redis_server.url, "run-1") as client:
        with pytest.raises(UnknownBlueprintError) as raised:
            client.step(dataclasses.replace(packet, blueprint_id="nowhere"))
        assert raised.value.blueprint_ids == ("nowhere",)
        with pytest.raises(InvalidPacketError, match="training_run_id"):
            client.step(dataclasses.replace(packet, training_run_id="run-2"))
        assert client.step(packet).action
