"""What a run did and why, for people: from its journal alone."""

from tamiyo_jax.report._attention import Finding, Urgency, findings
from tamiyo_jax.report._finding_runs import runs_below
from tamiyo_jax.report._page import page
from tamiyo_jax.report._reading import RunReader, frame, read_run
from tamiyo_jax.report._run import Happening, Run
from tamiyo_jax.report._summary import sentences
from tamiyo_jax.report._terminal import runs_table, status_facts, status_view
from tamiyo_jax.report._watch import follow
from tamiyo_jax.report._writing import write_report

__all__ = [
    "Finding",
    "Happening",
    "Run",
    "RunReader",
    "Urgency",
    "findings",
    "follow",
    "frame",
    "page",
    "read_run",
    "runs_below",
    "runs_table",
    "sentences",
    "status_facts",
    "status_view",
    "write_report",
]
