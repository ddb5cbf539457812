"""What a run did, in sentences."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tamiyo_jax.contracts import SeedStage
from tamiyo_jax.report._words import (
    count_names,
    format_count,
    format_duration,
    format_number,
    format_time,
)

if TYPE_CHECKING:
    from tamiyo_jax.report._run import Run

__all__ = ["Stage", "classify_state", "describe_run", "list_stages", "read_parameters"]

_PARAMETERS = "metrics/live_parameters"


@dataclass(frozen=True, slots=True)
class Stage:
    """A seed in a stage, from row `first` to row `last`, both included."""

    seed_id: str
    stage: SeedStage
    first: int
    last: int


def classify_state(run: Run) -> str:
    """``running``, ``stopped`` where its journal failed, ``ended``, or ``empty``."""
    if run.stopped:
        return "stopped"
    if run.holder is not None:
        return "running"
    return "ended" if len(run) else "empty"


def describe_run(run: Run) -> tuple[str, ...]:
    """Describe what happened, from the whole to the parts."""
    if not len(run):
        return ("No decision is on record yet.",)
    return (
        _extent(run),
        *_losses(run),
        *_size(run),
        _actions(run),
        *_seeds(run),
        *(event.text for event in run.events),
    )


def read_parameters(run: Run) -> np.ndarray | None:
    """Return the live parameters, f64 [rows]; None where the packets do not say."""
    return run.frame.get(_PARAMETERS)


def list_stages(run: Run) -> tuple[Stage, ...]:
    """List the stages of all seeds, by seed and in order; a row without the seed ends a stage."""
    found: list[Stage] = []
    with_packet = np.flatnonzero(run.frame["has_packet"])
    for seed_id in run.seed_ids:
        stages = run.frame[f"seeds/{seed_id}/stage"][with_packet]
        starts = np.flatnonzero(np.diff(stages, prepend=-1))
        ends = np.append(starts[1:], len(stages)) - 1
        found += [
            Stage(seed_id, SeedStage(int(stages[a])), int(with_packet[a]), int(with_packet[b]))
            for a, b in zip(starts, ends, strict=True)
            if stages[a] != SeedStage.UNKNOWN
        ]
    return tuple(found)


def _extent(run: Run) -> str:
    frame = run.frame
    first, last = int(frame["time_ns"][0]), int(frame["time_ns"][-1])
    modes = " then ".join(dict.fromkeys(frame["mode"]))
    return (
        f"{format_count(len(run), 'decision')} from {format_time(first)} to {format_time(last)} "
        f"({format_duration((last - first) / 1e9)}), up to step {frame['step'][-1]:,}, "
        f"epoch {frame['epoch'][-1]:,}; mode {modes}, policy {frame['policy'][-1] or 'unknown'}."
    )


def _losses(run: Run) -> Iterator[str]:
    for name, words, best in (
        ("validation_loss", "Validation loss", np.nanargmin),
        ("training_loss", "Training loss", np.nanargmin),
        ("validation_accuracy", "Validation accuracy", np.nanargmax),
    ):
        values = np.where(np.isfinite(run.frame[name]), run.frame[name], np.nan)
        known = np.flatnonzero(~np.isnan(values))
        if not len(known):
            continue
        at, first, last = int(best(values)), float(values[known[0]]), float(values[known[-1]])
        extreme = "highest" if best is np.nanargmax else "lowest"
        yield (
            f"{words} {format_number(first)} at first, {format_number(last)} at last, "
            f"{extreme} {format_number(values[at])} at step {run.frame['step'][at]:,}."
        )


def _size(run: Run) -> Iterator[str]:
    parameters = read_parameters(run)
    if parameters is None:
        return
    known = [float(count) for count in parameters[~np.isnan(parameters)]]
    if known[0] == known[-1]:
        yield f"The network has {format_number(known[0])} live parameters."
    else:
        yield f"Live parameters went from {format_number(known[0])} to {format_number(known[-1])}."


def _actions(run: Run) -> str:
    acted, failed = run.frame["action"][run.acted], int(run.failed.sum())
    failures = f" {format_count(failed, 'step')} failed." if failed else ""
    if not len(acted):
        return f"Tamiyo never had to act.{failures}"
    would = "would have acted" if set(run.frame["mode"][run.acted]) == {"shadow"} else "acted"
    times = "once" if len(acted) == 1 else f"{len(acted):,} times"
    reasons = count_names(run.frame["reason"][run.acted])
    return f"Tamiyo {would} {times}: {count_names(acted)}; reasons: {reasons}.{failures}"


def _seeds(run: Run) -> Iterator[str]:
    """Seeds that grew, and what became of them; a seed that never left DORMANT is not named."""
    stages = list_stages(run)
    for seed_id in run.seed_ids:
        own = [stay for stay in stages if stay.seed_id == seed_id]
        changes = [
            f"{stay.stage.name} from step {run.frame['step'][stay.first]:,}"
            for stay in own
            if not (stay is own[0] and stay.stage is SeedStage.DORMANT)
        ]
        if not changes:
            continue
        if len(changes) > 8:
            changes = [*changes[:3], f"{len(changes) - 6} more changes", *changes[-3:]]
        contribution = run.frame.get(f"seeds/{seed_id}/contribution")
        known = [] if contribution is None else contribution[~np.isnan(contribution)]
        end = f"; contribution {format_number(known[-1])} at last" if len(known) else ""
        yield f"Seed {seed_id}: {', '.join(changes)}{end}."
