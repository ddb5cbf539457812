"""Healthy runs and faults in five small loops, under `Plug` on guard and under others' protection.

    make guard

Thresholds were chosen on diffusion, on the MLP and on healthy runs of PPO; the other loops are
reports. Figures go to ``--json PATH`` loop by loop, and what is there already stays, of other loops
as of other intervals; all that is there is printed as tables, and drawn with ``--plot PATH``. With
``--parts`` and nothing after it, nothing is measured.

- *caught*: at which step of the fault something was first refused or commanded, counted from 1;
- *loss*: held-out, at the end, over that of the plain run of the same seed without a fault;
- *close*: runs whose loss is at most 2 % above that.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from guard_faults import Figures, faults, healthy_steps, run_rivals
from guard_loops import LOOPS
from guard_plugged import train

Tree = Any
EVERY = (1, 10, 50)
STALL = "stalled loader"
NO_REMEDY = ("none", "slow drift", STALL)
"""Faults that no refusal and no rollback can undo, or that need none."""


def healthy(loop: str, lengths: tuple[int, ...], seeds: int) -> dict[str, Tree]:
    """Whether guarded runs without a fault are the plain ones, bit for bit, by `every`."""
    most = max(lengths)
    found: dict[str, Tree] = {}
    for every, steps in zip(EVERY, lengths, strict=True):
        found[str(every)] = {"steps": steps * seeds, "interventions": 0, "same bits": 0, "said": []}
    for seed in range(100, 100 + seeds):
        fault = faults(most, most)["none"]
        plain = train(loop, fault, seed, every=None, early=min(lengths))
        for every, steps in zip(EVERY, lengths, strict=True):
            run = train(loop, faults(steps, steps)["none"], seed, every=every)
            like = plain.state if steps == most else plain.early
            pairs = zip(jax.tree.leaves(run.state), jax.tree.leaves(like), strict=True)
            row = found[str(every)]
            row["interventions"] += len(run.interventions())
            row["same bits"] += all(a.tobytes() == b.tobytes() for a, b in pairs)
            row["said"] += [f"seed {seed}: {line}" for _, line in run.said]
    return found


def matrix(
    loop: str, steps: int, at: int, seeds: int, chosen: tuple[int, ...] = EVERY
) -> dict[str, Tree]:
    """Figures by fault and protection, `Plug` at the chosen intervals."""
    rivals = run_rivals(loop, steps, at, seeds)
    sound = [one.loss for one in rivals["none"]["plain"]]
    rivals[STALL] = {name: rivals["none"][name] for name in ("plain",)}
    cases = faults(steps, at)
    found: dict[str, Tree] = {}
    for name, others in rivals.items():
        rows = {rival: summarize(runs, sound, at) for rival, runs in others.items()}
        plugged = {f"Plug, every {every}": (every, False) for every in chosen}
        plugged[f"clip(1) and Plug, every {max(chosen)}"] = max(chosen), True
        for protection, (every, clips) in plugged.items():
            late = at if name == STALL else None
            case = cases.get(name, cases["none"])
            runs = [
                train(loop, case, seed, every=every, late_from=late, clips=clips)
                for seed in range(seeds)
            ]
            figures = [Figures(run.interventions(), run.loss) for run in runs]
            rows[protection] = summarize(figures, sound, at)
            if name == STALL:
                reported = [sum("loader_stall" in line for _, line in run.said) for run in runs]
                rows[protection]["reported"] = reported
        found[name] = rows
        print(f"\n{loop}, {name}", flush=True)
        for protection, row in rows.items():
            print(f"  {protection:26} {row}", flush=True)
    return found


def summarize(runs: list[Figures], sound: list[float], at: int) -> dict[str, Tree]:
    """Caught, interventions and loss by seed."""
    since = [[step - at + 1 for step in run.interventions if step >= at] for run in runs]
    ratios = [run.loss / loss for run, loss in zip(runs, sound, strict=True)]
    return {
        "caught": [steps[0] if steps else None for steps in since],
        "interventions": [len(steps) for steps in since],
        "before": sum(len(run.interventions) for run in runs) - sum(map(len, since)),
        "loss": [round(ratio, 4) if np.isfinite(ratio) else None for ratio in ratios],
        "close": sum(bool(ratio <= 1.02) for ratio in ratios),
    }


def table(figures: dict[str, Tree]) -> str:
    """The matrix over all loops as a table of Markdown: runs that are close, caught within 3."""
    by_fault = {
        fault: [one["faults"][fault] for one in figures.values()]
        for fault in next(iter(figures.values()))["faults"]
    }
    remediable = [rows for fault, rows in by_fault.items() if fault not in NO_REMEDY]
    by_fault["all that have a remedy"] = [row for rows in remediable for row in rows]

    def cell(rows: list[Tree]) -> str:
        runs = sum(len(row["loss"]) for row in rows)
        return f"{sum(row['close'] for row in rows)}, {sum(map(soon, rows))} of {runs}"

    return _markdown("fault: close, caught", by_fault, cell)


def loop_table(loop: str, faults_of: Tree) -> str:
    """The matrix of a loop as a table of Markdown: median loss, runs caught within 3 steps."""

    def cell(rows: list[Tree]) -> str:
        losses = [np.inf if loss is None else loss for row in rows for loss in row["loss"]]
        return f"{np.median(losses):.3f}, {sum(map(soon, rows))}"

    return _markdown(loop, {fault: [rows] for fault, rows in faults_of.items()}, cell)


def _markdown(
    title: str, by_fault: dict[str, list[Tree]], cell: Callable[[list[Tree]], str]
) -> str:
    """A row of cells for each fault; a cell is made of a protection's rows, if there are any."""
    every = [one for rows in by_fault.values() for one in rows]
    protections = list(dict.fromkeys(name for one in every for name in one))
    lines = [f"| {title} | {' | '.join(protections)} |", f"|---|{'---|' * len(protections)}"]
    for fault, rows in by_fault.items():
        kept = {name: [one[name] for one in rows if name in one] for name in protections}
        cells = [cell(one) if one else "–" for one in kept.values()]
        lines.append(f"| {fault} | {' | '.join(cells)} |")
    return "\n".join(lines)


