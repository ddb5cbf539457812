"""The plot that `forward_peer.py` writes."""

from __future__ import annotations

from forward_tables import Row
from matplotlib.figure import Figure

__all__ = ["plot"]

BARS = {"compiled": "PyTorch Geometric, compiled", "eager": "PyTorch Geometric", "ours": "ours"}


def plot(result: Row, path: str) -> None:
    """Forward passes beside the peer's, and what growing costs; logarithmic, medians."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    bars, line = figure.subplots(1, 2)
    rows = result["forward"]
    height = 1.0 / (len(BARS) + 1)
    for place, (name, label) in enumerate(BARS.items()):
        found = [(i, row["timings"][name]) for i, row in enumerate(rows) if name in row["timings"]]
        bars.barh(
            [i + place * height for i, _ in found],
            [timing["median"] for _, timing in found],
            height,
            label=label,
        )
    bars.set_yticks(
        [i + height for i in range(len(rows))], [f"{row['size']}, {row['width']}" for row in rows]
    )
    bars.set(xscale="log", xlabel="ms", title="one forward pass")
    grown = result["growth"]
    line.loglog([row["nodes"] + row["edges"] for row in grown], [row["ms"] for row in grown], "o-")
    line.set(xlabel="nodes and edges", ylabel="ms", title="growth, reference width")
    if rows:
        bars.legend()
    figure.savefig(path, dpi=120)
