"""`tamiyo-jax serve` and `run-key`: one service for many runs."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Annotated, Literal

import typer

from tamiyo_jax.cli._config import ConfigFile
from tamiyo_jax.cli._files import MIB, check_file
from tamiyo_jax.cli._output import print_lines
from tamiyo_jax.config import TamiyoConfig
from tamiyo_jax.errors import MissingSecretError

__all__ = ["print_run_key", "serve"]


def serve(
    redis: Annotated[
        str,
        typer.Option(
            envvar="TAMIYO_REDIS_URL",
            show_envvar=True,
            metavar="URL",
            help="Redis; give a URL with a password by the variable.",
        ),
    ],
    directory: Annotated[Path, typer.Option(help="The runs' journals; of this server alone.")],
    policy: Annotated[str, typer.Option(help="As for Tamiyo.open: heuristic, graph or a factory.")],
    params: Annotated[
        Path | None,
        typer.Option(
            exists=True,
            dir_okay=False,
            callback=check_file(8 * 1024 * MIB),
            help="The policy's parameters, safetensors.",
        ),
    ] = None,
    mode: Annotated[
        Literal["act", "shadow", "guard"], typer.Option(help="As for Tamiyo.open.")
    ] = "act",
    host: Annotated[str, typer.Option(help="Address of /healthz and /metrics.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Their port; 0 takes any.")] = 9464,
    config: ConfigFile = None,
) -> None:
    """Decide for many runs whose packets come over Redis, until SIGTERM.

    Any number of servers may share a Redis; each needs a directory of its own. The secret is
    read from the variable that `security.secret_env` names.
    Example: tamiyo-jax serve --redis redis://localhost --directory served --policy heuristic
    """
    from tamiyo_jax.library import RedisBlueprintLibrary
    from tamiyo_jax.policy import load_params
    from tamiyo_jax.service import Fleet
    from tamiyo_jax.serving import HttpEndpoint, Limits, Metrics, Server

    settings = TamiyoConfig.load(config)
    secret = _read_secret(settings)
    parameters = None if params is None else load_params(params, settings.policy)
    metrics = Metrics()
    with (
        HttpEndpoint(metrics, host, port) as endpoint,
        Fleet.open(
            settings,
            directory=directory,
            library=RedisBlueprintLibrary(redis, settings.graph),
            policy=policy,
            params=parameters,
            mode=mode,
        ) as fleet,
    ):
        server = Server(redis, fleet, secret=secret, limits=Limits(), metrics=metrics)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: server.stop())
        print_lines(f"{server.name} serves; http://{host}:{endpoint.port}/healthz")
        server.run()
    print_lines(f"{server.name} has handed its runs on")


def print_run_key(
    run_id: Annotated[str, typer.Argument(help="training_run_id of the run.")],
    config: ConfigFile = None,
) -> None:
    """Print the key of a run, the secret of its client.

    It is derived from the server's secret, which is read from the environment.
    Example: tamiyo-jax run-key mnist-7
    """
    from tamiyo_jax.serving import run_key

    print_lines(run_key(_read_secret(TamiyoConfig.load(config)), run_id).decode())


def _read_secret(config: TamiyoConfig) -> bytes:
    name = config.security.secret_env
    secret = os.environb.get(name.encode())
    if secret is None:
        raise MissingSecretError(
            f"no secret: set the variable {name} to at least 16 bytes", variable=name
        )
    return secret
