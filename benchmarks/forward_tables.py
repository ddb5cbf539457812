"""The tables that `forward_peer.py` prints."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

__all__ = ["Row", "show"]

Row = dict[str, Any]
"""Fields of one measurement, by name."""

TIMED = ("ours", "decide", "eager", "compiled")
NAMES = {"width": "width", "size": "size"}
FORWARD = NAMES | {
    "nodes": "nodes",
    "edges": "edges",
    "ours_ms": "ours",
    "decide_ms": "decide",
    "eager_ms": "eager",
    "compiled_ms": "compiled",
    "eager_ratio": "eager / ours",
    "compiled_ratio": "compiled / ours",
    "difference": "difference",
}
LIMIT = NAMES | {
    "ours_ms": "ours",
    "weights_limit_ms": "to read the weights",
    "operations_limit_ms": "to do the operations",
    "nearer_limit": "nearer",
    "times_the_limit": "ours / nearer",
    "mflops": "MFLOP",
    "matmul_gflop_s": "GFLOP/s",
    "memory_gb_s": "GB/s of memory",
}
COST = NAMES | {
    "our_weights_mb": "our weights, MB",
    "their_weights_mb": "theirs",
    "our_memory_mb": "our working memory, MB",
    "their_memory_mb": "theirs, eager",
    "our_compile_s": "our compilation, s",
    "their_compile_s": "theirs",
}
BATCH = {
    "batch": "batch",
    "ours_per_s": "ours",
    "batched_per_s": "eager, batched",
    "collated_per_s": "eager, batching too",
    "one_by_one_per_s": "eager, one by one",
    "batched_ratio": "ours / batched",
    "collated_ratio": "ours / batching too",
    "one_by_one_ratio": "ours / one by one",
}
GROWN = {
    "nodes": "nodes",
    "edges": "edges",
    "ms": "ms",
    "us_per_node_and_edge": "µs per node and edge",
    "memory_mb": "working memory, MB",
}


def _table(title: str, rows: Sequence[Row], columns: dict[str, str]) -> Table:
    """A table of some of the fields of the rows, under their headings."""
    shown = Table(*columns.values(), title=title)
    for row in rows:
        shown.add_row(*(_cell(row.get(name)) for name in columns))
    return shown


def _cell(value: object) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.2e}" if abs(value) < 1e-3 else f"{value:,.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def show(result: Row) -> None:
    """Print the tables."""
    console = Console(width=150)
    forward_rows = [
        row | {f"{name}_ms": row["timings"].get(name, {}).get("median") for name in TIMED}
        for row in result["forward"]
    ]
    for title, rows, columns in (
        ("milliseconds of a forward pass, medians", forward_rows, FORWARD),
        ("the limit", forward_rows, LIMIT),
        ("weights, memory and compilation", forward_rows, COST),
        ("decisions per second, toy, reference", result["batches"], BATCH),
        ("growth, reference", result["growth"], GROWN),
    ):
        if rows:
            console.print(_table(title, rows, columns))
    for name, fact in result["facts"].items():
        console.print(f"{name}: {fact}", highlight=False)
