"""A run on a screen of a terminal, and several as a table."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from tamiyo_jax.report._attention import Urgency, list_findings
from tamiyo_jax.report._run import Run
from tamiyo_jax.report._summary import classify_state, describe_run, read_parameters
from tamiyo_jax.report._words import format_duration, format_number, format_time

__all__ = ["render_status", "summarise_status", "tabulate_runs"]

_STYLES = {Urgency.CRITICAL: "bold red", Urgency.WARNING: "yellow", Urgency.NOTE: "cyan"}
_STATES = {"running": "green", "stopped": "bold red"}


def render_status(run: Run, decisions: int) -> RenderableType:
    """Render what is going on, what needs attention, and the last decisions and why.

    Args:
      run: what was read.
      decisions: how many of the last ones to list.
    """
    return Group(
        _title(run),
        Text(),
        *_attention(run),
        Text(),
        *(_indent(line) for line in describe_run(run)),
        Text(),
        _decisions(run, decisions),
    )


def summarise_status(run: Run, decisions: int) -> dict[str, Any]:
    """Return the same for a program."""
    return {
        **_figures(run),
        "happened": list(describe_run(run)),
        "attention": [
            {"urgency": finding.urgency, "what": finding.what, "why": finding.why, "do": finding.do}
            for finding in list_findings(run)
        ],
        "last_decisions": [_decision(run, row) for row in _list_acted_rows(run)[-decisions:]],
    }


def tabulate_runs(runs: Sequence[Run], below: Path) -> tuple[Table, list[dict[str, Any]]]:
    """Tabulate runs for people and for a program: state, steps, last loss, actions, trouble.

    Args:
      runs: what was read.
      below: directories are named from here.
    """
    facts = [
        {
            **_figures(run),
            "actions": _counts(run),
            "trouble": [finding.what for finding in _list_urgent(run)],
        }
        for run in runs
    ]
    table = Table("run", "state", "decisions", "step", "loss", "acted", "last", "trouble")
    for run, fact in zip(runs, facts, strict=True):
        loss = fact["validation_loss"]
        loss = fact["training_loss"] if loss is None else loss
        table.add_row(
            Text(_safe(os.path.relpath(run.directory, below)), overflow="fold"),
            Text(fact["state"], _STATES.get(fact["state"], "")),
            f"{fact['decisions']:,}",
            "" if fact["step"] is None else f"{fact['step']:,}",
            "" if loss is None else format_number(loss),
            f"{fact['acted']:,}",
            "" if not len(run) else f"{format_duration(_age_s(run))} ago",
            Text(_safe(" ".join(fact["trouble"])), "yellow" if fact["trouble"] else ""),
        )
    return table, facts


def _figures(run: Run) -> dict[str, Any]:
    """The numbers of the last decision; None where there is none."""
    frame, parameters = run.frame, read_parameters(run)
    known = len(run) > 0

    def newest(values: np.ndarray | None) -> float | None:
        missing = values is None or not known or np.isnan(values[-1])
        return None if missing and not _broken_now(run) else float(values[-1])  # type: ignore[index]

    return {
        "directory": str(run.directory),
        "state": classify_state(run),
        "process": run.holder,
        "decisions": len(run),
        "acted": int(run.acted.sum()),
        "failed": int(run.failed.sum()),
        "step": int(frame["step"][-1]) if known else None,
        "epoch": int(frame["epoch"][-1]) if known else None,
        "time_ns": int(frame["time_ns"][-1]) if known else None,
        "validation_loss": newest(frame["validation_loss"]),
        "training_loss": newest(frame["training_loss"]),
        "validation_accuracy": newest(frame["validation_accuracy"]),
        "live_parameters": newest(parameters),
    }


def _broken_now(run: Run) -> bool:
    return len(run) > 0 and run.frame["nonfinite"][-1] != ""


def _title(run: Run) -> Text:
    state = classify_state(run)
    title = Text(_safe(str(run.directory)), "bold")
    title.append(f"  {state}", _STATES.get(state, "dim"))
    if run.holder is not None:
        title.append(f"  process {run.holder}", "dim")
    if len(run):
        title.append(f"  last decision {format_duration(_age_s(run))} ago", "dim")
    return title


def _attention(run: Run) -> list[RenderableType]:
    lines: list[RenderableType] = []
    for finding in list_findings(run):
        lines.append(
            Text(f"{finding.urgency.name}  {_safe(finding.what)}", _STYLES[finding.urgency])
        )
        lines += [_indent(f"Why: {finding.why}")] if finding.why else []
        lines.append(_indent(f"What to do: {finding.do}"))
    return lines or [Text("Nothing needs attention.", "green")]


def _decisions(run: Run, count: int) -> RenderableType:
    rows = _list_acted_rows(run)[-count:]
    if not len(rows):
        return Text("No decision did anything yet.", "dim")
    table = Table(
        "step", "time", "action", "what", "why", title="Last decisions", title_justify="left"
    )
    for row in rows[::-1]:
        fact = _decision(run, row)
        table.add_row(
            f"{fact['step']:,}",
            format_time(fact["time_ns"])[11:19],
            Text(fact["action"]),
            Text(_safe(("would: " if fact["mode"] == "shadow" else "") + fact["command"])),
            Text(_safe(fact["explanation"])),
        )
    return table


def _indent(line: str) -> RenderableType:
    return Padding(Text(_safe(line)), (0, 0, 0, 2))


def _list_acted_rows(run: Run) -> np.ndarray:
    return np.flatnonzero(run.acted | run.failed)


def _decision(run: Run, row: int) -> dict[str, Any]:
    names = ("action", "command", "target", "reason", "explanation", "mode", "outcome")
    texts = {name: str(run.frame[name][row]) for name in names}
    texts["action"] = texts["action"] or "FAILED"
    numbers = {name: int(run.frame[name][row]) for name in ("sequence", "time_ns", "step", "epoch")}
    return numbers | texts


def _counts(run: Run) -> dict[str, int]:
    return dict(Counter(map(str, run.frame["action"][run.acted])))


def _list_urgent(run: Run) -> list[Any]:
    return [finding for finding in list_findings(run) if finding.urgency > Urgency.NOTE]


def _age_s(run: Run) -> float:
    return max(run.read_ns - int(run.frame["time_ns"][-1]), 0) / 1e9


def _safe(text: str) -> str:
    """Text that cannot drive a terminal: ids and messages are not ours."""
    return "".join(char if char.isprintable() else "\ufffd" for char in text)
