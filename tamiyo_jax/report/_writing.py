"""Writing the page of runs to a file."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from tamiyo_jax.errors import PersistenceError
from tamiyo_jax.report._page import render_page
from tamiyo_jax.report._reading import read_run

__all__ = ["write_report"]


def write_report(directories: Sequence[Path], file: Path) -> Path:
    """Write the page of a run, or a page that compares several, and return its path.

    Args:
      directories: of runs, at least one; their owners may be using them.
      file: where the page goes; what is there is overwritten.

    Raises:
      PersistenceError: a journal cannot be read, or the file cannot be written.
    """
    content = render_page(
        [read_run(directory) for directory in directories], made_ns=time.time_ns()
    )
    try:
        file.write_text(content, encoding="utf-8")
    except OSError as error:
        raise PersistenceError(
            f"{file} cannot be written: {error.strerror}; name another file",
            path=str(file),
            errno=error.errno,
        ) from error
    return file
