"""Detectors of spikes and divergence, side by side on public logs of real training runs.

    make detectors [DETECTORS_ARGS="--data DIRECTORY --json"]

Rules that others published, written anew from their descriptions, and the detector of
`tamiyo_jax.host`. Thresholds of ours were chosen on the runs called *tuned*; the runs called
*held out* are of other workloads. A run is in one of the two as a whole.

How alarms are counted, for all detectors alike:

- an event is *caught* by an alarm in its first row or the three after it;
- a *false row* is a row with an alarm outside of every event, from its first row to three after
  its last; batch noise (``outlier``) and restarts are no events;
- a *false alarm* is the first of such rows after 16 rows without an alarm, and not within three
  rows before an event: what an operator would be called for.
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from training_logs import Run, read_runs

from tamiyo_jax.host import Detector, Signals, detect, new_detector

DATA = Path(__file__).parents[2] / "shared" / "data" / "training_logs"
GRACE = 3
QUIET = 16
TUNED = {
    "algoperf": ("imagenet",),
    "mlperf": ("v4.0_dlrm_dcnv2",),
    "modded_nanogpt": ("2024-06", "2024-10"),
    "step_back": ("cifar10",),
}
BATCH, CHUNK = 64, 1024

Alarms = np.ndarray
Rule = Callable[[Run], Alarms]


def before(numbers: np.ndarray, width: int) -> np.ndarray:
    """f64[R, width]: the numbers before each row; NaN where there are none."""
    padded = np.concatenate([np.full(width, np.nan), numbers])
    return sliding_window_view(padded, width)[: len(numbers)]


def sigmas(numbers: np.ndarray, width: int = 128, limit: float = 6.0) -> Alarms:
    """Above the mean of the last `width` by so many standard deviations, once they are full.

    Anything is above NaN, so that a NaN in the window is an alarm until it has left it.
    """
    past = before(numbers, width)
    alarms = ~(numbers <= past.mean(1) + limit * past.std(1, ddof=1))
    alarms[:width] = False
    return alarms


def skip_step(run: Run) -> Alarms:
    """OLMo-core's `SkipStepOptimizer`: loss or gradient norm above 6 sigma of the last 128."""
    return sigmas(run.loss) | (sigmas(run.gradient) & logs_gradient(run))


def loss_killer(run: Run) -> Alarms:
    """Composer's `KillLossSpike`: five losses in a row of at least twice the mean of the last 100.

    Or more than half of the last 100 above 10.
    """
    window = sliding_window_view(np.concatenate([np.full(99, np.nan), run.loss]), 100)
    high = run.loss >= 2 * window.mean(1)
    alarms = sliding_window_view(np.concatenate([np.zeros(4, bool), high]), 5).all(1)
    alarms |= (window > 10).sum(1) > 50
    alarms[:99] = False
    return alarms


def zclip(run: Run) -> Alarms:
    """ZClip (Kumar et al. 2025) as an alarm: z of the gradient norm above 2.5, EMA of 0.97.

    A norm that it would clip goes into its statistics clipped.
    """
    alarms = np.zeros(len(run.gradient), bool)
    if not logs_gradient(run):
        return alarms
    first = run.gradient[:25][np.isfinite(run.gradient[:25])]
    mean, variance = (first.mean(), first.var()) if len(first) else (0.0, 0.0)
    for row, norm in enumerate(run.gradient[25:], 25):
        z = (norm - mean) / (np.sqrt(variance) + 1e-6)
        alarms[row] = not z <= 2.5
        kept = mean + 2.5 / max(z, 2.5) * 2.5 * np.sqrt(variance) if alarms[row] else norm
        if np.isfinite(kept):
            variance = 0.97 * variance + 0.03 * (kept - mean) ** 2
            mean = 0.97 * mean + 0.03 * kept
    return alarms


def ten_medians(run: Run) -> Alarms:
    """The gradient norm is above 10 times its median of the last 64."""
    alarms = run.gradient > 10 * np.nanmedian(before(run.gradient, 64), 1)
    alarms[:64] = False
    return alarms


