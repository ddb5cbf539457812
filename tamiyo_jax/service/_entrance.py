"""Calls of a controller that a signal handler makes while the same thread is inside another.

A handler runs between two instructions of whatever its thread is doing. Were it to wait for a
lock that this thread holds, it would wait for ever.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from threading import get_ident
from typing import Concatenate, ParamSpec, Protocol, TypeVar

from tamiyo_jax.errors import TamiyoError
from tamiyo_jax.journal import OwnerProcess

__all__ = ["Entrance", "entering", "entering_later"]

P = ParamSpec("P")
T = TypeVar("T")


class Entrance:
    """Knows which threads are inside a call, and what they do when it ends.

    A signal may come between any two instructions, so nothing here is a context manager: one
    written in Python can be entered and, a signal later, never left. For the same reason calls
    take locks by ``with`` on the lock itself.

    Args:
      process: the process that may make calls; a forked child is refused before it can wait for
        a lock that a thread of its parent holds.
    """

    def __init__(self, process: OwnerProcess) -> None:
        self._process = process
        self._deferred: dict[int, list[Callable[[], object]]] = {}

    def call(self, work: Callable[[], T]) -> T:
        """Do the work of a call; at its end, make the calls that were deferred meanwhile.

        All of them are made, whichever raise. What ended the work itself goes on, with their
        errors as notes: the `SystemExit` of a signal handler carries the status of the process.

        Raises:
          ForkedProcessError: the calling process is a forked child.
          TamiyoError: this thread is inside a call already; or the first error of a deferred call.
        """
        self._process.check()
        thread = get_ident()
        if thread in self._deferred:
            raise TamiyoError(
                "this call came from a signal handler or a callback in the middle of another call "
                "of the same controller; make it after that one has returned. close(), flush() "
                "and set_conservative() may be called here"
            )
        ended: BaseException | None = None
        try:
            self._deferred[thread] = []
            return work()
        except BaseException as error:
            ended = error
            raise
        finally:
            errors = _make_all(self._deferred.pop(thread))
            if errors:
                raised = ended or errors.pop(0)
                for error in errors:
                    raised.add_note(f"a call that was deferred meanwhile failed: {error}")
                if ended is None:
                    raise raised

    def call_or_defer(self, work: Callable[[], object]) -> None:
        """Do the work of a call, or let the call that this thread is inside do it at its end.

        Raises:
          ForkedProcessError: the calling process is a forked child.
          TamiyoError: the work failed; in the second case the call raises it.
        """
        self._process.check()
        deferred = self._deferred.get(get_ident())
        if deferred is None:
            self.call(work)
        else:
            deferred.append(lambda: self.call(work))


class _Entered(Protocol):
    _entrance: Entrance


S = TypeVar("S", bound=_Entered)


def entering(method: Callable[Concatenate[S, P], T]) -> Callable[Concatenate[S, P], T]:
    """Make a method a call through the `_entrance` of its object."""

    @wraps(method)
    def call(self: S, *args: P.args, **kwargs: P.kwargs) -> T:
        entrance = self._entrance  # pyright: ignore[reportPrivateUsage] - a method of `self`
        return entrance.call(lambda: method(self, *args, **kwargs))

    return call


def entering_later(method: Callable[Concatenate[S, P], None]) -> Callable[Concatenate[S, P], None]:
    """Make a method a call that a signal handler may make in the middle of another."""

    @wraps(method)
    def call(self: S, *args: P.args, **kwargs: P.kwargs) -> None:
        entrance = self._entrance  # pyright: ignore[reportPrivateUsage] - a method of `self`
        entrance.call_or_defer(lambda: method(self, *args, **kwargs))

    return call


def _make_all(deferred: list[Callable[[], object]]) -> list[TamiyoError]:
    errors: list[TamiyoError] = []
    for work in deferred:
        try:
            work()
        except TamiyoError as error:
            errors.append(error)
    return errors
