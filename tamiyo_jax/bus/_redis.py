"""A bus on Redis Streams, between machines."""

# The types of redis-py are partial.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple, cast

from tamiyo_jax._redis_client import open_client, public_url
from tamiyo_jax.bus._memory import Handler
from tamiyo_jax.bus._reading import Refuse, Refused
from tamiyo_jax.contracts import Priority
from tamiyo_jax.errors import PublishError

__all__ = ["RedisBus"]

_PAYLOAD = b"payload"
_BEGINNING = "0-0"

# Redis names each consumer of a group. Whether a message is abandoned depends only on how long
# it has been out, so all consumers share a name, and dead consumers leave no names behind.
_CONSUMER = "tamiyo"

# A new group begins with everything in the stream, so nothing is removed while a group joins.
_TRIM = """
if #redis.call('XINFO', 'GROUPS', KEYS[1]) == tonumber(ARGV[1]) then
  redis.call('XTRIM', KEYS[1], 'MINID', ARGV[2])
end
"""


class RedisBus:
    """A bus on a Redis server of version 7 or later, shared by several machines.

    A topic is two streams, and consumers read the emergency stream first, where HIGH and
    CRITICAL messages are. A message stays until every group has acknowledged it; a new group
    begins with what is there. A group that never returns holds messages for ever:
    ``XGROUP DESTROY`` it.

    What `publish` accepted is as durable as the server makes it: ``appendonly yes`` for a restart,
    ``appendfsync always`` for a loss of power, and no eviction. A server that is full refuses.

    The server is not contacted before the first call, so that training starts without it; a
    call that it does not answer within 2 s fails. Safe to share between threads. Needs
    ``tamiyo_jax[redis]``.

    Args:
      url: ``redis://``, ``rediss://`` or ``unix://``, as redis-py reads it. A password in it
        is sent to the server only.
      claim_after_s: seconds after which a message that was handed to a consumer and not
        acknowledged goes to another, because the first may be dead. Set it longer than any
        handler takes.

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
        """Implement `Bus`."""
        urgent, ordinary = _streams(topic)
        stream = urgent if priority >= Priority.HIGH else ordinary
        fields: dict[Any, Any] = {_PAYLOAD: payload}
        with self._raise_publish_error(topic):
            self._redis.xadd(stream, fields)

    def consume(self, topic: str, group: str, handler: Handler) -> int:
        """Implement `Bus`.

        Raises:
          PublishError: the server failed; what was not acknowledged waits for the group again.
        """
        with self._raise_publish_error(topic):
            for stream in _streams(topic):
                self._join(stream, group)
        acknowledged = 0
        for message in self._messages(topic, group):
            try:
                handler(message.payload)
            except BaseException:
                self._release(group, message)
                raise
            with self._raise_publish_error(topic):
                self._redis.xack(message.stream, group, message.entry)
            acknowledged += 1
        if acknowledged:
            with self._raise_publish_error(topic):
                for stream in _streams(topic):
                    self._trim(stream)
        return acknowledged

    def dead_letters(self, topic: str, *, capacity: int = 10_000) -> Refuse:
        """Make the `refuse` of a reader: it keeps refused envelopes on the server.

        They are entries of the stream ``tamiyo:bus:dead:TOPIC`` with the fields ``payload``,
        ``error`` and ``message``, for a person to look at.

        Args:
          topic: the topic that the reader consumes.
          capacity: number of the newest entries that are kept.

        Returns:
          A function of the error and the envelope. It raises PublishError if the server fails;
          the message then waits for its group again.
        """

        def refuse(error: Refused, envelope: bytes) -> None:
            fields: dict[Any, Any] = {
                _PAYLOAD: envelope,
                b"error": type(error).__name__,
                b"message": str(error),
            }
            with self._raise_publish_error(topic):
                stream = f"tamiyo:bus:dead:{topic}"
                self._redis.xadd(stream, fields, maxlen=capacity, approximate=False)

        return refuse

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
        """Yield the messages that wait for a group; other consumers share the rest meanwhile."""
        while True:
            with self._raise_publish_error(topic):
                message = self._take(topic, group)
            if message is None:
                return
            yield message

    def _take(self, topic: str, group: str) -> _Message | None:
        for stream in _streams(topic):
            message = self._claim_abandoned(stream, group) or self._read_new(stream, group)
            if message is not None:
                return message
        return None

    def _claim_abandoned(self, stream: str, group: str) -> _Message | None:
        """Claim the oldest message that was handed out and not acknowledged for too long."""
        cursor: str | bytes = _BEGINNING
        while True:
            # A call looks at no more than ten of the messages that are out.
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

    def _read_new(self, stream: str, group: str) -> _Message | None:
        reply = cast(
            "list[tuple[bytes, list[_Entry]]]",
            self._redis.xreadgroup(group, _CONSUMER, {stream: ">"}, count=1),
        )
        return _message(stream, reply[0][1]) if reply else None

    def _release(self, group: str, message: _Message) -> None:
        """Return a message to its group at once, as if it had been abandoned."""
        # If the server is away, the message is released after `claim_after_s`.
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
        if not groups:  # another client destroyed them
            return
        first_kept = min(self._find_first_open(stream, group) for group in groups)
        self._redis.eval(_TRIM, 1, stream, len(groups), "{}-{}".format(*first_kept))

    def _find_first_open(self, stream: str, group: dict[str, Any]) -> tuple[int, int]:
        """Find the lowest id that a group may not have acknowledged yet."""
        pending = cast("dict[str, Any]", self._redis.xpending(stream, group["name"]))
        if pending["min"] is not None:
            return _order(pending["min"])
        milliseconds, number = _order(group["last-delivered-id"])
        return milliseconds, number + 1

    @contextmanager
    def _raise_publish_error(self, topic: str) -> Generator[None]:
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
    """The emergency stream and the ordinary stream of a topic."""
    return f"tamiyo:bus:emergency:{topic}", f"tamiyo:bus:ordinary:{topic}"


def _order(entry: bytes) -> tuple[int, int]:
    """Parse an id of a stream into its sort key: milliseconds, and a number within them."""
    milliseconds, _, number = entry.partition(b"-")
    return int(milliseconds), int(number)
