"""Pieces of HTML that pages and notebooks share; all text is escaped here."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from typing import TYPE_CHECKING

from tamiyo_jax.report._attention import Finding, Urgency, findings
from tamiyo_jax.report._summary import sentences, state_of

if TYPE_CHECKING:
    from tamiyo_jax.report._run import Run

__all__ = ["brief_html", "finding_html", "name_of", "story_html", "table_html"]

_LEVELS = {Urgency.CRITICAL: "critical", Urgency.WARNING: "warning", Urgency.NOTE: "note"}


def brief_html(run: Run) -> str:
    """A run in a few lines, for a notebook."""
    return (
        f"<div><b>{escape(name_of(run))}</b> ({state_of(run)})"
        f"{''.join(map(finding_html, findings(run)))}{story_html(run)}</div>"
    )


def name_of(run: Run) -> str:
    """What a run is called: the name of its directory."""
    return run.directory.name or str(run.directory)


def finding_html(one: Finding) -> str:
    """What happened, why, and what to do."""
    level = _LEVELS[one.urgency]
    why = f"<dt>Why</dt><dd>{escape(one.why)}</dd>" if one.why else ""
    return (
        f'<div class="finding {level}"><b class="level">{level}</b> '
        f'<span class="what">{escape(one.what)}</span>'
        f"<dl>{why}<dt>What to do</dt><dd>{escape(one.do)}</dd></dl></div>"
    )


def story_html(run: Run) -> str:
    """The sentences of a run as a list."""
    lines = "".join(f"<li>{escape(line)}</li>" for line in sentences(run))
    return f'<ul class="story">{lines}</ul>'


def table_html(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table; without a head it is rows only."""
    first = "".join(f"<th>{escape(one)}</th>" for one in head)
    body = "".join(
        f"<tr>{''.join(f'<td>{escape(str(cell))}</td>' for cell in row)}</tr>" for row in rows
    )
    return f"<table>{f'<tr>{first}</tr>' if first else ''}{body}</table>"
