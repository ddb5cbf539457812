"""Trained policies on disk: safetensors for updates, Orbax for going on, and a card."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp

from tamiyo_jax._digests import check_digests, write_digests
from tamiyo_jax._orbax import run_to_end
from tamiyo_jax.errors import ConfigurationError
from tamiyo_jax.graph import schema_digest
from tamiyo_jax.policy import Params, params_to_bytes

__all__ = ["CARD", "PARAMS", "add_to_card", "read_params", "save_policy", "write_params"]

PARAMS = "params.safetensors"
CARD = "card.json"
ORBAX = "orbax"


def save_policy(directory: Path, params: Params, facts: Mapping[str, object]) -> str:
    """Write a policy: ``params.safetensors``, ``orbax/``, ``card.json`` and digests of all files.

    Args:
      directory: made here; it must not exist.
      params: of the network.
      facts: how it was made and what it achieved; JSON.

    Returns:
      SHA-256 of ``params.safetensors``, hexadecimal, which the card holds too.

    Raises:
      ConfigurationError: the directory exists.
    """
    if directory.exists():
        raise ConfigurationError(
            f"{directory} exists; name another --output, or delete it",
            field="output",
            value=str(directory),
        )
    directory.mkdir(parents=True)
    payload = params_to_bytes(params)
    digest = hashlib.sha256(payload).hexdigest()
    (directory / PARAMS).write_bytes(payload)
    write_params(directory / ORBAX, params)
    (directory / ORBAX / "commit_success.txt").unlink(missing_ok=True)  # names its maker's path
    _write_card(directory, {**facts, "sha256": digest, "schema": schema_digest()})
    return digest


def add_to_card(directory: Path, facts: Mapping[str, object]) -> None:
    """Add facts to the card of a policy that `save_policy` wrote, and renew the digests.

    Raises:
      PersistenceError: the files are not those of the digests.
    """
    check_digests(directory)
    card = json.loads((directory / CARD).read_text(encoding="utf-8"))
    _write_card(directory, {**card, **facts})


def _write_card(directory: Path, card: Mapping[str, object]) -> None:
    text = json.dumps(card, indent=1, sort_keys=True) + "\n"
    (directory / CARD).write_text(text, encoding="utf-8")
    write_digests(directory)


def write_params(directory: Path, params: Params) -> None:
    """Write parameters to a new directory, with Orbax."""

    def save() -> None:
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(directory.absolute(), jax.tree.map(np.asarray, dict(params)))

    run_to_end(save)


def read_params(directory: Path, like: Params) -> Params:
    """Read what `write_params` wrote, in the shapes and dtypes of `like`."""
    target = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), dict(like))

    def restore() -> Params:
        with ocp.StandardCheckpointer() as checkpointer:
            return checkpointer.restore(directory.absolute(), target)

    return run_to_end(restore)
