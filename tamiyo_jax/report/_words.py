"""Numbers, times and spans as people read them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from datetime import UTC, datetime

__all__ = ["counted", "moment", "number", "plural", "size", "span", "times"]

_SPANS = ((86_400.0, "d"), (3_600.0, "h"), (60.0, "min"))
_SIZES = ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"))


def number(value: float) -> str:
    """Four significant digits; whole numbers with thousands separated."""
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else ("infinite" if value > 0 else "-infinite")
    if value == int(value) and abs(value) < 1e15:
        return f"{int(value):,}"
    return f"{value:.4g}"


def plural(count: int, noun: str) -> str:
    """``1 step``, ``2 steps``."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def counted(names: Iterable[str]) -> str:
    """How often each name occurs, the most frequent first: ``WAIT 81, CULL 1``."""
    return ", ".join(f"{name} {count:,}" for name, count in Counter(names).most_common())


def times(names: Iterable[str]) -> str:
    """The same for phrases: ``2 × PAUSE, ROLLBACK to step-10``."""
    return ", ".join(
        name if count == 1 else f"{count:,} × {name}"
        for name, count in Counter(names).most_common()
    )


def moment(time_ns: int) -> str:
    """UTC to the second."""
    return datetime.fromtimestamp(time_ns // 1_000_000_000, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def span(seconds: float) -> str:
    """A duration in the unit that suits it."""
    for unit, name in _SPANS:
        if seconds >= unit:
            return f"{seconds / unit:.1f} {name}"
    return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.2g} s"


def size(count: float) -> str:
    """Bytes in the unit that suits them."""
    for unit, name in _SIZES:
        if count >= unit:
            return f"{count / unit:.3g} {name}"
    return f"{count:.0f} bytes"
