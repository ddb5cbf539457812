"""Runs below a directory, by the journals that are in them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

__all__ = ["find_runs"]


def find_runs(directory: Path) -> list[Path]:
    """Find the directories of runs in and below a directory, by path.

    A controller's own directory ``tamiyo`` is named by the run that it is in.
    """
    return sorted(_found(directory))


def _found(directory: Path) -> Iterator[Path]:
    for place, names, _ in os.walk(directory):
        if "journal" in names and any((Path(place) / "journal").glob("*.wal")):
            home = Path(place)
            inner = home.name == "tamiyo" and home != directory
            yield home.parent if inner else home
            names.clear()  # what else is in it belongs to it
