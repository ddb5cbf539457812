"""Messages between a controller and its workers, over a socket that only these two hold.

A message is one object, pickled; large arrays in it travel as raw buffers beside the pickle,
and dataclasses of this package as calls of their constructor, which is several times as fast as
what they bring along. Both ends are processes of one user who runs the same program, so that pickle
crosses no boundary of trust.
"""

from __future__ import annotations

import pickle
import socket
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from functools import cache, partial
from io import BytesIO
from operator import attrgetter
from typing import Any, NamedTuple, TypeVar, cast

from tamiyo_jax.errors import TamiyoError

__all__ = ["Encoded", "Load", "Raised", "encode", "receive", "send"]

T = TypeVar("T")

_PREFIX = struct.Struct("<QI")  # bytes that follow, and how many arrays are among them
# With arrays: a table of the lengths of pickle and arrays, and these, each padded. Else the pickle.
_LENGTH = struct.Struct("<Q")
_CHUNK = 1 << 16
_ALIGNMENT = 16
_LARGE = 1 << 14  # bytes; below that a copy costs less than a buffer of its own


@dataclass(frozen=True, slots=True)
class Load:
    """The first message: an importable factory, and what it is called with.

    Attributes:
      factory: ``"package.module:function"``; returns a function of one message.
      arguments: keyword arguments of the factory.
      memory_bytes: how much data the process may allocate.
    """

    factory: str
    arguments: dict[str, Any]
    memory_bytes: int


@dataclass(frozen=True, slots=True)
class Raised:
    """An error in place of an answer; `trace` is its traceback as text."""

    error: TamiyoError | None
    summary: str
    trace: str


class Encoded(NamedTuple):
    """A message as it is sent; see `encode`."""

    parts: tuple[memoryview, ...]


def encode(message: object) -> Encoded:
    """A message as it is sent, for one that is sent again and again.

    Large arrays in it are not copied; they must stay as they are.

    Args:
      message: anything that pickles.
    """
    arrays: list[memoryview] = []

    def keep_inside(buffer: pickle.PickleBuffer) -> bool:
        raw = buffer.raw()
        if raw.nbytes < _LARGE:
            return True
        arrays.append(raw)
        return False

    body = BytesIO()
    _Pickler(body, 5, buffer_callback=keep_inside).dump(message)
    pickled = body.getbuffer()
    if not arrays:
        return Encoded((memoryview(_PREFIX.pack(len(pickled), 0) + pickled),))
    contents = [pickled, *arrays]
    table = b"".join(_LENGTH.pack(len(content)) for content in contents)
    following = [memoryview(table + _padding(_PREFIX.size + len(table)))]
    for content in contents:
        following += [content, memoryview(_padding(len(content)))]
    prefix = memoryview(_PREFIX.pack(sum(map(len, following)), len(arrays)))
    return Encoded(tuple(part for part in (prefix, *following) if len(part)))


def send(connection: socket.socket, message: object, deadline: float | None = None) -> None:
    """Send a message.

    Args:
      connection: a stream socket; its timeout is set where there is a deadline.
      message: anything that pickles, or `Encoded`.
      deadline: on the clock of `time.monotonic`; None waits as long as it takes.

    Raises:
      TimeoutError: the deadline passed; the connection is of no further use.
      ConnectionError: the other end is gone.
    """
    pending = list((message if isinstance(message, Encoded) else encode(message)).parts)
    while pending:
        _wait_until(connection, deadline)
        sent = connection.sendmsg(pending[:64])
        while pending and sent >= len(pending[0]):
            sent -= len(pending.pop(0))
        if pending:
            pending[0] = pending[0][sent:]


def receive(connection: socket.socket, deadline: float | None = None) -> Any:  # noqa: ANN401
    """Receive a message; see `send`.

    Raises:
      TimeoutError: the deadline passed; the connection is of no further use.
      ConnectionError: the other end closed the connection, or sent something else.
    """
    head = b""
    while len(head) < _PREFIX.size:
        head += _read(connection, lambda: connection.recv(_CHUNK), deadline)
    total, arrays = _PREFIX.unpack_from(head)
    end = _PREFIX.size + total
    if len(head) > end:
        raise ConnectionError(f"a message of {total} bytes is followed by {len(head) - end} more")
    if len(head) < end:
        whole = bytearray(end)
        whole[: len(head)] = head
        view, filled = memoryview(whole), len(head)
        while filled < end:
            rest = view[filled:]
            filled += _read(connection, partial(connection.recv_into, rest), deadline)
        head = whole
    content = memoryview(head)
    if not arrays:
        return pickle.loads(content[_PREFIX.size :])
    parts: list[memoryview] = []
    begin = _PREFIX.size + (1 + arrays) * _LENGTH.size
    begin += -begin % _ALIGNMENT
    for index in range(1 + arrays):
        (length,) = _LENGTH.unpack_from(head, _PREFIX.size + index * _LENGTH.size)
        parts.append(content[begin : begin + length])
        begin += length + -length % _ALIGNMENT
    return pickle.loads(parts[0], buffers=parts[1:])


def _padding(length: int) -> bytes:
    return bytes(-length % _ALIGNMENT)


class _Pickler(pickle.Pickler):
    """Dataclasses of this package as calls of their constructor."""

    def reducer_override(self, obj: Any) -> Any:  # noqa: ANN401 - as pickle has it
        """How an object is rebuilt, where that is not left to the object."""
        kind = cast(type[Any], type(obj))
        values = _constructor_arguments(kind)
        return NotImplemented if values is None else (kind, values(obj))


@cache
def _constructor_arguments(kind: type[Any]) -> Callable[[object], tuple[Any, ...]] | None:
    """What takes an instance's fields in the order of its constructor; None if nothing does."""
    ours = kind.__module__.partition(".")[0] == __name__.partition(".")[0]
    if not ours or not is_dataclass(kind) or "__reduce__" in vars(kind):
        return None
    names = [field.name for field in fields(kind) if field.init and not field.kw_only]
    if len(names) < len(fields(kind)):
        return None
    if len(names) == 1:
        single = attrgetter(*names)
        return lambda instance: (single(instance),)
    return attrgetter(*names) if names else lambda _: ()


def _read(connection: socket.socket, take: Callable[[], T], deadline: float | None) -> T:
    """What `take` takes from the connection, once there is something."""
    _wait_until(connection, deadline)
    taken = take()
    if not taken:
        raise ConnectionError("the other end closed the connection")
    return taken


def _wait_until(connection: socket.socket, deadline: float | None) -> None:
    """Let the next call on the connection raise a `TimeoutError` at the deadline."""
    if deadline is None:
        return
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    connection.settimeout(left)