def absolute_rise(run: Run) -> Alarms:
    """The loss rose by more than 0.15 since the row before."""
    return np.diff(run.loss, prepend=run.loss[0]) > 0.15


def median_rule(run: Run) -> Alarms:
    """The loss is above its median of the last 64 by 10 MAD and by a fifth."""
    past = before(run.loss, 64)
    middle = np.nanmedian(past, 1)
    spread = np.nanmedian(np.abs(past - middle[:, None]), 1)
    alarms = (run.loss > middle + 10 * spread) & (run.loss > 1.2 * middle)
    alarms[:64] = False
    return alarms


def logs_gradient(run: Run) -> bool:
    """Some runs did not log the gradient norm."""
    return bool(np.isfinite(run.gradient).any())


RULES: Mapping[str, Rule] = {
    "skip-step, 6 sigma of 128": skip_step,
    "the same on the loss alone": lambda run: sigmas(run.loss),
    "KillLossSpike": loss_killer,
    "ZClip as an alarm": zclip,
    "gradient norm > 10 medians": ten_medians,
    "loss > median + 10 MAD, x 1.2": median_rule,
    "absolute rise of 0.15": absolute_rise,
}


@jax.jit
@jax.vmap
def follow(detector: Detector, rows: tuple[jax.Array, jax.Array]) -> tuple[Detector, Signals]:
    """Our detector over a chunk of a run."""

    def step(detector: Detector, row: tuple[jax.Array, jax.Array]) -> tuple[Detector, Signals]:
        loss, gradient = row
        signals, detector = detect(
            detector,
            loss=loss,
            gradient_norm=gradient,
            update_ratio=jnp.float32(0),
            layer_gradient_norms=jnp.zeros(0, jnp.float32),
        )
        return detector, signals

    return jax.lax.scan(step, detector, rows)


