"""The table and the plot of `growth_gpt.py`; intervals as in `growth_report.py`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from growth_report import interval
from matplotlib.figure import Figure

__all__ = ["plot", "table"]

Row = dict[str, Any]
"""The fields of an `Outcome`, by name."""


def column(rows: Sequence[Row], plan: str, field: str) -> np.ndarray:
    """A field of one plan's runs, in the order of their seeds."""
    chosen = sorted((row for row in rows if row["plan"] == plan), key=lambda row: row["seed"])
    return np.asarray([row[field] for row in chosen])


def table(rows: Sequence[Row]) -> str:
    """A table in Markdown: each network, its ratios to the large one of the same seed.

    Of a seed without a large network, nothing is said of the ratios.
    """
    lines = [
        "| | loss | loss, × large | FLOPs, × | seconds, × | CPU, × | memory, × | jump | stall |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for plan in dict.fromkeys(row["plan"] for row in rows):
        mean, half = interval(column(rows, plan, "loss"))
        cells = [f"{mean:.4f} ± {half:.4f}"]
        fields = ("loss", "flops", "seconds", "cpu_seconds", "bytes")
        cells += [ratio(rows, plan, field) for field in fields]
        cells += [f"{max(column(rows, plan, 'jump'), key=abs):+.1e}"]
        cells += [f"{max(column(rows, plan, 'stall')):.1f}"]
        lines.append(f"| {plan} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def ratio(rows: Sequence[Row], plan: str, field: str) -> str:
    """Geometric mean of a field's ratio to the large network's, and its interval."""
    large = {row["seed"]: row[field] for row in rows if row["plan"] == "large"}
    own = {row["seed"]: row[field] for row in rows if row["plan"] == plan}
    seeds = sorted(own.keys() & large.keys())
    if not seeds:
        return ""
    logs = np.log([own[seed] / large[seed] for seed in seeds])
    mean, half = interval(logs)
    low, middle, high = np.exp([mean - half, mean, mean + half])
    return f"{middle:.3f} ({low:.3f} to {high:.3f})"


def plot(path: str, rows: Sequence[Row]) -> None:
    """Validation loss against arithmetic: the mean over the seeds, and each seed."""
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    for index, plan in enumerate(dict.fromkeys(row["plan"] for row in rows)):
        curves = column(rows, plan, "curve")  # [seeds, points, 2]
        colour = f"C{index}"
        for curve in curves:
            axes.plot(curve[:, 0] / 1e12, curve[:, 1], color=colour, alpha=0.2, linewidth=0.8)
        mean = curves.mean(axis=0)
        axes.plot(mean[:, 0] / 1e12, mean[:, 1], color=colour, label=plan)
    axes.set(xlabel="TFLOP, by XLA's count", ylabel="validation loss, nats per character")
    axes.set(ylim=(None, 2.2))
    axes.legend(frameon=False)
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=110)
