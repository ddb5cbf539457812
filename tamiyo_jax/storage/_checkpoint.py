"""Checkpoints of the controller, with Orbax.

Inside a checkpoint tree of your own the controller's state is one text leaf:
``{"train": train_state, "tamiyo": state_to_json(tamiyo.state)}``.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar, cast

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp  # pyright: ignore[reportMissingTypeStubs]

from tamiyo_jax._digests import check_digests, make_damage_error, saving
from tamiyo_jax._orbax import run_to_end
from tamiyo_jax.config import TamiyoConfig
from tamiyo_jax.controller import TamiyoState, state_from_json, state_to_json
from tamiyo_jax.errors import CheckpointMismatchError, PersistenceError
from tamiyo_jax.graph import SCHEMA_VERSION, schema_digest

__all__ = ["load_checkpoint", "save_checkpoint"]

Params = TypeVar("Params")
PolicyState = TypeVar("PolicyState")


def save_checkpoint(
    path: str | os.PathLike[str],
    state: TamiyoState[PolicyState],
    params: object,
    config: TamiyoConfig,
) -> None:
    """Write state and parameters to a new directory.

    Args:
      path: a directory that does not exist yet.
      state: the controller's state.
      params: the policy's parameters, a pytree of arrays; ``{}`` where it has none.
      config: the configuration of the run.

    Raises:
      PersistenceError: the directory exists, or cannot be written.
    """
    tree = {"state": state_to_json(state), "params": params}
    metadata: dict[str, Any] = _digests(config) | {
        "registries": state.registries.digest,
        "parameters": _params_digest(params),
        "layout": repr(state.layout),
        "configuration": config.model_dump(mode="json"),
    }
    with saving(Path(path).absolute()) as directory:
        run_to_end(ocp.save, str(directory), tree, custom_metadata=metadata)


def load_checkpoint(
    path: str | os.PathLike[str],
    config: TamiyoConfig,
    *,
    policy_state: PolicyState,
    params: Params,
) -> tuple[TamiyoState[PolicyState], Params]:
    """Read state and parameters.

    Args:
      path: a directory that `save_checkpoint` wrote.
      config: the configuration to use them with.
      policy_state: any state of the same policy (``policy.initial_state()``).
      params: parameters of the same shapes, or `jax.ShapeDtypeStruct`s
        (``policy.abstract_params(config.policy)``).

    Raises:
      PersistenceError: there is no checkpoint, or a file of it is damaged or missing.
      CheckpointMismatchError: a digest or a shape differs; says which and how.
    """
    source = Path(path).absolute()
    if not source.is_dir():
        raise PersistenceError(f"there is no checkpoint at {source}", path=str(source))
    check_digests(source)
    metadata, shapes = _read_metadata(source)
    for name, expected in _digests(config).items():
        _require_equal(name, metadata.get(name), expected)
    _require_equal("parameter shapes", shapes, _shapes(params))
    try:
        text, stored = _read_tree(source, params)
    except (OSError, ValueError) as error:
        raise make_damage_error(source, error) from error
    state = state_from_json(text, policy_state)
    _require_equal("registries", metadata.get("registries"), state.registries.digest)
    _require_equal("parameters", metadata.get("parameters"), _params_digest(stored))
    return state, stored


# Orbax and JAX trees are untyped; the next three functions give their values types.


def _read_metadata(source: Path) -> tuple[Mapping[str, object], dict[str, str]]:
    """The custom metadata of a checkpoint, and the shapes of its parameters."""
    described = run_to_end(ocp.metadata, str(source))
    said = cast(Mapping[str, object], described.custom_metadata or {})
    tree = cast(Mapping[str, object], described.metadata)
    return said, _shapes(tree["params"])


def _read_tree(source: Path, params: Params) -> tuple[str, Params]:
    """State as text, and parameters of the shapes of `params`."""

    def blank(leaf: jax.Array) -> np.ndarray:
        return np.empty(leaf.shape, leaf.dtype)

    template = cast(Params, jax.tree.map(blank, params))
    tree: Any = run_to_end(ocp.load, str(source), {"state": str, "params": template})
    return tree["state"], tree["params"]


def _leaves(tree: object) -> Iterator[tuple[str, Any]]:
    """Path and value of every leaf."""
    walk = cast(Any, jax.tree_util)
    for path, leaf in walk.tree_leaves_with_path(tree):
        yield walk.keystr(path), leaf


def _digests(config: TamiyoConfig) -> dict[str, str]:
    """Digests that must agree between a checkpoint and this build and configuration."""
    return {
        "schema_version": str(SCHEMA_VERSION),
        "schema": schema_digest(),
        "graph": config.graph.model_dump_json(),
        "policy": config.policy.model_dump_json(),
    }


def _require_equal(name: str, found: object, expected: object) -> None:
    if found != expected:
        raise CheckpointMismatchError(
            f"checkpoint: {name} is {found}, but {expected} in this build and configuration; load "
            "it with the version and configuration that saved it",
            name=name,
            found=found,
            expected=expected,
        )


def _shapes(tree: object) -> dict[str, str]:
    return {path: f"{leaf.dtype}{tuple(leaf.shape)}" for path, leaf in _leaves(tree)}


def _params_digest(params: object) -> str:
    digest = hashlib.sha256()
    for path, leaf in _leaves(params):
        array = np.asarray(leaf)
        digest.update(f"{path} {array.dtype} {array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
