"""Keeping the last good state of a run beside it, on its own devices."""

from __future__ import annotations

from typing import Any, TypeVar, cast

import jax

from tamiyo_jax.errors import PersistenceError

__all__ = ["MemoryCheckpoints"]

State = TypeVar("State")


class MemoryCheckpoints:
    """The newest state that was saved, of any pytree: what ROLLBACK restores from.

    It takes the memory of a train state once more, and is gone with the process. What it
    holds and what it gives are copies, which no donated step can reach.
    """

    def __init__(self) -> None:
        self._name: str | None = None
        self._state: Any = None

    def save(self, name: str, train_state: object) -> None:
        """Hold `train_state` under `name`, in place of the one before."""
        self._name, self._state = name, _copy(train_state)

    def restore(self, name: str, train_state: State) -> State:
        """The state saved under `name`, which is one like `train_state`.

        Raises:
          PersistenceError: it is not the newest one.
        """
        del train_state
        if name != self._name:
            raise PersistenceError(
                f"there is no checkpoint {name!r} in memory; there is {self._name!r}", name=name
            )
        return cast(State, _copy(self._state))


def _copy(tree: object) -> object:
    """A pytree with arrays of its own; Equinox has leaves that are functions."""
    return jax.tree.map(lambda leaf: leaf.copy() if isinstance(leaf, jax.Array) else leaf, tree)
