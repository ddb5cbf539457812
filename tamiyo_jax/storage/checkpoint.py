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
      config: the configuration that they belong to.

    Raises:
      PersistenceError: the directory exists, or cannot be written.
    """
    target = Path(path).absolute()
    if target.exists():
        raise PersistenceError(
            f"checkpoint {target} exists; checkpoints are never overwritten", path=str(target)
        )
    tree = {"state": state_to_json(state), "params": params}
    metadata: dict[str, Any] = _digests(config) | {
        "registries": state.registries.digest,
        "parameters": _params_digest(params),
        "layout": repr(state.layout),
        "configuration": config.model_dump(mode="json"),
    }
    try:
        ocp.save(str(target), tree, custom_metadata=metadata)
    except OSError as error:
        raise PersistenceError(
            f"checkpoint {target} could not be written: {error}", path=str(target)
        ) from error


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
      PersistenceError: there is no checkpoint.
      CheckpointMismatchError: a digest or a shape differs; says which and how.
    """
    source = Path(path).absolute()
    if not source.is_dir():
        raise PersistenceError(f"there is no checkpoint at {source}", path=str(source))
    metadata, shapes = _described(source)
    for name, expected in _digests(config).items():
        _must_agree(name, metadata.get(name), expected)
    _must_agree("parameter shapes", shapes, _shapes(params))
    text, stored = _loaded(source, params)
    state = state_from_json(text, policy_state)
    _must_agree("registries", metadata.get("registries"), state.registries.digest)
    _must_agree("parameters", metadata.get("parameters"), _params_digest(stored))
    return state, stored


# Orbax and the trees of JAX are untyped; these three are where their values get types.


def _described(source: Path) -> tuple[Mapping[str, object], dict[str, str]]:
    """What was said of a checkpoint when it was saved, and the shapes of its parameters."""
    described = ocp.metadata(str(source))
    said = cast(Mapping[str, object], described.custom_metadata or {})
    tree = cast(Mapping[str, object], described.metadata)
    return said, _shapes(tree["params"])


def _loaded(source: Path, params: Params) -> tuple[str, Params]:
    """State as text, and parameters of the shapes of `params`."""

    def blank(leaf: jax.Array) -> np.ndarray:
        return np.empty(leaf.shape, leaf.dtype)

    template = cast(Params, jax.tree.map(blank, params))
    tree: Any = ocp.load(str(source), {"state": str, "params": template})
    return tree["state"], tree["params"]


def _leaves(tree: object) -> Iterator[tuple[str, Any]]:
    """Path and value of every leaf."""
    walk = cast(Any, jax.tree_util)
    for path, leaf in walk.tree_leaves_with_path(tree):
        yield walk.keystr(path), leaf


def _digests(config: TamiyoConfig) -> dict[str, str]:
    """What must be the same for a checkpoint to mean the same."""
    return {
        "schema_version": str(SCHEMA_VERSION),
        "schema": schema_digest(),
        "graph": config.graph.model_dump_json(),
        "policy": config.policy.model_dump_json(),
    }


def _must_agree(name: str, found: object, expected: object) -> None:
    if found != expected:
        raise CheckpointMismatchError(
            f"checkpoint: {name} is {found}, this build and configuration have {expected}; load "
            "it with what it was saved with",
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
