"""What all commands share: where they print, and values as plain JSON."""

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

__all__ = ["Json", "console", "plain", "print_json", "print_lines", "problems"]

console = Console()
problems = Console(stderr=True)

Json = Annotated[bool, typer.Option("--json", help="Print JSON for a program to read.")]


def print_json(value: object, indent: int | None = 1) -> None:
    """Print a value as JSON; without `indent` on one line."""
    typer.echo(json.dumps(plain(value), indent=indent, allow_nan=False))


def print_lines(*lines: str) -> None:
    """Print text as it is: no markup, no colours, no line broken."""
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def plain(value: object) -> Any:  # noqa: ANN401 - whatever JSON holds
    """A value as what JSON can hold.

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
            return {one.name: plain(getattr(value, one.name)) for one in fields(value)}
        case _:
            raise TypeError(f"{type(value).__name__} has no form in JSON")
