"""Troubles in real training runs, with Tamiyo on guard and without.

    make guard

One network on the digits, one configuration; ``--plot PATH`` draws the run with the NaN,
``--json`` prints the figures for programs. Exit status 1 if a trouble was not caught.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import tempfile
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from guard_runs import NAN, NOTHING, TROUBLES, Run, Trouble, small_disk, train


def guard_run(trouble: Trouble, steps: int, at: int) -> Run | None:
    """The run with Tamiyo on guard; None where the trouble cannot be made here."""
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        refusals: list[str] = []
        if trouble.fills_disk:
            stack.enter_context(small_disk(Path(name), refusals.append))
        if refusals:
            print(f"{trouble.name}: skipped, {refusals[0]}", file=sys.stderr)
            return None
        return train(trouble, Path(name), steps=steps, at=at, isolation="process")


def row_of(trouble: Trouble, alone: Run, guard: Run, at: int) -> dict[str, object]:
    """The figures of a trouble."""
    alarms = [answer for answer in guard.answers if answer.action != "WAIT"]
    since = [answer for answer in alarms if answer.step >= at]
    counted = Counter(
        f"{one.action} ({one.reason})" if "Error" not in one.action else one.action for one in since
    )
    return {
        "trouble": trouble.name,
        "caught after steps": since[0].step - at + 1 if since else None,
        "decisions": dict(counted),
        "false alarms before": len(alarms) - len(since),
        "accuracy without": round(alone.accuracy, 3),
        "accuracy with": round(guard.accuracy, 3),
        "learning rate scale": round(guard.scale, 3),
    }


def plot(path: str, alone: Run, guard: Run, at: int) -> None:
    """Draw the validation loss with and without Tamiyo."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3.2), layout="constrained")
    axes = figure.add_subplot()
    for run, label, style in ((guard, "Tamiyo on guard", "-"), (alone, "without", "--")):
        axes.plot(list(run.losses), list(run.losses.values()), style, label=label)
    axes.axvline(at, color="grey", linewidth=0.8)
    axes.annotate("a batch of NaN; ROLLBACK", (at, 0.95), (4, 0), "data", "offset points")
    axes.set(xlabel="step", ylabel="validation loss", ylim=(0, 1.2))
    axes.legend(frameon=False)
    figure.savefig(path, dpi=110)


def main() -> int:
    """Run every trouble and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--at", type=int, default=200, help="step at which trouble begins")
    parser.add_argument("--plot", metavar="PATH")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    rows: list[dict[str, object]] = []
    for trouble in TROUBLES:
        guard = guard_run(trouble, arguments.steps, arguments.at)
        if guard is None:
            continue
        alone = train(trouble, None, steps=arguments.steps, at=arguments.at)
        rows.append(row_of(trouble, alone, guard, arguments.at))
        if trouble is NAN and arguments.plot:
            plot(arguments.plot, alone, guard, arguments.at)
        if not arguments.json:
            for name, value in rows[-1].items():
                print(f"{name:24}{value}")
            print(flush=True)
    if arguments.json:
        print(json.dumps(rows, indent=1))
    missed = [
        row for row in rows if row["trouble"] != NOTHING.name and row["caught after steps"] is None
    ]
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
