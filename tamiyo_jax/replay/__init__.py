"""A journal read as history: as a table, replayed, or compared with what others would do."""

from tamiyo_jax.replay._history import read_history
from tamiyo_jax.replay._replay import Replay, ReplayedDecision
from tamiyo_jax.replay._what_if import Comparison, Reply, what_if
from tamiyo_jax.report import frame

__all__ = [
    "Comparison",
    "Replay",
    "ReplayedDecision",
    "Reply",
    "frame",
    "read_history",
    "what_if",
]
