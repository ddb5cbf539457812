"""The table and the plot of `growth.py`.

Intervals are 95 % intervals of a mean over seeds, by Student's t. Networks are compared seed by
seed: accuracies by their difference, sizes and times by their ratio, whose mean is geometric.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich import box
from rich.table import Table
from scipy import stats

__all__ = ["Row", "plot", "table"]

Row = dict[str, Any]
"""The fields of an `Outcome`, by name."""

COLOURS = {"small": "tab:grey", "grown": "tab:blue", "big": "tab:orange"}
PAIRS = (("grown", "small"), ("grown", "big"))


def interval(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean of f[seeds, ...] over the seeds, and half the width of its 95 % interval."""
    count = len(values)
    if count < 2:
        return values.mean(axis=0), np.full(values.shape[1:], np.nan)
    half = stats.t.ppf(0.975, count - 1) * values.std(axis=0, ddof=1) / np.sqrt(count)
    return values.mean(axis=0), half


def column(rows: Sequence[Row], study: str, variant: str, field: str) -> np.ndarray:
    """A field of one study's and one variant's runs, in the order of their seeds."""
    chosen = [row for row in rows if (row["study"], row["variant"]) == (study, variant)]
    return np.asarray([row[field] for row in sorted(chosen, key=lambda row: row["seed"])])


def table(rows: Sequence[Row]) -> Table:
    """Each network, and the grown one against the others."""
    found = Table(
        "",
        "test accuracy, %",
        "live parameters",
        "training, s",
        "with programs compiled, s",
        box=box.MARKDOWN,
    )
    for study in dict.fromkeys(row["study"] for row in rows):
        for variant in COLOURS:
            accuracy, parameters, seconds, compiled = (
                interval(column(rows, study, variant, field))
                for field in ("accuracy", "parameters", "seconds", "compiled_seconds")
            )
            found.add_row(
                f"{study}: {variant}",
                f"{100 * accuracy[0]:.1f} ± {100 * accuracy[1]:.1f}",
                f"{parameters[0]:,.0f} ± {parameters[1]:,.0f}",
                f"{seconds[0]:.1f} ± {seconds[1]:.1f}",
                f"{compiled[0]:.1f} ± {compiled[1]:.1f}",
            )
        for one, other in PAIRS:
            gain, half = interval(
                column(rows, study, one, "accuracy") - column(rows, study, other, "accuracy")
            )
            fields = ("parameters", "seconds", "compiled_seconds")
            found.add_row(
                f"{study}: {one} against {other}",
                f"{100 * gain:+.2f} ± {100 * half:.2f}",
                *(ratio(rows, study, one, other, field) for field in fields),
            )
    return found


def ratio(rows: Sequence[Row], study: str, one: str, other: str, field: str) -> str:
    """Geometric mean of a field's ratio, and its interval."""
    mean, half = interval(
        np.log(column(rows, study, one, field) / column(rows, study, other, field))
    )
    low, middle, high = np.exp([mean - half, mean, mean + half])
    return f"× {middle:.2f} ({low:.2f} to {high:.2f})"


def plot(path: str, rows: Sequence[Row]) -> None:
    """Validation accuracy over the epochs, and test accuracy against live parameters."""
    studies = list(dict.fromkeys(row["study"] for row in rows))
    figure = Figure(figsize=(9, 3.4 * len(studies)), layout="constrained")
    for (left, right), study in zip(
        figure.subplots(len(studies), 2, squeeze=False), studies, strict=True
    ):
        for variant, colour in COLOURS.items():
            draw_epochs(left, column(rows, study, variant, "validation"), variant, colour)
            draw_ends(
                right,
                column(rows, study, variant, "parameters"),
                column(rows, study, variant, "accuracy"),
                colour,
            )
        left.set(title=study, xlabel="epoch", ylabel="validation accuracy")
        left.legend(loc="lower right", frameon=False)
        right.set(title=study, xlabel="live parameters", ylabel="test accuracy", xlim=(0, None))
        for axes in (left, right):
            axes.grid(alpha=0.3)
    figure.savefig(path, dpi=110)


def draw_epochs(axes: Axes, values: np.ndarray, label: str, colour: str) -> None:
    """Mean and interval of f[seeds, epochs]."""
    mean, half = interval(values)
    epochs = np.arange(1, len(mean) + 1)
    axes.plot(epochs, mean, color=colour, label=label)
    axes.fill_between(epochs, mean - half, mean + half, color=colour, alpha=0.25, linewidth=0)


def draw_ends(axes: Axes, parameters: np.ndarray, accuracy: np.ndarray, colour: str) -> None:
    """A dot for each seed, and the mean with its interval."""
    axes.plot(parameters, accuracy, "o", color=colour, alpha=0.3, markersize=4)
    (x, across), (y, along) = interval(parameters), interval(accuracy)
    axes.errorbar(x, y, along, across, "o", color=colour, capsize=4)
