"""`tamiyo-jax blueprint`: read, write and validate blueprints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from tamiyo_jax._redis_client import is_redis_url
from tamiyo_jax.cli._config import ConfigFile
from tamiyo_jax.cli._files import MIB, check_file, check_files
from tamiyo_jax.cli._output import Json, cell, plain, print_json, print_lines, print_table
from tamiyo_jax.config import GraphConfig, TamiyoConfig
from tamiyo_jax.contracts import Blueprint, blueprint_from_json, blueprint_to_json
from tamiyo_jax.errors import GraphCapacityError, InvalidBlueprintError, UnknownBlueprintError
from tamiyo_jax.library import (
    BlueprintLibrary,
    RedisBlueprintLibrary,
    SqliteBlueprintLibrary,
    check_blueprint,
)

__all__ = ["app"]

_LARGEST_LIBRARY = 2**40
_COLUMNS = ("blueprint_id", "revision", "name", "tier", "stage", "risk", "layers", "parameters")

app = typer.Typer(no_args_is_help=True, help="Blueprints, and the libraries that hold them.")

Library = Annotated[
    str, typer.Option("--library", metavar="PATH|URL", help="A SQLite file, or redis://host.")
]
Files = Annotated[
    list[Path],
    typer.Argument(
        metavar="FILE...",
        exists=True,
        dir_okay=False,
        callback=check_files(64 * MIB),
        help="Blueprints as JSON.",
    ),
]


@app.command()
def put(files: Files, library: Library, config: ConfigFile = None, as_json: Json = False) -> None:
    """Store blueprints in a library; if any is invalid, none is stored.

    Example: tamiyo-jax blueprint put host.json seed.json --library run/blueprints.db
    """
    caps = TamiyoConfig.load(config).graph
    blueprints = [_read_blueprint(file, caps) for file in files]
    opened = _open_library(library, caps, create=True)
    revisions = {blueprint.blueprint_id: opened.put(blueprint) for blueprint in blueprints}
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
    blueprint = _open_library(library, TamiyoConfig.load(config).graph).get(blueprint_id)
    if blueprint is None:
        raise UnknownBlueprintError(
            f"the library holds no blueprint {blueprint_id!r}; see tamiyo-jax blueprint list",
            blueprint_id=blueprint_id,
        )
    print_json(json.loads(blueprint_to_json(blueprint)))


@app.command("list")
def list_blueprints(library: Library, config: ConfigFile = None, as_json: Json = False) -> None:
    """List the blueprints of a library.

    Example: tamiyo-jax blueprint list --library run/blueprints.db
    """
    opened = _open_library(library, TamiyoConfig.load(config).graph)
    found = [opened.get(blueprint_id) for blueprint_id in opened.ids()]
    rows = [_row(blueprint) for blueprint in found if blueprint is not None]  # None: just deleted
    if as_json:
        print_json(rows)
        return
    table = Table(*_COLUMNS)
    for row in rows:
        cells = ("" if value is None else value for value in plain(row).values())
        table.add_row(*map(cell, cells))
    print_table(table)


@app.command()
def validate(files: Files, config: ConfigFile = None, as_json: Json = False) -> None:
    """Check blueprints; exit status 1 if any is invalid.

    Example: tamiyo-jax blueprint validate blueprints/*.json
    """
    caps = TamiyoConfig.load(config).graph
    found = {str(file): _explain_error(file, caps) for file in files}
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


def _read_blueprint(file: Path, caps: GraphConfig) -> Blueprint:
    """Read and validate the blueprint in a file.

    Raises:
      InvalidBlueprintError: the blueprint is invalid; the error names the file.
      GraphCapacityError: it has more nodes or edges than the caps.
    """
    try:
        return check_blueprint(blueprint_from_json(file.read_text(encoding="utf-8")), caps)
    except UnicodeDecodeError as error:
        raise InvalidBlueprintError(f"{file}: not UTF-8: {error}", file=str(file)) from error
    except (InvalidBlueprintError, GraphCapacityError) as error:
        raise type(error)(f"{file}: {error}", **error.context) from error


def _explain_error(file: Path, caps: GraphConfig) -> str | None:
    """Explain why the blueprint in a file is invalid; None if it is valid."""
    try:
        _read_blueprint(file, caps)
    except (InvalidBlueprintError, GraphCapacityError) as error:
        return str(error)
    return None


def _open_library(library: str, caps: GraphConfig, *, create: bool = False) -> BlueprintLibrary:
    """Open the library at a path or URL; a file must exist unless `create` is set."""
    if is_redis_url(library):
        return RedisBlueprintLibrary(library, caps)
    if not create and not Path(library).is_file():
        # A mistyped URL is not shown: it may contain a password.
        shown = library if "@" not in library else "the given path or URL"
        raise typer.BadParameter(f"there is no library at {shown}", param_hint="--library")
    if Path(library).exists():
        check_file(_LARGEST_LIBRARY)(Path(library))
    return SqliteBlueprintLibrary(library, caps)
