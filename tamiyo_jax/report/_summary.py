"""What a run did, in sentences."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tamiyo_jax.contracts import SeedStage
from tamiyo_jax.report._words import counted, moment, number, plural, span

if TYPE_CHECKING:
    from tamiyo_jax.report._run import Run

__all__ = ["Stage", "parameters_of", "sentences", "stages_of", "state_of"]

_PARAMETERS = "metrics/live_parameters"


@dataclass(frozen=True, slots=True)
class Stage:
    """A seed in a stage, from row `first` to row `last`, both included."""

    seed_id: str
    stage: SeedStage
    first: int
    last: int


def state_of(run: Run) -> str:
    """``running``, ``stopped`` where its journal failed, ``ended``, or ``empty``."""
    if run.stopped:
        return "stopped"
    if run.holder is not None:
        return "running"
    return "ended" if len(run) else "empty"


def sentences(run: Run) -> tuple[str, ...]:
    """What happened, from the whole to the parts."""
    if not len(run):
        return ("No decision is on record yet.",)
    return (
        _extent(run),
        *_losses(run),
        *_size(run),
        _actions(run),
        *_seeds(run),
        *(one.text for one in run.happenings),
    )


def parameters_of(run: Run) -> np.ndarray | None:
    """f64 [rows]: live parameters; None where the packets do not say."""
    return run.frame.get(_PARAMETERS)


def stages_of(run: Run) -> tuple[Stage, ...]:
    """Stages of all seeds, by seed and in order; a row without the seed ends a stage."""
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
        f"{plural(len(run), 'decision')} from {moment(first)} to {moment(last)} "
        f"({span((last - first) / 1e9)}), up to step {frame['step'][-1]:,}, "
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
            f"{words} {number(first)} at first, {number(last)} at last, "
            f"{extreme} {number(values[at])} at step {run.frame['step'][at]:,}."
        )


def _size(run: Run) -> Iterator[str]:
    parameters = parameters_of(run)
    if parameters is None:
        return
    known = [float(one) for one in parameters[~np.isnan(parameters)]]
    if known[0] == known[-1]:
        yield f"The network has {number(known[0])} live parameters."
    else:
        yield f"Live parameters went from {number(known[0])} to {number(known[-1])}."


def _actions(run: Run) -> str:
    acted, failed = run.frame["action"][run.acted], int(run.failed.sum())
    failures = f" {plural(failed, 'step')} failed." if failed else ""
    if not len(acted):
        return f"Tamiyo never had to act.{failures}"
    would = "would have acted" if set(run.frame["mode"][run.acted]) == {"shadow"} else "acted"
    times = "once" if len(acted) == 1 else f"{len(acted):,} times"
    reasons = counted(run.frame["reason"][run.acted])
    return f"Tamiyo {would} {times}: {counted(acted)}; reasons: {reasons}.{failures}"


def _seeds(run: Run) -> Iterator[str]:
    """Seeds that grew, and what became of them; a seed that never left DORMANT is not named."""
    stages = stages_of(run)
    for seed_id in run.seed_ids:
        own = [one for one in stages if one.seed_id == seed_id]
        changes = [
            f"{one.stage.name} from step {run.frame['step'][one.first]:,}"
            for one in own
            if not (one is own[0] and one.stage is SeedStage.DORMANT)
        ]
        if not changes:
            continue
        if len(changes) > 8:
            changes = [*changes[:3], f"{len(changes) - 6} more changes", *changes[-3:]]
        contribution = run.frame.get(f"seeds/{seed_id}/contribution")
        known = [] if contribution is None else contribution[~np.isnan(contribution)]
        end = f"; contribution {number(known[-1])} at last" if len(known) else ""
        yield f"Seed {seed_id}: {', '.join(changes)}{end}."
