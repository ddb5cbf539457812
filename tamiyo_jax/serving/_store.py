"""A server's side of Redis: who owns which run, and what the run goes on from.

A run's state hash holds everything: who owns it, the owner's fencing token, how far its packets
were read, the newest packet's number and digest, and the controller's state. Every write is a
script, which Redis runs whole or not at all, and which does nothing unless the writer's token is
the run's newest. So an owner that was thought dead and comes back can write nothing, and
answer, state and position are never apart.
"""

# The types of redis-py are partial.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, cast

from tamiyo_jax._redis_client import open_client, public_url
from tamiyo_jax.errors import PublishError
from tamiyo_jax.serving._messages import FIELD, RunKeys

__all__ = ["Entry", "RunStore", "Taken", "Write"]

_RUNS = "tamiyo:run:"
_SERVERS = "tamiyo:servers"
_PACKETS = ":packets"
_SCAN_COUNT = 1_000
_KEPT_ANSWERS = 16

# Keys: servers. Arguments: name, milliseconds. Servers are scored by the end of their lease.
_BEAT = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
redis.call('ZADD', KEYS[1], now + ARGV[2], ARGV[1])
return redis.call('ZRANGE', KEYS[1], 0, -1)
"""

# Keys: state, servers. Argument: name. Gives nil where the run has another owner, who is alive.
_TAKE = """
local owner = redis.call('HGET', KEYS[1], 'owner')
if owner and owner ~= '' and owner ~= ARGV[1] then
  local time = redis.call('TIME')
  local now = time[1] * 1000 + math.floor(time[2] / 1000)
  if tonumber(redis.call('ZSCORE', KEYS[2], owner) or 0) > now then return false end
end
redis.call('HSET', KEYS[1], 'owner', ARGV[1])
redis.call('PERSIST', KEYS[1])
local token = redis.call('HINCRBY', KEYS[1], 'token', 1)
return {token, unpack(redis.call('HMGET', KEYS[1], 'position', 'number', 'digest', 'state'))}
"""

# Keys: state, packets, answers. Arguments: token, position, answer, number, digest, state, length.
_WRITE = """
if redis.call('HGET', KEYS[1], 'token') ~= ARGV[1] then return 0 end
redis.call('HSET', KEYS[1], 'position', ARGV[2])
if ARGV[3] ~= '' then
  redis.call('XADD', KEYS[3], 'MAXLEN', '=', ARGV[7], '*', 'm', ARGV[3])
end
if ARGV[4] ~= '0' then redis.call('HSET', KEYS[1], 'number', ARGV[4], 'digest', ARGV[5]) end
if ARGV[6] ~= '' then redis.call('HSET', KEYS[1], 'state', ARGV[6]) end
redis.call('XDEL', KEYS[2], ARGV[2])
return 1
"""

# Keys: state, packets, answers. Arguments: token, seconds to keep an idle run; 0 if it goes on.
_RELEASE = """
if redis.call('HGET', KEYS[1], 'token') ~= ARGV[1] then return 0 end
redis.call('HSET', KEYS[1], 'owner', '')
if ARGV[2] ~= '0' and redis.call('XLEN', KEYS[2]) == 0 then
  redis.call('DEL', KEYS[2])
  redis.call('EXPIRE', KEYS[1], ARGV[2])
  redis.call('EXPIRE', KEYS[3], ARGV[2])
end
return 1
"""


class Taken(NamedTuple):
    """A run as it was when it was taken.

    Attributes:
      token: the fencing token of this ownership.
      position: the id of the last entry that was read.
      number: of the last packet that was decided on; 0 before the first.
      digest: of that packet.
      state: the controller's, as text; None before the first decision.
    """

    token: int
    position: str
    number: int
    digest: bytes
    state: str | None


class Entry(NamedTuple):
    """An entry of a run's stream of packets; `message` is None if it is not one of ours."""

    position: str
    message: bytes | None
    size: int

    @property
    def time_ms(self) -> int:
        """When Redis took it, milliseconds since the epoch."""
        return int(self.position.partition("-")[0])


class Write(NamedTuple):
    """What is written about an entry at once.

    Attributes:
      keys: of the run.
      token: of the writer.
      position: of the entry.
      answer: the sealed answer; empty for none.
      number, digest, state: as in `Taken`; `state` is empty where nothing was decided.
    """

    keys: RunKeys
    token: int
    position: str
    answer: bytes = b""
    number: int = 0
    digest: bytes = b""
    state: str = ""


