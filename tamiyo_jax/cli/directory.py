"""Where the parts of a run are: its journal and its blueprints, from the directory that is named.

A controller keeps its journal in its own directory. The demo and the Plug give it the directory
``tamiyo`` inside that of the run, with the blueprints beside it. Either may be named.
"""

from __future__ import annotations

from pathlib import Path

import typer

__all__ = ["blueprints_of", "journal_home"]


def journal_home(directory: Path) -> Path:
    """The directory that holds the journal: `directory`, or ``tamiyo`` in it.

    Raises:
      BadParameter: neither holds one.
    """
    homes = (directory, directory / "tamiyo")
    for home in homes:
        if (home / "journal").is_dir():
            return home
    own, inner = (home / "journal" for home in homes)
    raise typer.BadParameter(
        f"{directory} holds no journal: there is neither {own} nor {inner}; name a run directory"
    )


def blueprints_of(home: Path) -> Path:
    """The blueprints of a run: ``blueprints.db`` beside its journal, or one directory above.

    Args:
      home: as `journal_home` gives it.

    Raises:
      BadParameter: neither is there.
    """
    own, outer = home / "blueprints.db", home.resolve().parent / "blueprints.db"
    for library in (own, outer):
        if library.is_file():
            return library
    raise typer.BadParameter(f"there is neither {own} nor {outer}; name the run's --library")
