"""A run, or several, as one HTML file that needs nothing else."""

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
from tamiyo_jax.report._attention import Urgency, findings
from tamiyo_jax.report._html import finding_html, name_of, story_html, table_html
from tamiyo_jax.report._payload import payload_of
from tamiyo_jax.report._run import Run
from tamiyo_jax.report._signals import limits_of
from tamiyo_jax.report._summary import parameters_of, state_of
from tamiyo_jax.report._words import counted, moment, number

__all__ = ["page"]

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


def page(runs: Sequence[Run], *, made_ns: int) -> str:
    """The page: what needs attention, what happened, and the figures.

    Several runs are compared first; then each has its part.

    Args:
      runs: at least one.
      made_ns: when the page is made, nanoseconds since the epoch.
    """
    names = [name_of(run) for run in runs]
    body = _part(runs[0], 0) if len(runs) == 1 else _compared(runs)
    data = json.dumps(
        {"runs": [payload_of(run, limits_of(run)) for run in runs]},
        separators=(",", ":"),
        allow_nan=False,
    )
    live = any(run.holder is not None for run in runs)
    return Template(_text("page.html")).substitute(
        title=escape(f"{', '.join(names)} – Tamiyo"),
        style=_text("uPlot.min.css") + _text("page.css"),
        body=body,
        version=escape(metadata.version("tamiyo_jax")),
        made=moment(made_ns),
        note="It was running then; make the page again for what came later." if live else "",
        library=_text("uPlot.iife.min.js"),
        data=base64.b64encode(gzip.compress(data.encode(), 9, mtime=0)).decode("ascii"),
        script="\n".join(_text(name) for name in ("plots.js", "figures.js", "page.js")),
    )


def _text(name: str) -> str:
    return resources.files("tamiyo_jax.report").joinpath("page", name).read_text("utf-8")


def _part(run: Run, index: int) -> str:
    """All that is said and drawn of one run."""
    return "\n".join(
        (
            _header(run),
            "<h2>What needs attention</h2>",
            *map(finding_html, findings(run)),
            "" if findings(run) else _fine(run),
            "<h2>What happened</h2>",
            story_html(run),
            '<p class="hint screen">Drag across a figure to zoom into all of them; double-click '
            "to see all again. Click a name below a figure to hide its line.</p>",
            *(_figure(index, *one) for one in _FIGURES),
            _decisions(index),
            _damage(run),
            _settings(run),
        )
    )


def _header(run: Run) -> str:
    state = state_of(run)
    words = f"running, process {run.holder}" if state == "running" else state
    return (
        f"<header><h1>{escape(name_of(run))}</h1>"
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
    lines = [f"Corrupt: {one}." for one in run.corrupt] + [f"Torn: {one}." for one in run.torn]
    if not lines:
        return "<h2>Damage</h2><p>None: every byte of the journal was read.</p>"
    more = f"<li>and {len(lines) - 100} more</li>" if len(lines) > 100 else ""
    items = "".join(f"<li>{escape(line)}</li>" for line in lines[:100])
    return f'<h2>Damage</h2><ul class="story">{items}{more}</ul>'


def _settings(run: Run) -> str:
    """What the run is controlled with; settings that are not the default come first."""
    last = {name: run.frame[name][-1] for name in _LAST} if len(run) else {}
    rows = [(words, last[name] or "none") for name, words in _LAST.items() if name in last]
    known = table_html((), [*rows, ("seeds", ", ".join(run.seed_ids) or "none")])
    if not run.settings:
        return f"<h2>Configuration</h2>{known}<p>The journal holds no settings.</p>"
    usual = TamiyoConfig().model_dump(mode="json")
    settings = [
        (f"{section}.{field}", json.dumps(value), json.dumps(usual.get(section, {}).get(field)))
        for section, fields in run.settings.items()
        for field, value in fields.items()
    ]
    changed = [one for one in settings if one[1] != one[2]]
    head = ("setting", "value", "default")
    changes = table_html(head, changed) if changed else "<p>All settings are the defaults.</p>"
    return (
        f"<h2>Configuration</h2>{known}<h3>Settings that are not the default</h3>{changes}"
        f"<details><summary>All settings</summary>{table_html(head, settings)}</details>"
    )


def _compared(runs: Sequence[Run]) -> str:
    head = ("run", "state", "decisions", "step", "validation loss", "lowest", "accuracy",
            "live parameters", "actions", "needs attention")  # fmt: skip
    names = "".join(
        f'<details class="run" data-run="{index}"><summary>{escape(name_of(run))}</summary>'
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
        f'<div class="scroll">{table_html(head, map(_row, runs))}</div>{figures}{names}'
    )


def _row(run: Run) -> tuple[str, ...]:
    urgent = [one.what for one in findings(run) if one.urgency > Urgency.NOTE]
    losses, parameters = run.frame["validation_loss"], parameters_of(run)
    finite = losses[np.isfinite(losses)]
    return (
        name_of(run),
        state_of(run),
        f"{len(run):,}",
        f"{run.frame['step'][-1]:,}" if len(run) else "",
        number(losses[-1]) if len(run) else "",
        number(finite.min()) if len(finite) else "",
        number(run.frame["validation_accuracy"][-1]) if len(run) else "",
        "" if parameters is None else number(parameters[-1]),
        counted(run.frame["action"][run.acted]),
        " ".join(urgent),
    )
