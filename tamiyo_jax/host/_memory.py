"""Kept states of a run in memory, on the devices of the run."""

from __future__ import annotations

from typing import Any, TypeVar, cast

import jax

from tamiyo_jax.errors import PersistenceError

__all__ = ["MemoryCheckpoints"]

State = TypeVar("State")


class MemoryCheckpoints:
    """Keeps the newest saved pytree for ROLLBACK.

    It takes the memory of one more train state and ends with the process. `save` and `restore`
    copy, so that a jitted step that donates its arguments cannot invalidate the kept state.
    """

    def __init__(self) -> None:
        self._name: str | None = None
        self._state: Any = None

    def save(self, name: str, train_state: object) -> None:
        """Keep a copy of `train_state` under `name`, in place of the previous one."""
        self._name, self._state = name, _copy(train_state)

    def restore(self, name: str, train_state: State) -> State:
        """Return a copy of the state saved under `name`, of the structure of `train_state`.

        Raises:
          PersistenceError: `name` is not the newest saved name.
        """
        del train_state
        if name != self._name:
            raise PersistenceError(
                f"there is no checkpoint {name!r} in memory; there is {self._name!r}", name=name
            )
        return cast(State, _copy(self._state))


def _copy(tree: object) -> object:
    """Copy the arrays of a pytree; other leaves (functions in Equinox models) are shared."""
    return jax.tree.map(lambda leaf: leaf.copy() if isinstance(leaf, jax.Array) else leaf, tree)
