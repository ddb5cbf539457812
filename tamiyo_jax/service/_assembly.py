"""The parts of a controller: made in order, and closed in the reverse order."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tamiyo_jax.bus import Bus, Publisher
from tamiyo_jax.config import TamiyoConfig
from tamiyo_jax.contracts import Event, Secret
from tamiyo_jax.controller import TamiyoState, initial_state
from tamiyo_jax.errors import MissingSecretError, PersistenceError
from tamiyo_jax.inference import Deployment, Isolation, PolicyChoice
from tamiyo_jax.library import (
    BlueprintLibrary,
    BlueprintResolver,
    CacheListener,
    fetch_inline,
    fetch_through,
    serve_library,
)
from tamiyo_jax.storage import StorageManager
from tamiyo_jax.telemetry import Sink, Telemetry, damage_events, status_packet
from tamiyo_jax.workers import Load, WorkerPool, WorkerSpec, worker_environment

__all__ = ["Parts", "assemble", "resolve_secrets"]


@dataclass(frozen=True, slots=True)
class Parts:
    """What a controller is made of.

    Attributes:
      state: the state to go on from.
      deployment: makes the deployed policies of the policy.
      storage: the run directory.
      resolver: blueprints.
      metadata: the workers that fetch them; None where the calling process fetches.
      publisher: publishes reports; None where there is no bus.
      telemetry: sends packets to the sinks.
      closers: closes all of them.
    """

    state: TamiyoState[Any]
    deployment: Deployment
    storage: StorageManager[Any]
    resolver: BlueprintResolver
    metadata: WorkerPool | None
    publisher: Publisher | None
    telemetry: Telemetry
    closers: ExitStack


def resolve_secrets(config: TamiyoConfig, given: bytes | None) -> tuple[Secret, ...]:
    """Find the secret that signs, and after it the previous one, which only verifies.

    Raises:
      MissingSecretError: there is none, or one is shorter than 16 bytes.
    """
    name = config.security.secret_env
    found = os.environb.get(name.encode()) if given is None else given
    if found is None:
        raise MissingSecretError(
            f"no signing secret: pass secret=… or set the variable {name} to at least 16 bytes",
            variable=name,
        )
    previous = os.environb.get(f"{name}_PREVIOUS".encode())
    secrets = tuple(Secret(key) for key in (found, previous) if key is not None)
    for secret in secrets:
        secret.check_strength()
    return secrets


def assemble(
    config: TamiyoConfig,
    choice: PolicyChoice,
    *,
    directory: Path,
    library: BlueprintLibrary,
    secret: Secret,
    sinks: Iterable[Sink],
    bus: Bus | None,
    state: TamiyoState[Any] | None,
    isolation: Isolation,
    clock: Callable[[], int],
) -> Parts:
    """Open the run directory, and start the threads and workers beside the steps.

    Raises:
      DirectoryLockedError: another process owns the directory.
      PersistenceError: the journal or the library cannot be read or written.
    """
    with ExitStack() as closers:
        telemetry = Telemetry(sinks)
        closers.callback(telemetry.close)

        def emit(events: tuple[Event, ...]) -> None:
            telemetry.emit(status_packet(events, {}, clock()))

        template = choice.policy.initial_state()
        storage = StorageManager[Any].open(
            directory,
            config.storage,
            template,
            clock=clock,
            publishing=bus is not None,
            settings=config.model_dump_json(),
            emit=emit,
        )
        closers.callback(storage.close)
        if damage := damage_events(storage.recovered):
            emit(damage)
        current = initial_state(template) if storage.state is None else storage.state
        storage.start(current)
        cache = storage.cache_directory
        environment = worker_environment(config.deadlines.device, cache)
        deployment = Deployment(config, choice, storage, isolation, environment)
        if state is not None:
            given = choice.params is not None
            current = deployment.adopt(state, choice.params) if given else state
            storage.append_restore(current, "state given to open")
        pool = _metadata_pool(config, library, isolation, storage)
        if pool is not None:
            closers.callback(pool.close)
        fetch = fetch_inline(library) if pool is None else fetch_through(pool)
        listener = CacheListener(library, config.library, emit)
        resolver = BlueprintResolver(listener, fetch, config.graph)
        closers.callback(resolver.close)
        publisher = None
        if bus is not None:
            publisher = Publisher(storage, bus, secret, config.publishing, emit=emit, clock=clock)
            closers.callback(publisher.close)
        return Parts(
            current, deployment, storage, resolver, pool, publisher, telemetry, closers.pop_all()
        )


def _metadata_pool(
    config: TamiyoConfig,
    library: BlueprintLibrary,
    isolation: Isolation,
    storage: StorageManager[Any],
) -> WorkerPool | None:
    connection = library.connection()
    if connection is None or isolation == "inline":
        return None
    deadlines = config.deadlines
    arguments = {"factory": connection.factory, "arguments": dict(connection.arguments)}
    factory = f"{serve_library.__module__}:{serve_library.__name__}"
    return WorkerPool(
        WorkerSpec(
            stage="metadata",
            load=Load(factory, arguments, deadlines.memory_mb << 20),
            failure=PersistenceError,
            environment=worker_environment("cpu", storage.cache_directory),
            logs=storage.log_directory,
            spares=deadlines.spares,
            warmup_s=deadlines.warmup_s,
        )
    )
