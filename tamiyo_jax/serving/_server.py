"""The server: finds runs, takes those that are its own, and answers their packets.

A single thread does all of it in rounds: read what has come for all runs, refuse what is not to
be answered, decide on the rest a few at a time, the oldest first, and write the answers of those
in one round trip. What is not written was never answered, and is decided anew from the state in
Redis.
"""

from __future__ import annotations

import hashlib
import os
import socket
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from tamiyo_jax.contracts import Secret, SystemStatePacket, decode_packet
from tamiyo_jax.decision import Decision
from tamiyo_jax.errors import (
    ConfigurationError,
    InvalidMessageError,
    InvalidPacketError,
    PublishError,
    SignatureError,
    TamiyoError,
)
from tamiyo_jax.service import Fleet
from tamiyo_jax.serving._limits import Limits
from tamiyo_jax.serving._messages import HELLO, RunKeys, open_request, run_key, seal_answer
from tamiyo_jax.serving._metrics import Metrics
from tamiyo_jax.serving._store import Entry, RunStore, Write

__all__ = ["Server"]

_BLOCK_MS = 100
_RETRY_S = 0.2
_TOGETHER = 8  # packets whose answers are written together: the first of them waits for the last
_WAY_MS = 5.0  # from Redis to the client


@dataclass(slots=True)
class _Run:
    """A run that this server owns.

    Attributes:
      keys: its keys in Redis.
      secret: its key for signatures.
      token: the fencing token.
      position, number, digest, state: as in `Taken`.
      opened: whether the fleet has it; it does from the first packet that verifies.
      granted: packets that it may still send, filled up with time.
      seen: when the last entry came, or `granted` was filled up; seconds, monotonic.
    """

    keys: RunKeys
    secret: Secret
    token: int
    position: str
    number: int
    digest: bytes
    state: str | None
    granted: float
    seen: float
    opened: bool = False


