"""Checks of files that a command reads, before any of their bytes is read."""

from __future__ import annotations

import stat
from collections.abc import Callable
from pathlib import Path

import typer

__all__ = ["MIB", "check_file", "check_files"]

MIB = 2**20


def check_file(limit_bytes: int) -> Callable[[Path | None], Path | None]:
    """Make a Typer callback that refuses what is no regular file, or too large.

    Reading a FIFO or a device can wait for ever, and a sparse file can be larger than memory.
    """

    def check(path: Path | None) -> Path | None:
        if path is None:
            return None
        try:
            facts = path.stat()
        except OSError as error:
            raise typer.BadParameter(f"{path}: {error.strerror}") from error
        if not stat.S_ISREG(facts.st_mode):
            raise typer.BadParameter(f"{path} is not a regular file")
        if facts.st_size > limit_bytes:
            raise typer.BadParameter(
                f"{path} has {facts.st_size} bytes; the limit for this file is {limit_bytes}"
            )
        return path

    return check


def check_files(limit_bytes: int) -> Callable[[list[Path]], list[Path]]:
    """Make a callback as `check_file`, for an argument of several files."""
    check = check_file(limit_bytes)

    def check_all(paths: list[Path]) -> list[Path]:
        for path in paths:
            check(path)
        return paths

    return check_all
