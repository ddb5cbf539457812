"""The pictures of docs/reading_a_run.md: ``screenshots.py GROWN_RUN TROUBLED_RUN DIRECTORY``."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from report.browser import Tab, browser

from tamiyo_jax.report import write_report

WIDTH = 1000


def main() -> None:
    grown, troubled, pictures = map(Path, sys.argv[1:4])
    with browser() as tab, tempfile.TemporaryDirectory() as scratch:
        page = write_report([grown], Path(scratch) / "page.html")
        tab.colours("light")
        tab.open(page, WIDTH)
        take(tab, "losses", "contributions", pictures / "report-figures.png")
        page = write_report([troubled], Path(scratch) / "page.html")
        tab.colours("dark")
        tab.open(page, WIDTH)
        take(tab, "", "losses", pictures / "report-dark.png")


def take(tab: Tab, first: str, last: str, file: Path) -> None:
    """From the top of the first figure, or of the page, to the end of the last."""
    edge = "document.getElementById('run-0-{}').getBoundingClientRect().{} + scrollY"
    top = tab.run(edge.format(first, "top")) - 12 if first else 0
    bottom = tab.run(edge.format(last, "bottom")) + 12
    tab.picture(file, x=0, y=top, width=WIDTH, height=bottom - top)


if __name__ == "__main__":
    main()
