"""Parameters as safetensors: arrays by their paths, and nothing that could be run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar, cast

import jax
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from tamiyo_jax.config import PolicyConfig
from tamiyo_jax.errors import CheckpointMismatchError
from tamiyo_jax.policy._network import Params, abstract_params

__all__ = ["arrays_from_bytes", "export_params", "fit_params", "load_params", "params_to_bytes"]

Tree = TypeVar("Tree")


def params_to_bytes(params: object) -> bytes:
    """A pytree of arrays as safetensors, names joined by slashes."""
    arrays = {name: np.ascontiguousarray(leaf) for name, leaf in _name_leaves(params).items()}
    return save(arrays)


def arrays_from_bytes(payload: bytes) -> dict[str, np.ndarray]:
    """The arrays in safetensors, by name.

    Raises:
      CheckpointMismatchError: the bytes are something else, or damaged.
    """
    try:
        return load(payload)
    except (SafetensorError, KeyError, ValueError) as error:
        raise CheckpointMismatchError(
            f"these {len(payload)} bytes are not safetensors: {error}", cause=str(error)
        ) from error


def fit_params(arrays: Mapping[str, np.ndarray], template: Tree, where: str) -> Tree:
    """Put arrays into the structure of `template`.

    Args:
      arrays: by name, as `params_to_bytes` names them.
      template: parameters, or `jax.ShapeDtypeStruct`s, of the shapes that are wanted.
      where: what holds the arrays, for the error.

    Raises:
      CheckpointMismatchError: an array is missing, unexpected or of the wrong shape or
        dtype; the error lists all of them.
    """
    expected = _name_leaves(template)
    missing, unexpected = sorted(expected.keys() - arrays), sorted(arrays.keys() - expected)
    wrong = [
        f"{name}: {arrays[name].dtype}{arrays[name].shape} for {want.dtype}{want.shape}"
        for name, want in expected.items()
        if name in arrays and (arrays[name].shape, arrays[name].dtype) != (want.shape, want.dtype)
    ]
    if missing or unexpected or wrong:
        raise CheckpointMismatchError(
            f"{where} does not fit the configured network: "
            f"{_summarise(missing, unexpected, wrong)}; use its policy.sage_width, gat_width and "
            "heads, or a preset (--policy-preset small)",
            missing=missing,
            unexpected=unexpected,
            wrong=wrong,
        )
    return jax.tree.unflatten(jax.tree.structure(template), [arrays[name] for name in expected])


def _summarise(missing: list[str], unexpected: list[str], wrong: list[str]) -> str:
    """Count the arrays that do not fit, each kind with its first example."""
    kinds = {"missing": missing, "unexpected": unexpected, "of another shape or dtype": wrong}
    return ", ".join(f"{len(names)} {kind} ({names[0]})" for kind, names in kinds.items() if names)


def export_params(params: object, path: Path) -> None:
    """Write parameters as safetensors."""
    path.write_bytes(params_to_bytes(params))


def load_params(path: Path, config: PolicyConfig) -> Params:
    """Read the network's parameters, and check them against `config`.

    Raises:
      CheckpointMismatchError: as `arrays_from_bytes` and `fit_params` do.
      FileNotFoundError: there is no such file.
    """
    return fit_params(arrays_from_bytes(path.read_bytes()), abstract_params(config), str(path))


def _name_leaves(tree: object) -> dict[str, Any]:
    """Leaves by their paths."""
    walk = cast(Any, jax.tree_util)
    return {
        walk.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in walk.tree_leaves_with_path(tree)
    }
