"""Find the journal and the blueprints of a run from the directory that the user names.

A controller keeps its journal in its own directory. The demo and the Plug give it the directory
``tamiyo`` inside that of the run, with the blueprints beside it. Either may be named.
"""

from __future__ import annotations

from pathlib import Path

import typer

__all__ = ["find_blueprints", "find_journal_home"]


def find_journal_home(directory: Path) -> Path:
    """Find the directory that holds the journal: `directory`, or ``tamiyo`` in it.

    Raises:
      BadParameter: neither holds a journal.
    """
    homes = (directory, directory / "tamiyo")
    for home in homes:
        if (home / "journal").is_dir():
            return home
    own, inner = (home / "journal" for home in homes)
    raise typer.BadParameter(
        f"{directory} holds no journal: there is neither {own} nor {inner}; name a run directory"
    )


def find_blueprints(home: Path) -> Path:
    """Find the blueprints of a run: ``blueprints.db`` beside its journal, or a directory above.

    Args:
      home: the result of `find_journal_home`.

    Raises:
      BadParameter: neither exists.
    """
    own, outer = home / "blueprints.db", home.resolve().parent / "blueprints.db"
    for library in (own, outer):
        if library.is_file():
            return library
    raise typer.BadParameter(f"there is neither {own} nor {outer}; name the run's --library")
