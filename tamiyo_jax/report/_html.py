"""Pieces of HTML that pages and notebooks share; all text is escaped here."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from typing import TYPE_CHECKING

from tamiyo_jax.report._attention import Finding, Urgency, list_findings
from tamiyo_jax.report._summary import classify_state, describe_run

if TYPE_CHECKING:
    from tamiyo_jax.report._run import Run

__all__ = ["get_name", "render_brief", "render_finding", "render_story", "render_table"]

_LEVELS = {Urgency.CRITICAL: "critical", Urgency.WARNING: "warning", Urgency.NOTE: "note"}


def render_brief(run: Run) -> str:
    """Render a run in a few lines, for a notebook."""
    return (
        f"<div><b>{escape(get_name(run))}</b> ({classify_state(run)})"
        f"{''.join(map(render_finding, list_findings(run)))}{render_story(run)}</div>"
    )


def get_name(run: Run) -> str:
    """Return what a run is called: the name of its directory."""
    return run.directory.name or str(run.directory)


def render_finding(finding: Finding) -> str:
    """Render what happened, why, and what to do."""
    level = _LEVELS[finding.urgency]
    why = f"<dt>Why</dt><dd>{escape(finding.why)}</dd>" if finding.why else ""
    return (
        f'<div class="finding {level}"><b class="level">{level}</b> '
        f'<span class="what">{escape(finding.what)}</span>'
        f"<dl>{why}<dt>What to do</dt><dd>{escape(finding.do)}</dd></dl></div>"
    )


def render_story(run: Run) -> str:
    """Render the sentences of a run as a list."""
    lines = "".join(f"<li>{escape(line)}</li>" for line in describe_run(run))
    return f'<ul class="story">{lines}</ul>'


def render_table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Render a table; without a head it is rows only."""
    first = "".join(f"<th>{escape(name)}</th>" for name in head)
    body = "".join(
        f"<tr>{''.join(f'<td>{escape(str(cell))}</td>' for cell in row)}</tr>" for row in rows
    )
    return f"<table>{f'<tr>{first}</tr>' if first else ''}{body}</table>"
