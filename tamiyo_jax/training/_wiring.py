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

__all__ = ["open_controller"]

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
    server: str | None,
    run_id: str | None,
) -> tuple[Tamiyo | Client, CommandApplier]:
    """Open a controller whose policy is the heuristic, and an applier for its commands.

    The key that signs commands is made here and known to no other; with a server it is the run's.

    Args:
      config: the settings.
      directory: of the run: its blueprints go to ``blueprints.db``, the controller to ``tamiyo``.
      blueprint: of the network.
      candidates: blueprints of the seeds.
      host: with seeds; None for a network without.
      mode: as for `Tamiyo.open`.
      optimizer_id: the optimiser that commands may scale.
      checkpointer: restores for ROLLBACK.
      server: the URL of Redis, to have a server decide; None decides here.
      run_id: with `server`, the run.

    Raises:
      TamiyoError: as `Tamiyo.open` and `connect` do.
    """
    if server is not None and run_id is not None:
        secrets = resolve_secrets(config, None)
        library = RedisBlueprintLibrary(server, config.graph)
        library.put(blueprint)
        library.close()
        applier = _make_applier(
            config,
            secrets,
            host=host,
            optimizer_id=optimizer_id,
            checkpointer=checkpointer,
        )
        return connect(server, run_id, config=config), applier
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
