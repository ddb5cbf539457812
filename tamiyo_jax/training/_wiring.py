"""A controller and an applier that trust each other, in the process of the training loop."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from tamiyo_jax.clock import steady_time_ns
from tamiyo_jax.config import TamiyoConfig
from tamiyo_jax.contracts import Blueprint, NonceLedger, Secret, Verifier
from tamiyo_jax.host import Checkpointer, CommandApplier, Host
from tamiyo_jax.library import (
    MemoryBlueprintLibrary,
    RedisBlueprintLibrary,
    SqliteBlueprintLibrary,
)
from tamiyo_jax.service import Tamiyo, resolve_secrets
from tamiyo_jax.serving import Client, connect

__all__ = ["connect_controller", "open_controller"]

SECRET_BYTES = 32


def open_controller(
    config: TamiyoConfig,
    directory: Path,
    blueprint: Blueprint,
    candidates: Sequence[Blueprint],
    *,
    host: Host | None,
    mode: Literal["act", "shadow", "guard"],
    optimizer_id: str,
    checkpointer: Checkpointer,
) -> tuple[Tamiyo, CommandApplier]:
    """Open a controller whose policy is the heuristic, and an applier for its commands.

    The key that signs commands is made here and known to no other.

    Args:
      config: the settings.
      directory: of the run: its blueprints go to ``blueprints.db``, the controller to ``tamiyo``.
      blueprint: of the network.
      candidates: blueprints of the seeds.
      host: with seeds; None for a network without.
      mode: as for `Tamiyo.open`.
      optimizer_id: the optimiser that commands may scale.
      checkpointer: restores for ROLLBACK.

    Raises:
      TamiyoError: as `Tamiyo.open` does.
    """
    secret = os.urandom(SECRET_BYTES)
    applier = _make_applier(
        config,
        (Secret(secret),),
        host=host,
        optimizer_id=optimizer_id,
        checkpointer=checkpointer,
    )
    # No blueprint is added later, so no worker need watch the file; `tamiyo-jax` reads it.
    library = MemoryBlueprintLibrary(config.graph)
    stored = SqliteBlueprintLibrary(directory / "blueprints.db", config.graph)
    for each in (blueprint, *candidates):
        library.put(each)
        stored.put(each)
    controller = Tamiyo.open(
        config,
        directory=directory / "tamiyo",
        library=library,
        policy="heuristic",
        mode=mode,
        secret=secret,
    )
    return controller, applier


def connect_controller(
    config: TamiyoConfig,
    blueprint: Blueprint,
    *,
    server: str,
    run_id: str,
    optimizer_id: str,
    checkpointer: Checkpointer,
) -> tuple[Client, CommandApplier]:
    """Connect to a server, and make an applier for its commands.

    Args:
      config: the settings; the run's key is read from the environment.
      blueprint: of the network; it is put into the library that the servers read.
      server: the URL of Redis.
      run_id: the run.
      optimizer_id: the optimiser that commands may scale.
      checkpointer: restores for ROLLBACK.

    Raises:
      TamiyoError: as `connect` does, and `RedisBlueprintLibrary.put`.
    """
    secrets = resolve_secrets(config, None)
    library = RedisBlueprintLibrary(server, config.graph)
    library.put(blueprint)
    library.close()
    applier = _make_applier(
        config, secrets, host=None, optimizer_id=optimizer_id, checkpointer=checkpointer
    )
    return connect(server, run_id, config=config), applier


def _make_applier(
    config: TamiyoConfig,
    secrets: tuple[Secret, ...],
    *,
    host: Host | None,
    optimizer_id: str,
    checkpointer: Checkpointer,
) -> CommandApplier:
    return CommandApplier(
        Verifier(secrets, NonceLedger(steady_time_ns()), config.security),
        clock=steady_time_ns,
        optimizer_id=optimizer_id,
        checkpointer=checkpointer,
        host=host,
    )
