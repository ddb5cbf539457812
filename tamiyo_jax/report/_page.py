"""A run, or several, as a single HTML file that needs nothing else."""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Sequence
from html import escape
from importlib import metadata, resources
from string import Template

import numpy as np

from tamiyo_jax.config import TamiyoConfig
from tamiyo_jax.report._attention import Urgency, list_findings
from tamiyo_jax.report._html import get_name, render_finding, render_story, render_table
from tamiyo_jax.report._payload import build_payload
from tamiyo_jax.report._run import Run
from tamiyo_jax.report._signals import read_limits
from tamiyo_jax.report._summary import classify_state, read_parameters
from tamiyo_jax.report._words import count_names, format_number, format_time

__all__ = ["render_page"]

_LAST = {
    "run_id": "run id",
    "blueprint": "blueprint",
    "mode": "mode",
    "policy": "policy",
    "restorable": "last restorable checkpoint",
}
_FIGURES = (
    ("losses", "Losses, and what Tamiyo did", "A letter is a decision; its explanation shows when "
     "the pointer is near. Red ground: a loss was not finite."),
    ("accuracy", "Validation accuracy", ""),
    ("parameters", "Live parameters", ""),
    ("lanes", "Seeds through their stages", "The line in a lane is the seed's α, from 0 to 1."),
    ("contributions", "Contribution of each seed", "Validation loss with the seed off, minus on: "
     "above 0 the seed helps."),
    ("heat", "Gradient norm by layer", "The largest norm in each interval, on a logarithmic "
     "scale. Red: not finite."),
    ("signals", "Signals against their limits", "1 is the limit of the first rule that acts; "
     "logarithmic beyond."),
    ("latency", "Latency", "Milliseconds, on a logarithmic scale."),
)  # fmt: skip


def render_page(runs: Sequence[Run], *, made_ns: int) -> str:
    """Render the page: what needs attention, what happened, and the figures.

    Several runs are compared first; then each has its part.

    Args:
      runs: at least one.
      made_ns: when the page is made, nanoseconds since the epoch.
    """
    names = [get_name(run) for run in runs]
    body = _part(runs[0], 0) if len(runs) == 1 else _render_comparison(runs)
    data = json.dumps(
        {"runs": [build_payload(run, read_limits(run)) for run in runs]},
        separators=(",", ":"),
        allow_nan=False,
    )
    live = any(run.holder is not None for run in runs)
    return Template(_text("page.html")).substitute(
        title=escape(f"{', '.join(names)} – Tamiyo"),
        style=_text("uPlot.min.css") + _text("page.css"),
        body=body,
        version=escape(metadata.version("tamiyo_jax")),
        made=format_time(made_ns),
        note="It was running then; make the page again for what came later." if live else "",
        library=_text("uPlot.iife.min.js"),
        data=base64.b64encode(gzip.compress(data.encode(), 9, mtime=0)).decode("ascii"),
        script="\n".join(_text(name) for name in ("plots.js", "figures.js", "page.js")),
    )


def _text(name: str) -> str:
    return resources.files("tamiyo_jax.report").joinpath("page", name).read_text("utf-8")


def _part(run: Run, index: int) -> str:
    """Render all that is said and drawn of a run."""
    return "\n".join(
        (
            _header(run),
            "<h2>What needs attention</h2>",
            *map(render_finding, list_findings(run)),
            "" if list_findings(run) else _fine(run),
            "<h2>What happened</h2>",
            render_story(run),
            '<p class="hint screen">Drag across a figure to zoom into all of them; double-click '
            "to see all again. Click a name below a figure to hide its line.</p>",
            *(_figure(index, *figure) for figure in _FIGURES),
            _decisions(index),
            _damage(run),
            _settings(run),
        )
    )


def _header(run: Run) -> str:
    state = classify_state(run)
    words = f"running, process {run.holder}" if state == "running" else state
    return (
        f"<header><h1>{escape(get_name(run))}</h1>"
        f'<span class="state {state}">{words}</span></header>'
        f'<p class="where">{escape(str(run.directory))}</p>'
    )


