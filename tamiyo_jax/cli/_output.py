"""Output shared by all commands: consoles, lines and JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.markup import escape
from rich.measure import Measurement
from rich.table import Table

__all__ = [
    "Json",
    "cell",
    "console",
    "escape_controls",
    "plain",
    "print_json",
    "print_lines",
    "print_table",
    "problems",
]

_UNLIMITED = 100_000  # columns

console = Console()
problems = Console(stderr=True)

Json = Annotated[bool, typer.Option("--json", metavar="", help="Print JSON for a program to read.")]


def print_json(value: object, indent: int | None = 1) -> None:
    """Print a value as JSON; on a single line if `indent` is None."""
    typer.echo(json.dumps(plain(value), indent=indent, allow_nan=False))


def print_lines(*lines: str) -> None:
    """Print lines without markup, colours or wrapping; control characters are escaped."""
    for line in lines:
        console.print(escape_controls(line), markup=False, highlight=False, soft_wrap=True)


def print_table(table: Table) -> None:
    """Print a table with no cell cut: folded on a terminal, at full width elsewhere."""
    for column in table.columns:
        column.overflow = "fold"
    if console.is_terminal:
        console.print(table)
        return
    unlimited = console.options.update(max_width=_UNLIMITED)
    width = Measurement.get(console, unlimited, table).maximum
    Console(file=console.file, width=width).print(table, crop=False)


def cell(text: object) -> str:
    """Prepare text for a table: markup and control characters are escaped."""
    return escape(escape_controls(str(text)))


def escape_controls(text: str) -> str:
    r"""Escape characters that steer a terminal or hide text, as in ``\x1b`` and ``\u202e``.

    Ids come from packets and files of others. Control characters, newlines, bidirectional
    marks and surrogates are escaped; printable characters of all scripts are kept.
    """
    if text.isprintable():
        return text
    return "".join(
        character
        if character.isprintable()
        else character.encode("unicode_escape", "backslashreplace").decode("ascii")
        for character in text
    )


def plain(value: object) -> Any:  # noqa: ANN401 - whatever JSON holds
    """Convert a value to what JSON can hold.

    Enumerations go by name. A number that is not finite becomes a string, ``"NaN"`` or
    ``"-Infinity"``, as in the JSON of protobuf.
    """
    match value:
        case Enum():
            return value.name
        case float() if not math.isfinite(value):
            return json.dumps(value)
        case None | bool() | int() | float() | str():
            return value
        case np.ndarray():
            return plain(value.tolist())
        case Mapping():
            return {str(key): plain(part) for key, part in value.items()}
        case list() | tuple():
            return [plain(part) for part in value]
        case _ if is_dataclass(value):
            return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
        case _:
            raise TypeError(f"{type(value).__name__} has no form in JSON")