def soon(row: Tree) -> int:
    """Runs that were caught within three steps."""
    return sum(one is not None and one <= 3 for one in row["caught"])


def beside_clipping(figures: dict[str, Tree], every: int) -> str:
    """Of the runs that clip and have `Plug`, those close to the healthy run that clips, too."""
    name = f"clip(1) and Plug, every {every}"
    close, runs = 0, 0
    for one in figures.values():
        healthy_losses = one["faults"]["none"][name]["loss"]
        for fault, rows in one["faults"].items():
            if fault not in NO_REMEDY:
                losses = zip(rows[name]["loss"], healthy_losses, strict=True)
                close += sum(loss is not None and loss <= 1.02 * base for loss, base in losses)
                runs += len(healthy_losses)
    return f"{name}: {close} of {runs} are close to a healthy run that clips, too"


def plot(path: Path, figures: dict[str, Tree]) -> None:
    """Draw the loss of each run under each fault."""
    from matplotlib.figure import Figure

    kinds = [name for name in next(iter(figures.values()))["faults"] if name != STALL]
    rivals = ("plain", "apply_if_finite, clip(1)", "skip-step")
    plugged = *(f"Plug, every {every}" for every in EVERY), f"clip(1) and Plug, every {max(EVERY)}"
    shown = (*rivals, *plugged)
    figure = Figure(figsize=(9, 4.5), layout="constrained")
    axes = figure.add_subplot()
    for index, protection in enumerate(shown):
        places, losses = [], []
        for place, kind in enumerate(kinds):
            for one in figures.values():
                for loss in one["faults"][kind].get(protection, {"loss": []})["loss"]:
                    places.append(place + 0.12 * (index - 3))
                    losses.append(20.0 if loss is None else min(max(loss, 0.5), 20.0))
        if places:
            axes.plot(places, losses, ".", markersize=4, alpha=0.7, label=protection)
    axes.axhline(1, color="grey", linewidth=0.8)
    axes.set(yscale="log", ylabel="loss over the healthy loss\n(NaN and above 20 at 20)")
    axes.set_xticks(range(len(kinds)), kinds, rotation=25, ha="right")
    axes.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=110)


def main() -> None:
    """Measure, print and keep."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--healthy", type=int, nargs=len(EVERY), default=(1000, 3000, 3000))
    parser.add_argument("--alone", type=int, default=8000, help="steps of healthy runs, no Plug")
    parser.add_argument("--loops", nargs="*", default=list(LOOPS))
    parser.add_argument("--parts", nargs="*", default=["alone", "healthy", "faults"])
    parser.add_argument("--every", nargs="*", type=int, default=EVERY, help="in the faults' part")
    parser.add_argument("--json", metavar="PATH", type=Path, required=True)
    parser.add_argument("--plot", metavar="PATH", type=Path)
    arguments = parser.parse_args()
    figures: dict[str, Tree] = {}
    if arguments.json.exists():
        figures = json.loads(arguments.json.read_text(encoding="utf-8"))
    for loop in arguments.loops:
        own = figures.setdefault(loop, {})
        if "alone" in arguments.parts:
            own["alone"] = healthy_steps(loop, arguments.alone, arguments.seeds)
            print(f"{loop}, healthy, in the step: {own['alone']}", flush=True)
        if "healthy" in arguments.parts:
            own["healthy"] = healthy(loop, tuple(arguments.healthy), arguments.seeds)
            print(f"{loop}, healthy: {own['healthy']}", flush=True)
        if "faults" in arguments.parts:
            found = matrix(
                loop, arguments.steps, arguments.steps // 2, arguments.seeds, tuple(arguments.every)
            )
            kept = own.get("faults", {})
            own["faults"] = {name: kept.get(name, {}) | rows for name, rows in found.items()}
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    measured = {loop: one for loop, one in figures.items() if "faults" in one}
    if measured:
        for loop, one in measured.items():
            print(f"\n{loop_table(loop, one['faults'])}")
        print(f"\n{table(measured)}\n\n{beside_clipping(measured, max(arguments.every))}")
        if arguments.plot is not None:
            plot(arguments.plot, measured)


if __name__ == "__main__":
    main()
