"""Keeping a run's state on disk, with Orbax."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from orbax.checkpoint import v1 as ocp

from tamiyo_jax.errors import CheckpointMismatchError, PersistenceError
from tamiyo_jax.host.placement import placed_like
from tamiyo_jax.host.training import HostState

__all__ = ["HostCheckpoints", "load_tree", "save_tree"]

Tree = TypeVar("Tree")


def save_tree(path: str | os.PathLike[str], tree: object) -> None:
    """Write a pytree of arrays to a new directory.

    Raises:
      PersistenceError: the directory exists, or cannot be written.
    """
    target = Path(path).absolute()
    if target.exists():
        raise PersistenceError(
            f"checkpoint {target} exists; checkpoints are never overwritten", path=str(target)
        )
    try:
        ocp.save(str(target), tree)
    except OSError as error:
        raise PersistenceError(
            f"checkpoint {target} could not be written: {error}", path=str(target)
        ) from error


def load_tree(path: str | os.PathLike[str], like: Tree) -> Tree:
    """Read a pytree that `save_tree` wrote, each array to where `like` has it.

    An array that `like` has committed to devices gets the same sharding; every other one goes to
    the default device, as free to move as those of a new run. Orbax by itself commits all that it
    loads, and a program that was compiled for the one kind compiles anew for the other.

    Args:
      path: where it was written.
      like: a pytree of the same structure, shapes and dtypes; `str` stands for a text.

    Raises:
      PersistenceError: there is none, or it is damaged.
      CheckpointMismatchError: it holds other arrays; Orbax by itself would cast some of them, or
        leave them in their own shape.
    """
    source = Path(path).absolute()
    if not source.is_dir():
        raise PersistenceError(f"there is no checkpoint at {source}", path=str(source))
    template = jax.tree.map(
        lambda leaf: leaf if leaf is str else np.empty(leaf.shape, leaf.dtype), like
    )
    try:
        stored = _shapes(ocp.metadata(str(source)).metadata)
        if not stored:
            raise _damaged(source, "nothing in it can be read")  # Orbax gives an empty tree
        _check_equal(source, stored, _shapes(template))
        loaded = ocp.load(str(source), template)
    except (OSError, ValueError) as error:
        raise _damaged(source, error) from error
    placed = placed_like(loaded, like)
    return jax.tree.map(lambda leaf: leaf if isinstance(leaf, str) else jnp.asarray(leaf), placed)


def _damaged(source: Path, why: object) -> PersistenceError:
    return PersistenceError(f"checkpoint {source} is damaged: {why}", path=str(source))


def _shapes(tree: object) -> dict[str, str]:
    """Dtype and shape of every array, by its path."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): f"{leaf.dtype}{tuple(leaf.shape)}"
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
        if hasattr(leaf, "shape")
    }


def _check_equal(source: Path, stored: dict[str, str], wanted: dict[str, str]) -> None:
    if stored != wanted:
        names = sorted(
            name for name in stored.keys() | wanted.keys() if stored.get(name) != wanted.get(name)
        )
        first = names[0]
        raise CheckpointMismatchError(
            f"checkpoint {source} is of something else: {first} is {stored.get(first, 'absent')} "
            f"in it and {wanted.get(first, 'absent')} here, one of {len(names)} that differ",
            path=str(source),
            names=tuple(names),
        )


class HostCheckpoints:
    """Host states in a directory, by name: what ROLLBACK restores from.

    Only the newest few are kept: the one that a decision names was the newest when it was asked
    for, and one before it stands while the next is being written.

    Args:
      directory: made if it does not exist.
    """

    _KEPT = 2

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        self._directory = Path(directory).absolute()
        self._directory.mkdir(parents=True, exist_ok=True)

    def save(self, name: str, train_state: HostState) -> None:
        """Write `train_state` under `name`, in place of what stood there.

        Names sort by age: the first in order are deleted when there are more than are kept.
        """
        shutil.rmtree(self._directory / name, ignore_errors=True)
        save_tree(self._directory / name, train_state)
        for old in sorted(self.names())[: -self._KEPT]:
            shutil.rmtree(self._directory / old)

    def rewind(self, name: str, train_state: HostState) -> None:
        """Forget what is newer than `name`, and hold `train_state` under it.

        For a run that goes on from an earlier point than it had come to.
        """
        for newer in sorted(self.names()):
            if newer > name:
                shutil.rmtree(self._directory / newer)
        self.save(name, train_state)

    def restore(self, name: str, train_state: HostState) -> HostState:
        """The state saved under `name`, in the shape and on the devices of `train_state`.

        Raises:
          PersistenceError: there is none.
          CheckpointMismatchError: it is of another host.
        """
        kept = self.names()
        if name not in kept:
            raise PersistenceError(
                f"there is no checkpoint {name!r} in {self._directory}; there are {sorted(kept)}",
                path=str(self._directory),
                name=name,
            )
        return load_tree(self._directory / name, train_state)

    def names(self) -> frozenset[str]:
        """Names of the complete checkpoints."""
        paths = self._directory.iterdir()
        return frozenset(path.name for path in paths if ocp.is_orbax_checkpoint(str(path)))
