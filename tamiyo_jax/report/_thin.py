"""Long series in few points, with every extreme kept."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

__all__ = ["choose_rows", "reduce_maxima", "split_rows"]


def choose_rows(series: Sequence[np.ndarray], buckets: int) -> np.ndarray:
    """Choose the rows that show what all rows show: i64 [kept], ascending.

    The rows are cut into `buckets` runs of equal length; of each run are kept its first and
    last row, the rows of the smallest and of the largest finite value of every series, and the
    first row whose value is not finite after a row whose value is, and the other way round.

    Args:
      series: f64 [rows] each.
      buckets: at least 1.
    """
    rows = len(series[0])
    if rows <= 2 * buckets:
        return np.arange(rows)
    starts = split_rows(rows, buckets)
    kept = [starts, np.append(starts[1:], rows) - 1]
    for values in series:
        finite = np.isfinite(values)
        for fill, sign in ((np.inf, 1.0), (-np.inf, -1.0)):
            kept.append(_extremes(sign * np.where(finite, values, fill), starts))
        kept.append(_first_changes(finite, starts))
    return np.unique(np.concatenate(kept))


def split_rows(rows: int, buckets: int) -> np.ndarray:
    """Split rows into runs of equal length: i64 [at most buckets], the first row of each."""
    return np.unique(np.linspace(0, rows, min(rows, buckets), endpoint=False).astype(np.int64))


def reduce_maxima(values: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """Reduce runs to their largest value: f64 [..., len(starts)], NaN where all are NaN."""
    known = np.where(np.isnan(values), -np.inf, values)
    most = np.maximum.reduceat(known, starts, axis=-1)
    return np.where(most == -np.inf, np.nan, most)


def _extremes(values: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """The first row of each run with the smallest value of that run."""
    least = np.minimum.reduceat(values, starts)
    lengths = np.diff(np.append(starts, len(values)))
    at = np.flatnonzero(values == np.repeat(least, lengths))
    return at[np.unique(np.searchsorted(starts, at, side="right"), return_index=True)[1]]


def _first_changes(finite: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """Of each run the first row at which finite values begin or end, and the row before it."""
    changes = np.flatnonzero(np.diff(finite)) + 1
    first = changes[np.unique(np.searchsorted(starts, changes, side="right"), return_index=True)[1]]
    return np.concatenate([first, first - 1])