def _fine(run: Run) -> str:
    words = "Nothing." if len(run) else "Nothing yet: no decision is on record."
    return f'<div class="finding fine"><span class="what">{words}</span></div>'


def _figure(index: int, figure: str, title: str, hint: str) -> str:
    """The script removes a figure for which nothing was measured."""
    return (
        f'<div class="figure" id="run-{index}-{figure}"><h3>{title}</h3>'
        f'<p class="hint">{hint}</p><div class="plot"></div></div>'
    )


def _decisions(index: int) -> str:
    return (
        f'<h2>Decisions</h2><div class="decisions" id="run-{index}-decisions">'
        '<div class="tools"><input type="search" placeholder="action, seed, reason, …" '
        'aria-label="Show only decisions that contain"><span class="count"></span>'
        '<button type="button">Show all</button></div><div class="scroll"></div></div>'
    )


def _damage(run: Run) -> str:
    lines = [f"Corrupt: {damage}." for damage in run.corrupt]
    lines += [f"Torn: {damage}." for damage in run.torn]
    if not lines:
        return "<h2>Damage</h2><p>None: every byte of the journal was read.</p>"
    more = f"<li>and {len(lines) - 100} more</li>" if len(lines) > 100 else ""
    items = "".join(f"<li>{escape(line)}</li>" for line in lines[:100])
    return f'<h2>Damage</h2><ul class="story">{items}{more}</ul>'


def _settings(run: Run) -> str:
    """What the run is controlled with; settings that are not the default come first."""
    last = {name: run.frame[name][-1] for name in _LAST} if len(run) else {}
    rows = [(words, last[name] or "none") for name, words in _LAST.items() if name in last]
    known = render_table((), [*rows, ("seeds", ", ".join(run.seed_ids) or "none")])
    if not run.settings:
        return f"<h2>Configuration</h2>{known}<p>The journal holds no settings.</p>"
    usual = TamiyoConfig().model_dump(mode="json")
    settings = [
        (f"{section}.{field}", json.dumps(value), json.dumps(usual.get(section, {}).get(field)))
        for section, fields in run.settings.items()
        for field, value in fields.items()
    ]
    changed = [row for row in settings if row[1] != row[2]]
    head = ("setting", "value", "default")
    changes = render_table(head, changed) if changed else "<p>All settings are the defaults.</p>"
    return (
        f"<h2>Configuration</h2>{known}<h3>Settings that are not the default</h3>{changes}"
        f"<details><summary>All settings</summary>{render_table(head, settings)}</details>"
    )


def _render_comparison(runs: Sequence[Run]) -> str:
    head = ("run", "state", "decisions", "step", "validation loss", "lowest", "accuracy",
            "live parameters", "actions", "needs attention")  # fmt: skip
    names = "".join(
        f'<details class="run" data-run="{index}"><summary>{escape(get_name(run))}</summary>'
        f"{_part(run, index)}</details>"
        for index, run in enumerate(runs)
    )
    figures = "".join(
        f'<div class="figure" id="compared-{name}"><h3>{title}</h3><div class="plot"></div></div>'
        for name, title in (
            ("validation_loss", "Validation loss"),
            ("training_loss", "Training loss"),
            ("accuracy", "Validation accuracy"),
            ("parameters", "Live parameters"),
        )
    )
    return (
        f"<header><h1>{len(runs)} runs compared</h1></header>"
        f'<div class="scroll">{render_table(head, map(_row, runs))}</div>{figures}{names}'
    )


def _row(run: Run) -> tuple[str, ...]:
    urgent = [finding.what for finding in list_findings(run) if finding.urgency > Urgency.NOTE]
    losses, parameters = run.frame["validation_loss"], read_parameters(run)
    finite = losses[np.isfinite(losses)]
    return (
        get_name(run),
        classify_state(run),
        f"{len(run):,}",
        f"{run.frame['step'][-1]:,}" if len(run) else "",
        format_number(losses[-1]) if len(run) else "",
        format_number(finite.min()) if len(finite) else "",
        format_number(run.frame["validation_accuracy"][-1]) if len(run) else "",
        "" if parameters is None else format_number(parameters[-1]),
        count_names(run.frame["action"][run.acted]),
        " ".join(urgent),
    )
