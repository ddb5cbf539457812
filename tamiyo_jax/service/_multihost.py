"""One controller for several JAX processes that train together.

Process 0 owns the controller. What it returns, and what it raises, is broadcast to every process by
`jax.experimental.multihost_utils`, so that the same program goes on alike everywhere. On a
single process it is the controller alone.

Answers travel pickled, as they do to workers (`tamiyo_jax.workers`): all processes
belong to one user who runs one program. Where these collectives can be written to, the
parameters of the training can be too.
"""

from __future__ import annotations

import pickle
import struct
import traceback
from collections.abc import Callable, Sequence
from io import BytesIO
from typing import Any, Self, TypeVar, cast

import jax
import numpy as np
from jax.experimental import multihost_utils

from tamiyo_jax.contracts import SystemStatePacket
from tamiyo_jax.decision import Decision, RemoteTicket
from tamiyo_jax.errors import TamiyoError
from tamiyo_jax.journal import Ticket
from tamiyo_jax.service._service import Tamiyo
from tamiyo_jax.workers import Raised

__all__ = ["MultihostTamiyo"]

T = TypeVar("T")

_OWNER = 0
_LENGTH = struct.Struct("<Q")
_HEAD = 4096  # bytes of the first broadcast; nearly every decision fits into it


class MultihostTamiyo:
    """A controller that answers all processes of `jax.distributed`; made by `open`.

    Every method is a collective: call it on all processes, in the same order as all other
    computations over several processes, and from the thread that starts those. It returns
    the same, or raises the same, on all of them.
    """

    def __init__(self, tamiyo: Tamiyo | None) -> None:
        self._tamiyo = tamiyo

    @classmethod
    def open(cls, opener: Callable[[], Tamiyo]) -> Self:
        """Open the controller on process 0.

        Args:
          opener: opens it; called on process 0 only.

        Raises:
          TamiyoError: what `opener` raised on process 0.
        """
        _broadcast(b"")  # connects the processes, which gloo does within 30 s or not at all
        opened: list[Tamiyo] = []
        owner = jax.process_index() == _OWNER  # pyright: ignore[reportUnknownMemberType]
        _agree((lambda: opened.append(opener())) if owner else None)
        return cls(opened[0] if owner else None)

    def step(self, packet: SystemStatePacket) -> Decision:
        """Decide on process 0's packet.

        Args:
          packet: every process passes its own; only that of process 0 is used.

        Returns:
          The decision, the same on all processes but for its ticket: away from process 0,
          that is a `RemoteTicket`.

        Raises:
          TamiyoError: what the step raised on process 0; train on without Tamiyo, everywhere.
        """
        return self.agree(lambda tamiyo: tamiyo.step(packet))

    def agree(self, work: Callable[[Tamiyo], T]) -> T:
        """Call `work` on process 0, and return its result on every process.

        For the other methods of a controller, as in
        ``agree(lambda tamiyo: tamiyo.update_policy(update))``.

        Args:
          work: called with the controller, on process 0 only; what it returns must pickle.

        Raises:
          TamiyoError: what `work` raised on process 0, with its message and its context. A
            fact of the context that is not text, a number or a sequence of such arrives as
            its ``repr``; the traceback on process 0 is a note of the error.
          RuntimeError: away from process 0, where `work` raised anything else there.
        """
        tamiyo = self._tamiyo
        return _agree(None if tamiyo is None else lambda: work(tamiyo))

    def flush(self) -> None:
        """Wait until every record is on process 0's disk; see `Tamiyo.flush`."""
        self.agree(Tamiyo.flush)

    def close(self) -> None:
        """Close the controller; see `Tamiyo.close`."""
        self.agree(Tamiyo.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.close()
        elif self._tamiyo is not None:
            self._tamiyo.close()  # the other processes may be anywhere, so they are not awaited


def _agree(work: Callable[[], T] | None) -> T:
    """Return or raise what `work` does on process 0; None stands for it on other processes."""
    if work is None:
        return _open_outcome(_broadcast(b""))
    try:
        value = work()
        message = _pickle(value)
    except BaseException as error:
        _broadcast(_pickle(_make_raised(error)))
        raise
    _broadcast(message)
    return value


def _open_outcome(message: bytes) -> Any:  # noqa: ANN401 - what the owner's work returned
    outcome = pickle.loads(message)
    if not isinstance(outcome, Raised):
        return outcome
    raised = outcome.error or RuntimeError(f"process {_OWNER} raised {outcome.summary}")
    raised.add_note(f"on process {_OWNER}:\n{outcome.trace}")
    raise raised


def _make_raised(error: BaseException) -> Raised:
    known = None
    if isinstance(error, TamiyoError):
        context = {name: _portable(value) for name, value in error.context.items()}
        known = type(error)(str(error), **context)
    return Raised(known, f"{type(error).__name__}: {error}", traceback.format_exc())


def _portable(value: object) -> object:
    """Keep a fact of an error if it is text, a number or a sequence of such, else its repr."""
    if isinstance(value, list | tuple):
        parts = [_portable(part) for part in cast(Sequence[object], value)]
        return parts if isinstance(value, list) else tuple(parts)
    return value if value is None or type(value) in (str, int, float, bool) else repr(value)


class _Pickler(pickle.Pickler):
    """Replaces a `Ticket` by a `RemoteTicket`."""

    def reducer_override(self, obj: object) -> Any:  # noqa: ANN401 - as pickle has it
        """How an object is rebuilt, where that is not left to the object."""
        if isinstance(obj, Ticket):
            return RemoteTicket, (obj.sequence, obj.done)
        return NotImplemented


def _pickle(outcome: object) -> bytes:
    buffer = BytesIO()
    _Pickler(buffer, 5).dump(outcome)
    return buffer.getvalue()


def _broadcast(message: bytes) -> bytes:
    """Broadcast process 0's message; the messages of other processes are not used.

    The first array has a fixed size and begins with the length of the message. What does not
    fit follows in a second one, padded to a power of two so that few sizes are compiled.
    """
    framed = _LENGTH.pack(len(message)) + message
    received = _broadcast_padded(framed[:_HEAD], _HEAD)
    end = _LENGTH.size + _LENGTH.unpack_from(received)[0]
    if end > _HEAD:
        received += _broadcast_padded(framed[_HEAD:], 1 << (end - _HEAD - 1).bit_length())
    return received[_LENGTH.size : end]


def _broadcast_padded(data: bytes, size: int) -> bytes:
    array = np.frombuffer(data.ljust(size, b"\0"), np.uint8)
    return multihost_utils.broadcast_one_to_all(array).tobytes()