class _RefusedError(Exception):
    """An entry is not answered; `reason` is a label of the metric."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class _Question:
    """A packet that is to be decided on."""

    run_id: str
    position: str
    number: int
    digest: bytes
    packet: SystemStatePacket


class Server:
    """Decides for many runs whose packets come over Redis.

    Several servers may share the runs: each run belongs to one of those that are alive, which
    its id and their names decide. `run` returns after `stop`.

    Args:
      url: of Redis.
      fleet: decides; the server is its only user, and does not close it.
      secret: from which the keys of the runs are derived; at least 16 bytes.
      limits: what runs are granted.
      metrics: where figures are counted.

    Raises:
      MissingSecretError: the secret is too short.
      ConfigurationError: redis-py is not installed, or cannot read the URL.
    """

    def __init__(
        self, url: str, fleet: Fleet, *, secret: bytes, limits: Limits, metrics: Metrics
    ) -> None:
        Secret(secret).check_strength()
        self.name = f"{socket.gethostname()}-{os.getpid()}-{os.urandom(4).hex()}"
        self._secret = secret
        self._fleet = fleet
        self._limits = limits
        self._metrics = metrics
        self._store = RunStore(url, self.name)
        self._runs: dict[str, _Run] = {}
        self._stopping = False
        self._next_beat = 0.0
        self._answering_ms = 0.0  # how long answering a packet takes; a moving average
        self._turned = time.monotonic()
        self._ended = threading.Event()

    def stop(self) -> None:
        """Let `run` answer what it has read, hand its runs on, and return; for signal handlers."""
        self._stopping = True

    def run(self) -> None:
        """Serve until `stop`; a Redis that fails is waited for."""
        heart = threading.Thread(target=self._beat, name="heartbeat", daemon=True)
        heart.start()
        try:
            self._serve()
        finally:
            self._ended.set()
            heart.join()
        self._leave()

    def _beat(self) -> None:
        """Keep the lease while a round takes long, as when it compiles; but not for ever."""
        while not self._ended.wait(self._limits.lease_s / 4):
            if time.monotonic() - self._turned < self._limits.round_s:
                with suppress(PublishError):
                    self._store.beat(self._limits.lease_s)

    def _serve(self) -> None:
        while not self._stopping:
            self._turned = time.monotonic()
            try:
                self._tend()
                self._round()
            except PublishError:
                # What was written is not known, so all runs are taken anew from what Redis has.
                self._metrics.lose_redis()
                self._forget(list(self._runs))
                self._next_beat = 0.0
                time.sleep(_RETRY_S)

    def _leave(self) -> None:
        """Hand all runs on."""
        self._metrics.drain()
        try:
            for run_id in list(self._runs):
                self._hand_on(run_id, kept_s=0.0)
            self._store.leave()
        except PublishError:
            self._metrics.lose_redis()  # the lease ends by itself
        self._forget(list(self._runs))
        self._store.close()

    def _tend(self) -> None:
        """Now and then: say that this server is alive, and take and hand on runs."""
        now = time.monotonic()
        if now < self._next_beat:
            return
        self._next_beat = now + self._limits.lease_s / 4
        servers = self._store.beat(self._limits.lease_s)
        self._metrics.reach_redis()
        for run_id, run in list(self._runs.items()):
            if _owner(run_id, servers) != self.name:
                self._hand_on(run_id, kept_s=0.0)
            elif now - run.seen > self._limits.idle_s:
                self._hand_on(run_id, kept_s=self._limits.kept_s)
        for run_id in sorted(self._store.find() - set(self._runs)):
            if _owner(run_id, servers) == self.name and len(self._runs) < self._limits.runs:
                self._take(run_id, now)
        self._metrics.set_runs(len(self._runs))

    def _take(self, run_id: str, now: float) -> None:
        try:
            keys = RunKeys.of(run_id)
        except ConfigurationError:
            return  # a stream of something else
        taken = self._store.take(keys)
        if taken is not None:
            secret = Secret(run_key(self._secret, run_id))
            granted = self._limits.packets_per_s
            self._runs[run_id] = _Run(keys, secret, *taken, granted=granted, seen=now)

    def _hand_on(self, run_id: str, kept_s: float) -> None:
        run = self._runs[run_id]
        self._forget([run_id])
        self._store.release(run.keys, run.token, kept_s)

    def _forget(self, run_ids: Sequence[str]) -> None:
        for run_id in run_ids:
            del self._runs[run_id]
            self._fleet.release(run_id)

    def _round(self) -> None:
        """Read once, and answer."""
        if not self._runs:
            time.sleep(_BLOCK_MS / 1e3)
            return
        names = {run.keys.packets: run_id for run_id, run in self._runs.items()}
        positions = {run.keys.packets: run.position for run in self._runs.values()}
        now_ms, found = self._store.read(positions, self._limits.entries_per_round, _BLOCK_MS)
        read_at = time.monotonic()
        self._metrics.reach_redis()
        queues = {names[stream]: entries for stream, entries in found.items()}
        while queues:  # the first entry of each run, then the second of each, …
            heads = [(run_id, entries.pop(0)) for run_id, entries in queues.items()]
            heads.sort(key=lambda head: head[1].time_ms)
            for start in range(0, len(heads), _TOGETHER):
                since_ms = int((time.monotonic() - read_at) * 1e3)
                self._answer(dict(heads[start : start + _TOGETHER]), now_ms + since_ms)
            queues = {
                run_id: entries
                for run_id, entries in queues.items()
                if entries and run_id in self._runs
            }

    def _answer(self, entries: dict[str, Entry], now_ms: int) -> None:
        """Answer entries, one of a run, at the time `now_ms` of Redis's clock."""
        began = time.monotonic()
        questions: list[_Question] = []
        writes: dict[str, Write] = {}
        for run_id, entry in entries.items():
            run = self._runs[run_id]
            run.position = entry.position
            checked = self._check(run_id, run, entry, now_ms)
            if isinstance(checked, _Question):
                questions.append(checked)
            else:
                writes[run_id] = Write(run.keys, run.token, entry.position, checked)
        started = time.perf_counter()
        results = self._decide(questions)
        for question, result in zip(questions, results, strict=True):
            run = self._runs[question.run_id]
            run.number, run.digest = question.number, question.digest
            run.state = self._fleet.state_of(question.run_id) if run.opened else run.state
            answer = seal_answer(run.keys, question.number, result, run.secret)
            writes[question.run_id] = Write(
                run.keys,
                run.token,
                question.position,
                answer,
                question.number,
                question.digest,
                run.state or "",
            )
        self._metrics.count_decisions(results, time.perf_counter() - started)
        performed = self._store.write(list(writes.values()))
        if questions:
            took_ms = (time.monotonic() - began) * 1e3 / len(questions)
            self._answering_ms += 0.1 * (took_ms - self._answering_ms)
        lost = [run_id for run_id, done in zip(writes, performed, strict=True) if not done]
        self._metrics.fence(len(lost))
        self._forget(lost)

    def _decide(self, questions: Sequence[_Question]) -> list[Decision | TamiyoError]:
        """Decide on packets; a run whose journal cannot be opened gets the error."""
        failed: dict[str, TamiyoError] = {}
        for question in questions:
            run = self._runs[question.run_id]
            if not run.opened:
                try:
                    self._fleet.take(question.run_id, run.secret, run.state)
                    run.opened = True
                except TamiyoError as error:
                    failed[question.run_id] = error
        ready = [question for question in questions if question.run_id not in failed]
        decided = self._fleet.step_many([question.packet for question in ready])
        by_run = dict(zip((question.run_id for question in ready), decided, strict=True))
        return [(by_run | failed)[question.run_id] for question in questions]

    def _check(self, run_id: str, run: _Run, entry: Entry, now_ms: int) -> _Question | bytes:
        """The packet to decide on; else the answer to a greeting, or none to what is refused."""
        try:
            self._check_size(run, entry)
            request = open_request(run.keys, entry.message or b"", run.secret)
            if request.number == HELLO:
                return seal_answer(run.keys, HELLO, None, run.secret)
            digest = hashlib.sha256(request.packet).digest()
            if request.number == run.number and digest == run.digest:
                raise _RefusedError("repeated")  # its answer is in the stream of answers
            if request.number <= run.number:
                raise _RefusedError("replayed")
            # In the first half of its deadline a packet is tried, however slow the last ones were.
            expected_ms = min(_TOGETHER * self._answering_ms + _WAY_MS, request.deadline_ms / 2)
            if now_ms - entry.time_ms + expected_ms > request.deadline_ms:
                raise _RefusedError("expired")
            packet = decode_packet(request.packet)
            if packet.training_run_id != run_id:
                raise _RefusedError("foreign")
        except _RefusedError as error:
            self._metrics.refuse(error.reason)
            return b""
        except SignatureError:
            self._metrics.refuse("forged")
            return b""
        except (InvalidMessageError, InvalidPacketError):
            self._metrics.refuse("foreign")
            return b""
        return _Question(run_id, entry.position, request.number, digest, packet)

    def _check_size(self, run: _Run, entry: Entry) -> None:
        """Refuse an entry before it is looked into; counts it against the quota."""
        now = time.monotonic()
        rate = self._limits.packets_per_s
        run.granted = min(rate, run.granted + (now - run.seen) * rate)
        run.seen = now
        if run.granted < 1.0:
            raise _RefusedError("over_quota")
        run.granted -= 1.0
        if entry.size > self._limits.entry_bytes:
            raise _RefusedError("oversized")
        if entry.message is None:
            raise _RefusedError("foreign")


def _owner(run_id: str, servers: set[str]) -> str:
    """Which server a run belongs to: few runs move when a server comes or goes.

    Rendezvous hashing, Thaler and Ravishankar 1998.
    """
    return max(servers, key=lambda name: hashlib.sha256(f"{name}\0{run_id}".encode()).digest())
