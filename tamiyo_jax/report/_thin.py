"""Long series in few points, with every extreme kept."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

__all__ = ["bucket_maxima", "bucket_starts", "kept_rows"]


def kept_rows(series: Sequence[np.ndarray], buckets: int) -> np.ndarray:
    """i64 [kept]: rows that show what all rows show, ascending.

    The rows are cut into `buckets` runs of equal length; of each run are kept its first and
    last row, the rows of the smallest and of the largest finite value of every series, and the
    first row whose value is not finite while the one before is, and the other way round.

    Args:
      series: f64 [rows] each.
      buckets: at least 1.
    """
    rows = len(series[0])
    if rows <= 2 * buckets:
        return np.arange(rows)
    starts = bucket_starts(rows, buckets)
    kept = [starts, np.append(starts[1:], rows) - 1]
    for values in series:
        finite = np.isfinite(values)
        for fill, sign in ((np.inf, 1.0), (-np.inf, -1.0)):
            kept.append(_extremes(sign * np.where(finite, values, fill), starts))
        kept.append(_first_changes(finite, starts))
    return np.unique(np.concatenate(kept))


def bucket_starts(rows: int, buckets: int) -> np.ndarray:
    """i64 [at most buckets]: the first row of each run."""
    return np.unique(np.linspace(0, rows, min(rows, buckets), endpoint=False).astype(np.int64))


def bucket_maxima(values: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """f64 [..., len(starts)]: the largest value of each run, NaN where all are NaN."""
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
