"""A bus on Redis Streams, between machines."""

# The types of redis-py are partial.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple, cast

from tamiyo_jax.contracts import Priority
from tamiyo_jax.errors import PublishError
from tamiyo_jax.runtime.bus import Handler
from tamiyo_jax.runtime.redis_client import open_client, public_url

__all__ = ["RedisBus"]

_PAYLOAD = b"payload"
_BEGINNING = "0-0"

# Redis has a name for each consumer of a group. Whose message is abandoned is told by how long
# it has been out alone, so all share one name, and the dead leave none behind.
_CONSUMER = "tamiyo"

# A group that joins begins with all that is there, so nothing is removed while one does.
_TRIM = """
if #redis.call('XINFO', 'GROUPS', KEYS[1]) == tonumber(ARGV[1]) then
  redis.call('XTRIM', KEYS[1], 'MINID', ARGV[2])
end
"""


class RedisBus:
    """A bus on a Redis server of version 7 or later, shared by several machines.

    A topic is two streams, and consumers read the emergency one first, where HIGH and CRITICAL
    messages are. A message stays until every group has acknowledged it; a new group begins with
    what is there. One that never comes back holds up messages for ever: ``XGROUP DESTROY`` it.

    What `publish` took is as safe as the server keeps it: ``appendonly yes`` for a restart,
    ``appendfsync always`` for a loss of power, and no eviction. A server that is full refuses.

    Nothing is asked of the server before the first call, so that training starts without it;
    a call that it does not answer within 2 s fails. Safe to share between threads. Needs
    ``tamiyo_jax[redis]``.

    Args:
      url: ``redis://``, ``rediss://`` or ``unix://``, as redis-py reads it. A password in it
        is told to nobody but the server.
      claim_after_s: seconds after which a message that was handed to a consumer and not
        acknowledged goes to another, for the first may be dead. Longer than any handler takes.

    Raises:
      ConfigurationError: redis-py is not installed, or cannot read the URL.
    """

    def __init__(self, url: str, *, claim_after_s: float = 60.0) -> None:
        self._url = public_url(url)
        self._claim_after_ms = int(claim_after_s * 1e3)
        self._redis, self._error = open_client(
            url, purpose=type(self).__name__, decode_responses=False
        )

    def publish(self, topic: str, payload: bytes, priority: Priority) -> None:
        """See `Bus`."""
        urgent, ordinary = _streams(topic)
        stream = urgent if priority >= Priority.HIGH else ordinary
        fields: dict[Any, Any] = {_PAYLOAD: payload}
        with self._told(topic):
            self._redis.xadd(stream, fields)

    def consume(self, topic: str, group: str, handler: Handler) -> int:
        """See `Bus`.

        Raises:
          PublishError: the server failed; what was not acknowledged waits for the group again.
        """
        with self._told(topic):
            for stream in _streams(topic):
                self._join(stream, group)
        acknowledged = 0
        for message in self._messages(topic, group):
            try:
                handler(message.payload)
            except BaseException:
                self._release(group, message)
                raise
            with self._told(topic):
                self._redis.xack(message.stream, group, message.entry)
            acknowledged += 1
        if acknowledged:
            with self._told(topic):
                for stream in _streams(topic):
                    self._trim(stream)
        return acknowledged

    def close(self) -> None:
        """Close the connections to the server; a later call opens new ones."""
        self._redis.close()

    def __repr__(self) -> str:
        return f"RedisBus({self._url!r})"

    def _join(self, stream: str, group: str) -> None:
        try:
            self._redis.xgroup_create(stream, group, id=_BEGINNING, mkstream=True)
        except self._error as error:
            if not str(error).startswith("BUSYGROUP"):  # which says that the group is there
                raise

    def _messages(self, topic: str, group: str) -> Iterator[_Message]:
        """What waits for a group, one at a time: while one is handled, others share the rest."""
        while True:
            with self._told(topic):
                message = self._take(topic, group)
            if message is None:
                return
            yield message

    def _take(self, topic: str, group: str) -> _Message | None:
        for stream in _streams(topic):
            message = self._abandoned(stream, group) or self._new(stream, group)
            if message is not None:
                return message
        return None

    def _abandoned(self, stream: str, group: str) -> _Message | None:
        """The oldest message that was handed out so long ago that it is another's turn."""
        cursor: str | bytes = _BEGINNING
        while True:
            # One call looks at no more than ten of the messages that are out.
            cursor, entries, *_ = cast(
                "tuple[bytes, list[_Entry], list[bytes]]",
                self._redis.xautoclaim(
                    stream, group, _CONSUMER, self._claim_after_ms, start_id=cursor, count=1
                ),
            )
            if entries:
                return _message(stream, entries)
            if cursor == _BEGINNING.encode():
                return None

    def _new(self, stream: str, group: str) -> _Message | None:
        reply = cast(
            "list[tuple[bytes, list[_Entry]]]",
            self._redis.xreadgroup(group, _CONSUMER, {stream: ">"}, count=1),
        )
        return _message(stream, reply[0][1]) if reply else None

    def _release(self, group: str, message: _Message) -> None:
        """Let any consumer of the group have a message at once, as if it were abandoned."""
        # If the server is away, the message is released by waiting long enough.
        with suppress(self._error):
            self._redis.xclaim(
                message.stream,
                group,
                _CONSUMER,
                min_idle_time=0,
                message_ids=[message.entry],
                idle=self._claim_after_ms,
                justid=True,
            )

    def _trim(self, stream: str) -> None:
        """Remove what every group has acknowledged."""
        groups = cast("list[dict[str, Any]]", self._redis.xinfo_groups(stream))
        if not groups:  # somebody destroyed them
            return
        first_kept = min(self._first_open(stream, group) for group in groups)
        self._redis.eval(_TRIM, 1, stream, len(groups), "{}-{}".format(*first_kept))

    def _first_open(self, stream: str, group: dict[str, Any]) -> tuple[int, int]:
        """The id from which on a group may have something left to acknowledge."""
        pending = cast("dict[str, Any]", self._redis.xpending(stream, group["name"]))
        if pending["min"] is not None:
            return _order(pending["min"])
        milliseconds, number = _order(group["last-delivered-id"])
        return milliseconds, number + 1

    @contextmanager
    def _told(self, topic: str) -> Generator[None]:
        try:
            yield
        except self._error as error:
            raise PublishError(f"bus {self._url}: {error}", topic=topic, url=self._url) from error


_Entry = tuple[bytes, dict[bytes, bytes]]


class _Message(NamedTuple):
    stream: str
    entry: bytes
    payload: bytes


def _message(stream: str, entries: list[_Entry]) -> _Message:
    ((entry, fields),) = entries
    # What others wrote there has no payload of ours; empty, it is refused as any forgery is.
    return _Message(stream, entry, fields.get(_PAYLOAD, b""))


def _streams(topic: str) -> tuple[str, str]:
    """The emergency stream of a topic and its other one."""
    return f"tamiyo:bus:emergency:{topic}", f"tamiyo:bus:ordinary:{topic}"


def _order(entry: bytes) -> tuple[int, int]:
    """An id of a stream as what it is ordered by: milliseconds, and a number within them."""
    milliseconds, _, number = entry.partition(b"-")
    return int(milliseconds), int(number)
