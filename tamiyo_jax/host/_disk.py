"""Kept states in memory and on disk, so that a run can be resumed after its process has ended."""

from __future__ import annotations

import shutil
import struct
from collections.abc import Callable
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from tamiyo_jax._digests import DIGESTS, check_digests
from tamiyo_jax.errors import PersistenceError
from tamiyo_jax.host._checkpoints import load_tree, save_tree, stored_shapes
from tamiyo_jax.host._memory import Held, MemoryCheckpoints
from tamiyo_jax.host._placement import place_like
from tamiyo_jax.host._shared import split_shared

__all__ = ["DiskCheckpoints"]

State = TypeVar("State")
Beside = TypeVar("Beside")


class DiskCheckpoints(MemoryCheckpoints):
    """What `MemoryCheckpoints` keeps, and the same on disk, written by a thread with Orbax.

    ROLLBACK restores from memory; the disk is read by `load` alone, in a process that resumes the
    run. The loop waits for the copy in memory and never for the disk. A state whose writing was
    cut short by the end of the process is not there afterwards; the one before it is.

    Args:
      directory: made if it does not exist.
      beside: called at each save for a pytree of arrays that is stored with the state.
    """

    def __init__(self, directory: Path, beside: Callable[[], Any]) -> None:
        super().__init__()
        self._directory = directory
        self._beside = beside
        self._jobs = SimpleQueue[Callable[[], None] | None]()
        self._problems = SimpleQueue[str]()
        self._writer = Thread(target=self._work, name="kept-states", daemon=True)
        directory.mkdir(parents=True, exist_ok=True)
        self._writer.start()

    def put(self, name: str, held: Held) -> None:
        """Keep a copy under `name`, and have it written; a spare is not, it is in memory alone."""
        before = self.names()
        super().put(name, held)
        numbers = {
            "state": _numbers(self.leaves(name)),
            "beside": jax.tree.map(np.array, self._beside()),
        }
        self._jobs.put(partial(self._write, name, numbers))
        self._drop(before - self.names())

    def forget_after(self, name: str) -> None:
        """Forget what is newer than `name`: a rollback undid it."""
        before = self.names()
        super().forget_after(name)
        self._drop(before - self.names())

    def stored(self) -> tuple[str, ...]:
        """Names of the complete states on disk, oldest first."""
        return tuple(
            sorted(
                path.name
                for path in self._directory.iterdir()
                if not path.name.startswith(".") and (path / DIGESTS).is_file()
            )
        )

    def load(self, name: str, like: State, beside: Beside) -> tuple[State, Beside]:
        """Read a state from disk and keep it in memory; also what was stored beside it.

        Args:
          name: one of `stored`.
          like: a train state of the same structure, shapes and dtypes. Its Python numbers may
            have become arrays in the meantime; what is neither, such as a function, is taken from
            it.
          beside: likewise.

        Raises:
          PersistenceError: it is not there, or damaged.
          CheckpointMismatchError: it is of another model or optimiser.
        """
        plain, join = split_shared(like)
        leaves, structure = jax.tree.flatten(plain)
        check_digests(self._directory / name)
        wanted = _numbers(leaves)
        for place, stored in stored_shapes(self._directory / name).items():
            index = place.removeprefix("state/")
            is_scalar = index in wanted and isinstance(leaves[int(index)], int | float)
            if is_scalar and stored.endswith("()"):
                wanted[index] = np.zeros((), stored.removesuffix("()"))
        template = {"state": wanted, "beside": jax.tree.map(np.array, beside)}
        found = load_tree(self._directory / name, template)
        numbers: dict[str, Any] = found["state"]
        loaded = [_like(numbers.get(_place(i)), leaf) for i, leaf in enumerate(leaves)]
        state = place_like(join(structure.unflatten(loaded)), like)
        super().put(name, self.hold(state))
        return state, found["beside"]

    def problems(self) -> list[str]:
        """Why states could not be written, since the last call; waits for nothing."""
        return [self._problems.get() for _ in range(self._problems.qsize())]

    def close(self) -> list[str]:
        """Wait until all is written; why what was not was not. Closing twice is harmless."""
        self._jobs.put(None)
        self._writer.join()
        return self.problems()

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            try:
                job()
            except PersistenceError as error:
                self._problems.put(str(error))

    def _write(self, name: str, numbers: dict[str, Any]) -> None:
        try:  # Orbax would wait for minutes before it said so
            self._directory.mkdir(exist_ok=True)
        except OSError as error:
            raise PersistenceError(
                f"{self._directory} cannot hold states: {error.strerror}", path=str(self._directory)
            ) from error
        shutil.rmtree(self._directory / name, ignore_errors=True)
        save_tree(self._directory / name, numbers)

    def _drop(self, names: frozenset[str]) -> None:
        for name in names:
            self._jobs.put(partial(shutil.rmtree, self._directory / name, ignore_errors=True))


def _place(index: int) -> str:
    return f"{index:05d}"


def _numbers(leaves: list[Any]) -> dict[str, Any]:
    """The arrays and numbers among the leaves, by their place, as Orbax can write them."""
    found: dict[str, Any] = {}
    for index, leaf in enumerate(leaves):
        if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            found[_place(index)] = jax.random.key_data(leaf)
        elif isinstance(leaf, jax.Array | np.ndarray):
            found[_place(index)] = leaf
        elif isinstance(leaf, int | float):
            packed = struct.pack("<d" if isinstance(leaf, float) else "<q", leaf)
            found[_place(index)] = np.frombuffer(packed, np.uint8)
    return found


def _like(number: Any, leaf: Any) -> Any:  # noqa: ANN401 - any leaf
    """What was stored, as a leaf of its kind; a Python number may have become an array."""
    if number is None:
        return leaf
    if isinstance(leaf, int | float) and number.ndim:
        form = "<d" if isinstance(leaf, float) else "<q"
        return type(leaf)(struct.unpack(form, np.asarray(number).tobytes())[0])
    if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(number, impl=jax.random.key_impl(leaf))
    return np.array(number) if isinstance(leaf, np.ndarray) else number
