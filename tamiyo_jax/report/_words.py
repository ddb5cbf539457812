"""Numbers, times and spans as people read them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from datetime import UTC, datetime

__all__ = [
    "count_names",
    "count_phrases",
    "format_bytes",
    "format_count",
    "format_duration",
    "format_number",
    "format_time",
]

_SPANS = ((86_400.0, "d"), (3_600.0, "h"), (60.0, "min"))
_SIZES = ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"))


def format_number(value: float) -> str:
    """Format to four significant digits; whole numbers with thousands separated."""
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else ("infinite" if value > 0 else "-infinite")
    if value == int(value) and abs(value) < 1e15:
        return f"{int(value):,}"
    return f"{value:.4g}"


def format_count(count: int, noun: str) -> str:
    """Format a count and its noun: ``1 step``, ``2 steps``."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def count_names(names: Iterable[str]) -> str:
    """Count how often each name occurs, the most frequent first: ``WAIT 81, CULL 1``."""
    return ", ".join(f"{name} {count:,}" for name, count in Counter(names).most_common())


def count_phrases(names: Iterable[str]) -> str:
    """Count how often each phrase occurs: ``2 × PAUSE, ROLLBACK to step-10``."""
    return ", ".join(
        name if count == 1 else f"{count:,} × {name}"
        for name, count in Counter(names).most_common()
    )


def format_time(time_ns: int) -> str:
    """Format a time, nanoseconds since the epoch: UTC to the second."""
    return datetime.fromtimestamp(time_ns // 1_000_000_000, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def format_duration(seconds: float) -> str:
    """Format a duration in the unit that suits it."""
    for unit, name in _SPANS:
        if seconds >= unit:
            return f"{seconds / unit:.1f} {name}"
    return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.2g} s"


def format_bytes(count: float) -> str:
    """Format a number of bytes in the unit that suits it."""
    for unit, name in _SIZES:
        if count >= unit:
            return f"{count / unit:.3g} {name}"
    return f"{count:.0f} bytes"
