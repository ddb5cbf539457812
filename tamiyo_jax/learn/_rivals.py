"""The numbers of the rivals, chosen on the training families by ``tamiyo-jax evaluate --tune``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

__all__ = ["TUNED"]

TUNED: Mapping[str, Sequence[float]] = {
    "rates": (1.0, 0.0),
    "growth": (1.0, 2.0),
    "heuristic": (1.0, 1.0, 1.0),
}
"""Level and end of the learning-rate schedule; epoch and blueprint of the growth schedule;
``plateau_epochs``, ``min_epochs`` and ``train_epochs`` of the heuristic."""
