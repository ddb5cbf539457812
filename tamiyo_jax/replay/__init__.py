"""A journal read as history: replay its decisions, or compare them with other policies."""

from tamiyo_jax.replay._history import read_history
from tamiyo_jax.replay._replay import Replay, ReplayedDecision
from tamiyo_jax.replay._what_if import Comparison, Reply, what_if

__all__ = [
    "Comparison",
    "Replay",
    "ReplayedDecision",
    "Reply",
    "read_history",
    "what_if",
]
