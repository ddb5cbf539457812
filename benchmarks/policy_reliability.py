"""Whether the value and the risk that the shipped policy states can be believed.

    .venv/bin/python benchmarks/policy_reliability.py --plot docs/reliability.png

The policy decides in runs of held-out families of one architecture. Prints, in bins of what it
stated, what came; see `tamiyo_jax.learn.Reliability`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from tamiyo_jax.inference import shipped_params
from tamiyo_jax.learn import HELD_OUT, Bin, Reliability, measure_reliability

FIRST = 200_000


def draw(found: Reliability, path: Path) -> None:
    """Draw what came over what was stated."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(8, 3.6), layout="constrained")
    titles = ("value: fall of the log of the loss", "risk: the loss rises by over 2 %")
    for axis, title, bins in zip(axes, titles, (found.value, found.risk), strict=True):
        stated, came = [one.stated for one in bins], [one.came for one in bins]
        ends = [min(stated + came), max(stated + came)]
        axis.plot(ends, ends, color="0.7", linewidth=1)
        axis.plot(stated, came, marker="o")
        axis.set(title=title, xlabel="stated", ylabel="came")
    figure.savefig(path, dpi=120)


def print_bins(name: str, bins: tuple[Bin, ...]) -> None:
    """Print a row for each bin."""
    for one in bins:
        print(f"{name}  stated {one.stated:+.3f}  came {one.came:+.3f}  of {one.decisions}")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--families", nargs="+", default=["rings", "board", "parity"])
    parser.add_argument("--tasks", type=int, default=20)
    parser.add_argument("--plot", type=Path)
    arguments = parser.parse_args()
    families = [HELD_OUT[name] for name in arguments.families]
    found = measure_reliability(shipped_params(), families, tasks=arguments.tasks, first=FIRST)
    print_bins("value", found.value)
    print_bins("risk ", found.risk)
    print(f"correlation of the value with what came {found.value_correlation:.2f}")
    print(f"expected calibration error of the risk {found.risk_error:.3f}")
    if arguments.plot:
        draw(found, arguments.plot)


if __name__ == "__main__":
    main()
