"""Servers and Redis are killed at random while runs train; what the runs got is compared after."""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from making import SECRET
from redis.exceptions import RedisError
from redis_server import RedisServer
from served import (
    ServerProcess,
    alone,
    client_of,
    insist,
    put_blueprints,
    redis_of,
    story_of,
    summarize,
)

from tamiyo_jax.contracts import Secret
from tamiyo_jax.decision import Decision
from tamiyo_jax.serving import run_key
from tamiyo_jax.serving._messages import RunKeys, open_answer

_RUNS = 3
_LONGEST = 3_000
_BETWEEN_S = 0.1


class Figures(NamedTuple):
    """What came of a campaign.

    Attributes:
      kills: of servers and of Redis.
      decisions: that the runs got.
      different: decisions that are not those of an in-process controller.
      repeated: decision ids that two packets got.
      changed: packets that two different answers were written for.
    """

    kills: int
    decisions: int
    different: int
    repeated: int
    changed: int


class _Training:
    """A run in a thread of its own, and all that was ever answered to it."""

    def __init__(self, redis: RedisServer, run_id: str, shift: int, over: threading.Event) -> None:
        self.run_id = run_id
        self.packets = story_of(run_id, _LONGEST, shift=shift)
        self.got: list[Decision] = []
        self.changed = 0
        self._answers: dict[int, bytes] = {}
        self._redis, self._over = redis, over
        self._keys, self._secret = RunKeys.of(run_id), Secret(run_key(SECRET, run_id))
        self.thread = threading.Thread(target=self._train)
        self.thread.start()

    def _train(self) -> None:
        with client_of(self._redis.url, self.run_id) as client, redis_of(self._redis) as reader:
            for packet in self.packets:
                self.got.append(insist(client, packet))
                with contextlib.suppress(RedisError):  # it is killed now and then
                    for _, fields in reader.xrange(self._keys.answers):
                        self._look_at(fields[b"m"])
                if self._over.wait(_BETWEEN_S):
                    return

    def _look_at(self, message: bytes) -> None:
        number, result = open_answer(self._keys, message, self._secret)
        if result is not None:
            self.changed += self._answers.setdefault(number, message) != message


def kill_at_random(
    redis: RedisServer, directory: Path, *, kills: int, seed: int, pause_s: float
) -> Figures:
    """Let two servers serve three runs, and kill one of them or Redis again and again.

    `pause_s` is the longest time between two kills.
    """
    chance = random.Random(seed)
    put_blueprints(redis.url)
    over = threading.Event()
    with _servers(redis, directory) as servers:
        runs = [_Training(redis, f"run-{i}", 3 * i, over) for i in range(_RUNS)]
        for number in range(kills):
            time.sleep(chance.uniform(0.1, 1.0) * pause_s)
            if chance.random() < 0.5:
                redis.kill()
                redis.start()
            else:
                victim = chance.randrange(len(servers))
                servers[victim].end()
                servers[victim] = ServerProcess(redis.url, directory / f"server-{number}-again")
        over.set()
        for run in runs:
            run.thread.join()
    different = 0
    for run in runs:
        expected = alone(directory / f"alone-{run.run_id}", run.packets[: len(run.got)])
        different += sum(
            summarize(one) != other for one, other in zip(run.got, expected, strict=True)
        )
    ids = [one.decision_id for run in runs for one in run.got]
    changed = sum(run.changed for run in runs)
    return Figures(kills, len(ids), different, len(ids) - len(set(ids)), changed)


@contextlib.contextmanager
def _servers(redis: RedisServer, directory: Path) -> Iterator[list[ServerProcess]]:
    servers = [ServerProcess(redis.url, directory / f"server-{i}") for i in range(2)]
    try:
        for server in servers:
            assert "serves" in server.first_line
        yield servers
    finally:
        for server in servers:
            server.end()
