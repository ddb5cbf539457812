"""`tamiyo-jax config`: the settings as a controller resolves them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Column, Table

from tamiyo_jax.cli._files import MIB, check_file
from tamiyo_jax.cli._output import Json, cell, print_json, print_table
from tamiyo_jax.config import TamiyoConfig, resolve

__all__ = ["ConfigFile", "app"]

app = typer.Typer(no_args_is_help=True, help="Settings, and where they come from.")

ConfigFile = Annotated[
    Path | None,
    typer.Option(
        "--file",
        exists=True,
        dir_okay=False,
        callback=check_file(MIB),
        help="A TOML file of settings.",
    ),
]


@app.callback()
def _group() -> None:
    """Settings, and where they come from."""


@app.command()
def show(file: ConfigFile = None, as_json: Json = False) -> None:
    """Print every setting, its value, and the file or variable that it comes from.

    For the signing secret, only whether its variable is set is printed.

    Example: tamiyo-jax config show --file tamiyo.toml
    """
    config, origins = resolve(file)
    values = config.model_dump()
    secret = config.security.secret_env
    held = "set" if os.environ.get(secret) else "not set"
    if as_json:
        settings = {
            section: {
                field: {"value": value, "from": str(origins[f"{section}.{field}"])}
                for field, value in values[section].items()
            }
            for section in TamiyoConfig.model_fields
        }
        print_json({"settings": settings, "secrets": {secret: held}})
        return
    table = Table(Column("setting", no_wrap=True), "value", Column("from", overflow="fold"))
    for name, origin in origins.items():
        section, _, field = name.partition(".")
        table.add_row(name, cell(json.dumps(values[section][field])), cell(str(origin)))
    table.add_section()
    table.add_row("(the secret)", held, f"variable {secret}")
    print_table(table)
