"""What a run did and why, for people: from its journal alone."""

from tamiyo_jax.report._attention import Finding, Urgency, list_findings
from tamiyo_jax.report._finding import find_runs
from tamiyo_jax.report._page import render_page
from tamiyo_jax.report._reading import RunReader, frame, read_run
from tamiyo_jax.report._run import Run, RunEvent
from tamiyo_jax.report._summary import describe_run
from tamiyo_jax.report._terminal import render_status, summarise_status, tabulate_runs
from tamiyo_jax.report._watch import follow
from tamiyo_jax.report._writing import write_report

__all__ = [
    "Finding",
    "Run",
    "RunEvent",
    "RunReader",
    "Urgency",
    "describe_run",
    "find_runs",
    "follow",
    "frame",
    "list_findings",
    "read_run",
    "render_page",
    "render_status",
    "summarise_status",
    "tabulate_runs",
    "write_report",
]