class RunStore:
    """The runs in a Redis server, as one of the servers that share them sees them.

    Args:
      url: of Redis, as for `RedisBus`.
      server: the name of this server, unlike all others.

    Raises:
      ConfigurationError: redis-py is not installed, or cannot read the URL.
    """

    def __init__(self, url: str, server: str) -> None:
        self._url = public_url(url)
        self._server = server
        self._redis, self._error = open_client(url, purpose="Server", decode_responses=False)
        self._beat = self._redis.register_script(_BEAT)
        self._take = self._redis.register_script(_TAKE)
        self._write = self._redis.register_script(_WRITE)
        self._release = self._redis.register_script(_RELEASE)

    def beat(self, lease_s: float) -> set[str]:
        """Say that this server is alive, and for how long to believe it; returns all alive."""
        with self._raise_publish_error():
            alive = self._beat(keys=[_SERVERS], args=[self._server, int(lease_s * 1e3)])
        return {name.decode() for name in cast("list[bytes]", alive)}

    def leave(self) -> None:
        """Say that this server is gone."""
        with self._raise_publish_error():
            self._redis.zrem(_SERVERS, self._server)

    def find(self) -> set[str]:
        """The ids of the runs that have a stream of packets."""
        with self._raise_publish_error():
            pattern = f"{_RUNS}*{_PACKETS}"
            found = cast(
                "Any", self._redis.scan_iter(match=pattern, count=_SCAN_COUNT, _type="STREAM")
            )
            names = [key.decode("utf-8", "replace") for key in found]
        return {name.removeprefix(_RUNS).removesuffix(_PACKETS) for name in names}

    def take(self, keys: RunKeys) -> Taken | None:
        """Become the owner of a run; None while another server is."""
        with self._raise_publish_error():
            reply = cast(
                "list[Any] | None",
                self._take(keys=[keys.state, _SERVERS], args=[self._server]),
            )
        if reply is None:
            return None
        token, position, number, digest, state = reply
        return Taken(
            token=int(token),
            position=(position or b"0-0").decode(),
            number=int(number or 0),
            digest=digest or b"",
            state=None if state is None else state.decode(),
        )

    def read(
        self, positions: Mapping[str, str], count: int, block_ms: int
    ) -> tuple[int, dict[str, list[Entry]]]:
        """Wait for entries behind positions, by the stream's key.

        Returns:
          The time of Redis in milliseconds since the epoch, and at most `count` entries of each.
        """
        with self._raise_publish_error():
            streams = cast("dict[Any, Any]", positions)
            pipe = self._redis.pipeline(transaction=False)
            pipe.xread(streams, count=count, block=block_ms)
            pipe.time()
            found, (seconds, microseconds) = cast("Any", pipe.execute())
        entries = {
            stream.decode(): [_entry(*entry) for entry in stream_entries]
            for stream, stream_entries in found or ()
        }
        return seconds * 1_000 + microseconds // 1_000, entries

    def write(self, writes: Sequence[Write]) -> list[bool]:
        """Perform writes in one round trip; False for each that was not performed.

        Then its token is not the newest, or Redis refused it.
        """
        with self._raise_publish_error():
            pipe = self._redis.pipeline(transaction=False)
            for each in writes:
                keys = [each.keys.state, each.keys.packets, each.keys.answers]
                arguments = [*each[1:], _KEPT_ANSWERS]
                self._write(keys=keys, args=cast("Any", arguments), client=pipe)
            replies = pipe.execute(raise_on_error=False)
        return [reply == 1 for reply in replies]

    def release(self, keys: RunKeys, token: int, kept_s: float) -> None:
        """Hand a run on; `kept_s` is how long its state is kept if it is idle, 0 if it is not."""
        with self._raise_publish_error():
            self._release(keys=[keys.state, keys.packets, keys.answers], args=[token, int(kept_s)])

    def close(self) -> None:
        """Close the connections."""
        self._redis.close()

    @contextmanager
    def _raise_publish_error(self) -> Generator[None]:
        try:
            yield
        except self._error as error:
            raise PublishError(f"{self._url}: {error}", topic="runs", url=self._url) from error


def _entry(position: bytes, fields: Mapping[bytes, bytes] | None) -> Entry:
    fields = fields or {}
    size = sum(len(name) + len(value) for name, value in fields.items())
    message = fields.get(FIELD) if len(fields) == 1 else None
    return Entry(position.decode(), message, size)
