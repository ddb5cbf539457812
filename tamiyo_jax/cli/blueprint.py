"""`tamiyo-jax blueprint`: what a library of blueprints holds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

import typer
from rich.markup import escape
from rich.table import Table

from tamiyo_jax.cli.config import ConfigFile
from tamiyo_jax.cli.output import Json, console, plain, print_json, print_lines
from tamiyo_jax.config import GraphConfig, TamiyoConfig
from tamiyo_jax.contracts import Blueprint, blueprint_from_json, blueprint_to_json
from tamiyo_jax.errors import GraphCapacityError, InvalidBlueprintError, UnknownBlueprintError
from tamiyo_jax.runtime import (
    BlueprintLibrary,
    RedisBlueprintLibrary,
    SqliteBlueprintLibrary,
)
from tamiyo_jax.runtime.library import checked

__all__ = ["app"]

_REDIS_SCHEMES = ("redis", "rediss", "unix")
_COLUMNS = ("blueprint_id", "revision", "name", "tier", "stage", "risk", "layers", "parameters")

app = typer.Typer(no_args_is_help=True, help="Blueprints, and the libraries that hold them.")

Library = Annotated[
    str, typer.Option("--library", metavar="PATH|URL", help="A SQLite file, or redis://host.")
]
Files = Annotated[
    list[Path],
    typer.Argument(metavar="FILE...", exists=True, dir_okay=False, help="Blueprints as JSON."),
]


@app.command()
def put(files: Files, library: Library, config: ConfigFile = None, as_json: Json = False) -> None:
    """Store blueprints in a library; if one of them is not valid, none is stored.

    Example: tamiyo-jax blueprint put host.json seed.json --library run/blueprints.db
    """
    caps = TamiyoConfig.load(config).graph
    blueprints = [_checked(file, caps) for file in files]
    opened = _opened(library, caps, create=True)
    revisions = {one.blueprint_id: opened.put(one) for one in blueprints}
    if as_json:
        print_json(revisions)
        return
    for blueprint_id, revision in revisions.items():
        print_lines(f"{blueprint_id}: revision {revision}")


@app.command()
def get(
    blueprint_id: Annotated[str, typer.Argument(help="Id of the blueprint.")],
    library: Library,
    config: ConfigFile = None,
) -> None:
    """Print a blueprint as the JSON that put and validate read.

    Example: tamiyo-jax blueprint get host --library run/blueprints.db
    """
    blueprint = _opened(library, TamiyoConfig.load(config).graph).get(blueprint_id)
    if blueprint is None:
        raise UnknownBlueprintError(
            f"the library holds no blueprint {blueprint_id!r}; see tamiyo-jax blueprint list",
            blueprint_id=blueprint_id,
        )
    print_json(json.loads(blueprint_to_json(blueprint)))


@app.command("list")
def list_blueprints(library: Library, config: ConfigFile = None, as_json: Json = False) -> None:
    """Print what blueprints a library holds.

    Example: tamiyo-jax blueprint list --library run/blueprints.db
    """
    opened = _opened(library, TamiyoConfig.load(config).graph)
    found = [opened.get(blueprint_id) for blueprint_id in opened.ids()]
    rows = [_row(one) for one in found if one is not None]  # None was deleted just now
    if as_json:
        print_json(rows)
        return
    table = Table(*_COLUMNS)
    for row in rows:
        cells = ("" if cell is None else str(cell) for cell in plain(row).values())
        table.add_row(*map(escape, cells))
    console.print(table)


@app.command()
def validate(files: Files, config: ConfigFile = None, as_json: Json = False) -> None:
    """Check blueprints; exit status 1 if one of them is not valid.

    Example: tamiyo-jax blueprint validate blueprints/*.json
    """
    caps = TamiyoConfig.load(config).graph
    found = {str(file): _problem(file, caps) for file in files}
    if as_json:
        print_json(found)
    else:
        for file, problem in found.items():
            print_lines(problem or f"{file}: valid")
    if any(found.values()):
        raise typer.Exit(1)


def _row(blueprint: Blueprint) -> dict[str, object]:
    return {
        "blueprint_id": blueprint.blueprint_id,
        "revision": blueprint.revision,
        "name": blueprint.name,
        "tier": blueprint.tier,
        "stage": blueprint.stage,
        "risk": blueprint.effective_risk,
        "layers": len(blueprint.layers),
        "parameters": sum(layer.parameter_count or 0 for layer in blueprint.layers),
    }


def _checked(file: Path, caps: GraphConfig) -> Blueprint:
    """The valid blueprint in a file.

    Raises:
      InvalidBlueprintError: there is none; the error names the file.
      GraphCapacityError: it has more nodes or edges than the caps.
    """
    try:
        return checked(blueprint_from_json(file.read_text(encoding="utf-8")), caps)
    except UnicodeDecodeError as error:
        raise InvalidBlueprintError(f"{file}: not UTF-8: {error}", file=str(file)) from error
    except (InvalidBlueprintError, GraphCapacityError) as error:
        raise type(error)(f"{file}: {error}", **error.context) from error


def _problem(file: Path, caps: GraphConfig) -> str | None:
    """What is wrong with the blueprint in a file; None if nothing is."""
    try:
        _checked(file, caps)
    except (InvalidBlueprintError, GraphCapacityError) as error:
        return str(error)
    return None


def _opened(library: str, caps: GraphConfig, *, create: bool = False) -> BlueprintLibrary:
    """The library at a path or URL; a file must be there unless it may be created."""
    if urlsplit(library).scheme in _REDIS_SCHEMES:
        return RedisBlueprintLibrary(library, caps)
    if not create and not Path(library).is_file():
        raise typer.BadParameter(f"there is no library at {library}", param_hint="--library")
    return SqliteBlueprintLibrary(library, caps)
