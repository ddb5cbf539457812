"""`tamiyo-jax conformance`: compare golden files with this build."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Column, Table

from tamiyo_jax.cli._output import Json, print_json, print_table

__all__ = ["conformance"]


def conformance(
    directory: Annotated[Path, typer.Argument(help="Directory of golden files.")],
    as_json: Json = False,
) -> None:
    """Compare every golden file of a directory with this build.

    Example: tamiyo-jax conformance tests/golden
    """
    from tamiyo_jax.conformance import run_conformance

    if not directory.is_dir():
        raise typer.BadParameter(f"{directory} is not a directory")
    lines = list(run_conformance(directory))
    if not lines:
        raise typer.BadParameter(f"{directory} holds no golden file")
    if as_json:
        print_json(lines)
    else:
        table = Table(Column("file", no_wrap=True), "compared", "largest error", "holds")
        for line in lines:
            table.add_row(
                line.file, line.compared, f"{line.error:.2g}", "yes" if line.holds else "NO"
            )
        print_table(table)
    if not all(line.holds for line in lines):
        raise typer.Exit(1)