def signals_of(runs: Sequence[Run]) -> list[Signals]:
    """Our signals for each run, as NumPy arrays; runs of a length go together."""
    order = sorted(range(len(runs)), key=lambda index: len(runs[index].loss))
    found: dict[int, Signals] = {}
    for start in range(0, len(order), BATCH):
        chosen = order[start : start + BATCH]
        longest = max(len(runs[index].loss) for index in chosen)
        shape = (BATCH, -(-longest // CHUNK) * CHUNK)
        loss, gradient = np.ones(shape, np.float32), np.zeros(shape, np.float32)
        for place, index in enumerate(chosen):
            run = runs[index]
            loss[place, : len(run.loss)] = run.loss
            if logs_gradient(run):
                gradient[place, : len(run.loss)] = run.gradient
        detector = jax.vmap(lambda _: new_detector(0))(jnp.arange(BATCH))
        parts: list[Signals] = []
        for at in range(0, shape[1], CHUNK):
            rows = (loss[:, at : at + CHUNK], gradient[:, at : at + CHUNK])
            detector, part = follow(detector, rows)
            parts.append(jax.device_get(part))
        whole = jax.tree.map(lambda *pieces: np.concatenate(pieces, 1), *parts)
        for place, index in enumerate(chosen):
            size = len(runs[index].loss)
            found[index] = jax.tree.map(lambda array, p=place, n=size: array[p, :n], whole)
    return [found[index] for index in range(len(runs))]


@dataclass
class Count:
    """Sums over runs."""

    healthy_rows: int = 0
    false_rows: int = 0
    false_alarms: int = 0
    on_outliers: int = 0
    events: int = 0
    caught: int = 0

    def add(self, run: Run, alarms: Alarms, kinds: Sequence[str]) -> None:
        """Count one run; of its faults those of `kinds`."""
        healthy = np.ones(len(alarms), bool)
        calling = np.ones(len(alarms), bool)
        noise = np.zeros(len(alarms), bool)
        for event in run.events:
            rows = slice(event.first, event.last + 1 + GRACE)
            if event.is_fault:
                healthy[rows] = False
                calling[max(0, event.first - GRACE) : event.last + 1 + GRACE] = False
            elif event.kind == "outlier":
                noise[event.first : event.last + 1] = True
            if event.is_fault and event.kind in kinds:
                self.events += 1
                self.caught += bool(alarms[event.first : event.first + 1 + GRACE].any())
        rows = np.flatnonzero(alarms)
        first = np.zeros(len(alarms), bool)
        first[rows[np.diff(rows, prepend=-QUIET - 1) > QUIET]] = True
        self.healthy_rows += int(healthy.sum())
        self.false_rows += int((alarms & healthy).sum())
        self.false_alarms += int((first & calling).sum())
        self.on_outliers += int((first & calling & noise).sum())

    def figures(self) -> dict[str, float | int]:
        """Per 100,000 healthy rows, and the share caught."""
        per = 1e5 / max(self.healthy_rows, 1)
        return {
            "false alarms": round(self.false_alarms * per, 1),
            "of them outliers": round(self.on_outliers * per, 1),
            "false rows": round(self.false_rows * per, 1),
            "recall": round(self.caught / max(self.events, 1), 3),
            "events": self.events,
        }


FAULTS = ("instability", "bad_batch", "nonfinite", "divergence_hint")


def is_tuned(run: Run) -> bool:
    """Thresholds were chosen on this run's workload."""
    return run.workload.startswith(TUNED[run.source])


def table(
    runs: Sequence[Run], detectors: Mapping[str, Sequence[Alarms]]
) -> dict[str, dict[str, dict[str, float | int]]]:
    """Figures by group of runs and detector."""
    groups: dict[str, tuple[Callable[[Run], bool], Sequence[str]]] = {
        "all": (lambda run: True, FAULTS),
        "tuned": (is_tuned, FAULTS),
        "held out": (lambda run: not is_tuned(run), FAULTS),
        "held out: wmt": (lambda run: run.workload == "wmt", FAULTS),
        "held out: ogbg": (lambda run: run.workload == "ogbg", FAULTS),
        "held out: gnn": (lambda run: run.workload == "v4.0_gnn", FAULTS),
        "held out: bad batches across runs": (
            lambda run: run.source == "modded_nanogpt" and not is_tuned(run),
            ("bad_batch",),
        ),
    }
    figures: dict[str, dict[str, dict[str, float | int]]] = {}
    for group, (belongs, kinds) in groups.items():
        for name, alarms in detectors.items():
            count = Count()
            for run, rows in zip(runs, alarms, strict=True):
                if belongs(run):
                    count.add(run, rows, kinds)
            figures.setdefault(group, {})[name] = count.figures()
    return figures


def curve(signals: Sequence[Signals]) -> dict[str, list[Alarms]]:
    """Ours, and what other thresholds of loss_z would give."""
    detectors = {"ours": [np.asarray(signal.nonfinite | signal.outlier) for signal in signals]}
    for limit in (7.0, 8.0, 9.5, 10.0, 12.0):
        detectors[f"ours, loss_z > {limit:g} alone"] = [
            np.asarray(
                signal.nonfinite | ((signal.loss_z > limit) & (signal.loss_rise > np.log(1.25)))
            )
            for signal in signals
        ]
    return detectors


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Detectors on public training logs.")
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    if not arguments.data.is_dir():
        print(f"skipped: the training logs are not at {arguments.data}; name them with --data")
        return 0
    runs = read_runs(arguments.data)
    with warnings.catch_warnings():
        # A window without a number has no median, and nothing is above it.
        warnings.simplefilter("ignore", RuntimeWarning)
        detectors = {name: [rule(run) for run in runs] for name, rule in RULES.items()}
    figures = table(runs, {**curve(signals_of(runs)), **detectors})
    if arguments.json:
        print(json.dumps(figures, indent=1))
        return 0
    for group, rows in figures.items():
        print(f"\n{group}")
        for name, row in rows.items():
            print(f"  {name:32}" + "  ".join(f"{key} {value}" for key, value in row.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
