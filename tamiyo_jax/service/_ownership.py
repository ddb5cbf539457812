"""A lock that a forked child is refused."""

from __future__ import annotations

import threading

from tamiyo_jax.journal import OwnerProcess

__all__ = ["OwnedLock"]


class OwnedLock:
    """A lock for ``with``; a forked child is refused before it can wait for the lock.

    A fork copies locks as they are: one that a thread of the parent held is never released in the
    child.

    Args:
      process: the process that may take the lock.
    """

    def __init__(self, process: OwnerProcess) -> None:
        self._process = process
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        """Take the lock.

        Raises:
          ForkedProcessError: the calling process is a forked child.
        """
        self._process.check()
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()
