"""Keeping sound states of a run in memory: beside it on a CPU, on the host of an accelerator."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar, cast

import jax
import jax.numpy as jnp
import numpy as np

from tamiyo_jax.errors import PersistenceError
from tamiyo_jax.host._retention import Retention
from tamiyo_jax.host._shared import split_shared

__all__ = ["Held", "MemoryCheckpoints"]

State = TypeVar("State")


class Held(NamedTuple):
    """A copy of a train state, which no donated step and no change in place can reach.

    Attributes:
      leaves: its arrays, those of an accelerator in the memory of its host, and what else it holds.
      structure: of the pytree.
      join: makes the train state of the pytree.
    """

    leaves: list[Any]
    structure: Any
    join: Callable[[Any], Any]


class MemoryCheckpoints:
    """Up to three states of any pytree, by name, and a spare, from which ROLLBACK restores.

    The newest is kept, and an older one that a slow divergence has not reached: between 8 and 17
    saves old once there have been so many. The spare is newer than these. Each takes the memory of
    a train state, and is gone with the process. States of an accelerator are held in the memory of
    its host: saving one waits until it has been copied there.
    """

    def __init__(self) -> None:
        self._states: dict[str, Held] = {}
        self._retention = Retention()
        self._spare: str | None = None

    def hold(self, train_state: object) -> Held:
        """A copy of a train state, to be kept or not."""
        plain, join = split_shared(train_state)
        leaves, structure = jax.tree.flatten(plain)
        held = [_HeldOnHost(leaf) if is_on_accelerator(leaf) else leaf for leaf in leaves]
        return Held(_copied(held), structure, join)

    def save(self, name: str, train_state: object) -> None:
        """Keep `train_state` under `name`; drop what there is no more room for."""
        self.put(name, self.hold(train_state))

    def put(self, name: str, held: Held) -> None:
        """Keep a copy that `hold` made, as `save` does; it takes the place of the spare."""
        self.put_spare(name, held)
        self._spare = None
        dropped = self._retention.add(name)
        if dropped is not None:
            del self._states[dropped]

    def put_spare(self, name: str, held: Held) -> None:
        """Keep a copy beside those that were saved, until the next is saved or put here."""
        if self._spare is not None:
            del self._states[self._spare]
        self._states[name], self._spare = held, name

    def leaves(self, name: str) -> list[Any]:
        """The leaves of a kept state, as they are held; not to be changed."""
        held = self._states[name].leaves
        return [leaf.numbers if isinstance(leaf, _HeldOnHost) else leaf for leaf in held]

    def forget_after(self, name: str) -> None:
        """Forget what is newer than `name`: a rollback undid it."""
        newer = self._retention.rewind(name)
        if self._spare is not None and self._spare != name and name in self._states:
            newer, self._spare = (*newer, self._spare), None
        for each in newer:
            del self._states[each]

    def names(self) -> frozenset[str]:
        """Names that can be restored."""
        return frozenset(self._states)

    def restore(self, name: str, train_state: State) -> State:
        """A copy of the state kept under `name`, which is one like `train_state`.

        Raises:
          PersistenceError: it is not kept.
        """
        if name not in self._states:
            raise PersistenceError(
                f"there is no checkpoint {name!r} in memory; there are {sorted(self._states)}",
                name=name,
            )
        del train_state
        held, structure, join = self._states[name]
        leaves = [leaf.release() if isinstance(leaf, _HeldOnHost) else leaf for leaf in held]
        return cast(State, join(structure.unflatten(_copied(leaves))))


def _copied(leaves: list[Any]) -> list[Any]:
    """Copies of arrays; other leaves, such as the functions of Equinox, stay themselves.

    Arrays of the same devices are copied by one program, since a call for each costs more.
    """
    copies = [leaf.copy() if isinstance(leaf, np.ndarray) else leaf for leaf in leaves]
    together: dict[frozenset[object], list[int]] = {}
    for index, leaf in enumerate(leaves):
        if isinstance(leaf, jax.Array):
            together.setdefault(frozenset(leaf.devices()), []).append(index)
    for indices in together.values():
        for index, copy in zip(indices, _copy([leaves[i] for i in indices]), strict=True):
            copies[index] = copy
    return copies


@jax.jit
def _copy(arrays: list[jax.Array]) -> list[jax.Array]:
    return [jnp.copy(array) for array in arrays]


class _HeldOnHost:
    """An array of an accelerator, held in the memory of the host."""

    def __init__(self, array: jax.Array) -> None:
        self._sharding = array.sharding
        self._key_impl = None
        if jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
            self._key_impl = jax.random.key_impl(array)
            array = jax.random.key_data(array)
        self.numbers = np.array(array)

    def release(self) -> jax.Array:
        if self._key_impl is not None:
            return jax.random.wrap_key_data(jnp.asarray(self.numbers), impl=self._key_impl)
        return jax.device_put(self.numbers, self._sharding)


def is_on_accelerator(array: object) -> bool:
    """Whether an array is on an accelerator, as a whole within reach of this process."""
    if not isinstance(array, jax.Array):
        return False
    on_accelerator = any(device.platform != "cpu" for device in array.devices())
    return on_accelerator and array.is_fully_addressable
