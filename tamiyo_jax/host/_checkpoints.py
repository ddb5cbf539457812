"""Kept states on disk, with Orbax."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import DictKey
from orbax.checkpoint import v1 as ocp

from tamiyo_jax._digests import DIGESTS, check_digests, make_damage_error, saving
from tamiyo_jax._orbax import run_to_end
from tamiyo_jax.errors import CheckpointMismatchError, PersistenceError
from tamiyo_jax.host._placement import place_like
from tamiyo_jax.host._retention import Retention
from tamiyo_jax.host._seeding import banks_of, seed_shapes
from tamiyo_jax.host._training import Host, HostState, Slot

__all__ = ["HostCheckpoints", "load_tree", "save_tree", "stored_shapes"]

Tree = TypeVar("Tree")


def save_tree(path: str | os.PathLike[str], tree: object) -> None:
    """Write a pytree of arrays to a new directory, with the SHA-256 of every file.

    Raises:
      PersistenceError: the directory exists, or cannot be written.
    """
    with saving(Path(path).absolute()) as directory:
        run_to_end(ocp.save, str(directory), tree)


def load_tree(path: str | os.PathLike[str], like: Tree, host: Host | None = None) -> Tree:
    """Read a pytree that `save_tree` wrote, each array to where `like` has it.

    An array that `like` has committed to devices gets the same sharding; every other one goes to
    the default device, as free to move as those of a new run. Orbax by itself commits all that it
    loads, and a program that was compiled for the one kind compiles anew for the other.

    Args:
      path: where it was written.
      like: a pytree of the same structure, shapes and dtypes; `str` stands for a text.
      host: of every `HostState` in `like`; what grows in its slots then is what grew in them when
        it was written, and need not be the same in `like`.

    Raises:
      PersistenceError: there is none, or it is damaged.
      CheckpointMismatchError: it holds other arrays; Orbax by itself would cast some of them, or
        leave them in their own shape.
    """
    source = Path(path).absolute()
    if not source.is_dir():
        raise PersistenceError(f"there is no checkpoint at {source}", path=str(source))
    check_digests(source)
    try:
        stored = _shapes(run_to_end(ocp.metadata, str(source)).metadata)
        grow_node = like if host is None else _fit_stored_seeds(like, stored, host)
        template = jax.tree.map(
            lambda leaf: leaf if leaf is str else np.empty(leaf.shape, leaf.dtype), grow_node
        )
        _check_equal(source, stored, _shapes(template))
        loaded = run_to_end(ocp.load, str(source), template)
    except (OSError, ValueError) as error:
        raise make_damage_error(source, error) from error
    placed = place_like(loaded, like)
    return jax.tree.map(lambda leaf: leaf if isinstance(leaf, str) else jnp.asarray(leaf), placed)


def stored_shapes(path: str | os.PathLike[str]) -> dict[str, str]:
    """Dtype and shape of every array that `save_tree` wrote, by its path; unchecked."""
    return _shapes(run_to_end(ocp.metadata, str(Path(path).absolute())).metadata)


def _shapes(tree: object) -> dict[str, str]:
    """Dtype and shape of every array, by its path."""
    return {
        _text(path): f"{leaf.dtype}{tuple(leaf.shape)}"
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
        if hasattr(leaf, "shape")
    }


def _fit_stored_seeds(like: Tree, stored: Mapping[str, str], host: Host) -> Tree:
    """`like`, with the seeds of its host states that are stored in place of its own."""

    def grow_node(path: tuple[Any, ...], node: object) -> object:
        if not isinstance(node, HostState):
            return node
        slots: dict[str, Slot] = {}
        for name, slot in node.slots.items():
            prefix = _text((*path, *map(DictKey, ("slots", name, "params")))) + "/"
            found = [
                blueprint_id
                for blueprint_id in banks_of(host)[name]
                if _holds(stored, prefix + blueprint_id)
            ]
            shapes = seed_shapes(host, name, found[0]) if found else ({}, ())
            slots[name] = Slot(slot.state, *shapes)
        return node._replace(slots=slots)

    return jax.tree_util.tree_map_with_path(
        grow_node, like, is_leaf=lambda node: isinstance(node, HostState)
    )


def _holds(stored: Mapping[str, str], path: str) -> bool:
    return any(name == path or name.startswith(path + "/") for name in stored)


def _text(path: Sequence[Any]) -> str:
    return jax.tree_util.keystr(tuple(path), simple=True, separator="/")


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

    Up to three are kept: the newest, and an older one that a slow divergence has not reached,
    between 8 and 17 saves old once there have been so many.

    Args:
      directory: made if it does not exist.
      host: of the states.
    """

    def __init__(self, directory: str | os.PathLike[str], host: Host) -> None:
        self._host = host
        self._directory = Path(directory).absolute()
        self._directory.mkdir(parents=True, exist_ok=True)
        self._retention = Retention(tuple(sorted(self.names())))

    def save(self, name: str, train_state: HostState) -> None:
        """Write `train_state` under `name`, in place of what stood there.

        Names sort by age: when the directory is opened again, the last in order is the newest.
        """
        shutil.rmtree(self._directory / name, ignore_errors=True)
        save_tree(self._directory / name, train_state)
        dropped = self._retention.add(name)
        if dropped is not None:
            shutil.rmtree(self._directory / dropped, ignore_errors=True)

    def forget_after(self, name: str) -> None:
        """Forget what is newer than `name`: a rollback undid it."""
        for newer in self._retention.rewind(name):
            shutil.rmtree(self._directory / newer, ignore_errors=True)

    def rewind(self, name: str, train_state: HostState) -> None:
        """Forget what is newer than `name`, and hold `train_state` under it.

        For a run that goes on from an earlier point than it had come to.
        """
        for newer in sorted(self.names()):
            if newer > name:
                self._retention.remove(newer)
                shutil.rmtree(self._directory / newer)
        self.save(name, train_state)

    def restore(self, name: str, train_state: HostState) -> HostState:
        """The state saved under `name`, on the devices of `train_state`.

        What grows in its slots is what grew then.

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
        return load_tree(self._directory / name, train_state, self._host)

    def names(self) -> frozenset[str]:
        """Names of the complete checkpoints."""
        paths = self._directory.iterdir()
        return frozenset(
            path.name
            for path in paths
            if not path.name.startswith(".") and (path / DIGESTS).is_file()
        )
