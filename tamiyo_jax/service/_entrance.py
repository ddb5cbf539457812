"""Calls of a controller that a signal handler makes while the same thread is inside another.

A handler runs between two instructions of whatever its thread is doing. Were it to wait for a
lock that this thread holds, it would wait for ever.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from threading import get_ident

from tamiyo_jax.errors import TamiyoError

__all__ = ["Entrance"]


class Entrance:
    """Knows which threads are inside a call, and what they do when it ends."""

    def __init__(self) -> None:
        self._deferred: dict[int, list[Callable[[], object]]] = {}

    @contextmanager
    def call(self) -> Generator[None]:
        """A call of this thread; at its end it makes the calls that were deferred meanwhile.

        Raises:
          TamiyoError: this thread is inside a call already.
        """
        thread = get_ident()
        if thread in self._deferred:
            raise TamiyoError(
                "this call came from a signal handler or a callback in the middle of another call "
                "of the same controller; make it after that one has returned. close(), flush() "
                "and set_conservative() may be called here"
            )
        try:
            self._deferred[thread] = []
            yield
        finally:
            deferred = self._deferred.pop(thread, [])
            while deferred:
                deferred.pop(0)()

    def defer(self, work: Callable[[], object]) -> bool:
        """Do something when this thread's call ends; False if it is inside none."""
        deferred = self._deferred.get(get_ident())
        if deferred is None:
            return False
        deferred.append(work)
        return True
