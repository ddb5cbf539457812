"""Table and picture of a demonstration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Group
from rich.table import Table

from tamiyo_jax.demo._results import DemoSummary, Row, Variant
from tamiyo_jax.errors import ConfigurationError

__all__ = ["draw", "summary_table"]

_COLOURS = {"grown": "tab:blue", "small": "tab:orange", "full": "tab:green"}
_MARKS = {
    "GERMINATE": "^",
    "ADVANCE": ">",
    "FOSSILIZE": "s",
    "CULL": "x",
    "OPTIMIZER": "v",
    "PAUSE": "|",
    "ROLLBACK": "<",
}


def summary_table(summary: DemoSummary) -> Group:
    """Accuracy, parameters, decisions, events and latency, for the terminal."""
    networks = Table("network", "test accuracy", "parameters", title="At the end")
    for variant in (summary.small, summary.grown, summary.full):
        before, after = variant.parameters_before, variant.parameters_after
        shown = f"{before:,}" if before == after else f"{before:,} → {after:,}"
        networks.add_row(variant.name, f"{variant.test_accuracy:.1%}", shown)
    facts = Table(show_header=False, title="Tamiyo")
    facts.add_row("decisions", _counts(summary.actions))
    facts.add_row("events", _counts(summary.levels) or "none")
    if summary.decision_ms:
        median, p99 = np.percentile(summary.decision_ms, (50, 99))
        facts.add_row("step latency", f"median {median:.2f} ms, p99 {p99:.2f} ms")
    return Group(networks, facts)


def draw(summary: DemoSummary, path: Path) -> None:
    """Draw loss, accuracy, live parameters and decisions over the epochs into a PNG.

    Raises:
      ConfigurationError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigurationError(
            "the picture needs matplotlib, which is not installed; install tamiyo_jax[demo]",
            extra="demo",
        ) from error
    figure = Figure(figsize=(9, 10), layout="constrained")
    loss, accuracy, parameters, decisions = figure.subplots(
        4, 1, sharex=True, height_ratios=(3, 3, 2, 2)
    )
    variants = {"small": summary.small, "grown": summary.grown, "full": summary.full}
    for key, variant in variants.items():
        epochs = [row.epoch for row in variant.rows]
        style = {"color": _COLOURS[key], "label": _label(variant)}
        loss.plot(epochs, [row.validation_loss for row in variant.rows], **style)
        accuracy.plot(epochs, [row.validation_accuracy for row in variant.rows], **style)
        parameters.step(epochs, [row.live_parameters for row in variant.rows], **style)
    _draw_decisions(decisions, [row for row in summary.grown.rows if row.action in _MARKS])
    loss.set_ylabel("validation loss")
    accuracy.set_ylabel("validation accuracy")
    accuracy.set_ylim(bottom=0.5, top=1.0)
    accuracy.legend(loc="lower right")
    parameters.set_ylabel("live parameters")
    decisions.set_ylabel("decisions")
    decisions.set_xlabel("epoch")
    for axis in (loss, accuracy, parameters):
        axis.grid(alpha=0.3)
    figure.suptitle("A network that grows while it trains, on real digits")
    figure.savefig(path, dpi=120)


def _draw_decisions(axis: Any, rows: list[Row]) -> None:  # noqa: ANN401 (matplotlib's)
    actions = [action for action in _MARKS if any(row.action == action for row in rows)]
    for height, action in enumerate(actions):
        epochs = [row.epoch for row in rows if row.action == action]
        axis.scatter(epochs, [height] * len(epochs), marker=_MARKS[action], color="tab:blue")
    axis.set_yticks(range(len(actions)), actions)
    axis.set_ylim(-0.7, max(len(actions), 1) - 0.3)
    axis.grid(alpha=0.3, axis="x")


def _label(variant: Variant) -> str:
    return f"{variant.name}: {variant.test_accuracy:.1%}, {variant.parameters_after:,} parameters"


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items())
