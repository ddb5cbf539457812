"""The process that owns an open journal."""

from __future__ import annotations

import os

from tamiyo_jax.errors import ForkedProcessError

__all__ = ["OwnerProcess"]


class OwnerProcess:
    """The process that created this object; a forked child is another one.

    After a fork the child shares the parent's files, and its copies of locks may be held by
    threads that do not exist in it.
    """

    __slots__ = ("_pid",)

    def __init__(self) -> None:
        self._pid = os.getpid()

    @property
    def is_current(self) -> bool:
        """Whether the calling process is the owner."""
        return os.getpid() == self._pid

    def check(self) -> None:
        """Call this before any lock is taken.

        Raises:
          ForkedProcessError: the calling process is a forked child of the owner.
        """
        if not self.is_current:
            raise ForkedProcessError(
                f"process {os.getpid()} is a forked child of process {self._pid}, which owns the"
                " controller and its run directory; open a controller with a directory of its own"
                " in the child, or start the child with the 'spawn' method",
                pid=os.getpid(),
                owner=self._pid,
            )
