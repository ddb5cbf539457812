"""What of a run needs a person: what happened, why, and what to do about it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING

import numpy as np

from tamiyo_jax.contracts import CircuitBreakerState
from tamiyo_jax.report._signals import read_limits
from tamiyo_jax.report._words import (
    count_names,
    count_phrases,
    format_bytes,
    format_count,
    format_duration,
    format_number,
    format_time,
)

if TYPE_CHECKING:
    from tamiyo_jax.report._run import Run

__all__ = ["Finding", "Urgency", "list_findings"]

_LOW_DISK_BYTES = 64 * 2**20  # sixteen segments
_SILENT_S, _SILENT_STEPS = 60.0, 10.0
_WORSE = 1.1
_GO_ON = (
    "The training itself is unharmed: let it finish without Tamiyo, or remove the cause and start "
    "it again. A controller opened on the same directory goes on from its journal, and nothing "
    "that was acknowledged is lost."
)


class Urgency(IntEnum):
    """How soon a person must look."""

    NOTE = 0
    WARNING = 1
    CRITICAL = 2


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that a person should know.

    Attributes:
      urgency: how soon.
      what: happened, a sentence or more.
      why: as far as the journal knows; may be empty.
      do: what to do about it.
    """

    urgency: Urgency
    what: str
    why: str
    do: str


def list_findings(run: Run) -> tuple[Finding, ...]:
    """List what needs attention, the most urgent first."""
    found = [finding for search in _SEARCHES for finding in search(run)]
    return tuple(sorted(found, key=lambda finding: -finding.urgency))


def _find_stop(run: Run) -> Iterable[Finding]:
    if run.stopped:
        since = f" after step {run.frame['step'][-1]:,}" if len(run) else ""
        yield Finding(
            Urgency.CRITICAL,
            f"The journal takes no more records{since}; training that goes on does so without "
            "Tamiyo.",
            run.stopped,
            _GO_ON,
        )
    elif run.free_bytes < _LOW_DISK_BYTES:
        yield Finding(
            Urgency.CRITICAL if run.holder is not None else Urgency.WARNING,
            f"The disk that holds the journal is full: {format_bytes(run.free_bytes)} are free.",
            "A journal that cannot write seals itself, and training goes on without Tamiyo. The "
            f"last record is of {format_time(int(run.frame['time_ns'][-1]))}."
            if len(run)
            else "A journal that cannot write seals itself.",
            f"Free space on the disk of {run.directory}. {_GO_ON}",
        )


def _find_damage(run: Run) -> Iterable[Finding]:
    if run.corrupt:
        rest = f", and {len(run.corrupt) - 3} more" if len(run.corrupt) > 3 else ""
        yield Finding(
            Urgency.CRITICAL,
            f"The journal is corrupt in {format_count(len(run.corrupt), 'place')}.",
            "; ".join(run.corrupt[:3]) + rest + ".",
            "Look at the disk's health. All other records are intact and shown here. Opening the "
            "run moves the bad bytes to quarantine and goes on; "
            f"tamiyo-jax journal verify {run.directory} names every place.",
        )
    if run.torn and not run.stopped:
        yield Finding(
            Urgency.NOTE,
            "The run ended without closing its journal: it was killed, or the machine went down.",
            "; ".join(run.torn[:3]) + ".",
            "A controller opened on the same directory goes on from its journal, and nothing that "
            "was acknowledged is lost.",
        )


def _find_nonfinite(run: Run) -> Iterable[Finding]:
    frame = run.frame
    rows = np.flatnonzero(frame["nonfinite"] != "")
    if not len(rows):
        return
    first, last = int(rows[0]), int(rows[-1])
    steps = frame["step"]
    broken = f"{_name(frame['nonfinite'][first])} was NaN or infinite"
    where = (
        f"at step {steps[first]:,}"
        if len(rows) == 1
        else f"at {format_count(len(rows), 'decision')} between steps {steps[first]:,} and "
        f"{steps[last]:,}"
    )
    answers = [c for c, a in zip(frame["command"][rows], frame["action"][rows], strict=True) if a]
    answered = (
        f" Tamiyo answered: {count_phrases(answer or 'WAIT' for answer in answers)}."
        if answers
        else ""
    )
    finite_again = last < len(run) - 1
    since = (
        f" All losses have been finite again since step {steps[last + 1]:,}."
        if finite_again
        else " They still were not finite at the last decision."
    )
    before = int(steps[first - 1]) if first else 0
    yield Finding(
        Urgency.WARNING if finite_again else Urgency.CRITICAL,
        f"The {broken} {where}.{answered}{since}",
        f"Something in steps {before + 1:,} to {steps[first]:,} broke it. "
        f"{_describe_gradients(run, first)}",
        f"Look at the batches of steps {before + 1:,} to {steps[first]:,} (empty, not finite, a "
        "division or logarithm of zero) and at the learning rate then."
        + ("" if finite_again else _describe_way_back(run)),
    )


def _describe_way_back(run: Run) -> str:
    names = run.frame["restorable"][run.frame["restorable"] != ""]
    if not len(names):
        return " There is no checkpoint to go back to: stop the run and start it afresh."
    return f" Stop the run and go back to checkpoint {names[-1]}."


def _describe_gradients(run: Run, row: int) -> str:
    """What the gradient norm did before a row."""
    norms = run.frame.get("metrics/gradient_norm")
    past = np.array([]) if norms is None else norms[max(row - 50, 0) : row]
    past = past[np.isfinite(past)]
    if len(past) < 2:
        return "The gradient norms before it are not known."
    ratio = past[-1] / max(float(np.median(past)), 1e-30)
    grew = f", {format_number(ratio)} times its median" if ratio > 2 else ", no more than usual"
    hint = "the training diverged" if ratio > 10 else "it came at once"
    return f"The gradient norm at the decision before was {format_number(past[-1])}{grew}: {hint}."


def _find_failures(run: Run) -> Iterable[Finding]:
    rows = np.flatnonzero(run.failed)
    if not len(rows):
        return
    kinds = [str(note).partition(":")[0] for note in run.frame["reason"][rows]]
    at_end = int(rows[-1]) == len(run) - 1
    in_a_row = int(np.argmin(run.failed[::-1])) if at_end and not run.failed.all() else len(rows)
    still = f" The last {in_a_row:,} of them were the newest steps." if at_end else ""
    yield Finding(
        Urgency.CRITICAL if at_end else Urgency.WARNING,
        f"{format_count(len(rows), 'step')} failed: {count_names(kinds)}; training went on without "
        f"Tamiyo there.{still}",
        f"The last, at step {run.frame['step'][rows[-1]]:,}: {run.frame['reason'][rows[-1]]}",
        "The message says what to change; the section Decisions lists every failure.",
    )


def _find_restrictions(run: Run) -> Iterable[Finding]:
    if not len(run):
        return
    frame = run.frame
    if reason := frame["conservative"][-1]:
        on = frame["conservative"] != ""
        first = len(run) if on.all() else int(np.argmin(on[::-1]))
        yield Finding(
            Urgency.WARNING,
            f"Conservative mode is on, for {format_count(first, 'decision')} now: Tamiyo pauses "
            "and grows nothing.",
            f"It was entered because of {reason}.",
            "It ends by itself after calm steps; an operator who set it by hand ends it by hand.",
        )
    for name, stage in (("inference", "the policy"), ("metadata", "blueprints")):
        if frame[f"{name}_breaker"][-1] == CircuitBreakerState.OPEN:
            yield Finding(
                Urgency.CRITICAL,
                f"The circuit breaker of {stage} is open: no decision is made.",
                "Its calls failed or were late several times in a row.",
                "See the failures below; it tries again by itself after its cooldown.",
            )
    pauses, budget = int(frame["pauses"].max()), read_limits(run).pause_budget
    if pauses > budget:
        yield Finding(
            Urgency.CRITICAL,
            f"Tamiyo paused {pauses:,} times within a window, beyond its budget of {budget:,}.",
            f"Reasons: {count_names(frame['reason'][frame['action'] == 'PAUSE'])}.",
            "Pausing does not cure it: find the cause, or change the threshold of that rule.",
        )


def _find_silence(run: Run) -> Iterable[Finding]:
    if len(run) < 3:
        return
    seconds = np.diff(run.frame["time_ns"]) / 1e9
    usual = float(np.median(seconds))
    limit = max(_SILENT_S, _SILENT_STEPS * usual)
    silent = (run.read_ns - int(run.frame["time_ns"][-1])) / 1e9
    if run.holder is not None and silent > limit:
        yield Finding(
            Urgency.CRITICAL,
            f"No decision for {format_duration(silent)}, while process {run.holder} holds the run; "
            f"the usual interval is {format_duration(usual)}.",
            "The training hangs, is busy with something else, or goes on without calling Tamiyo.",
            f"Look at process {run.holder}: its output, its stack (py-spy dump), its devices.",
        )
    longest = int(np.argmax(seconds))
    if seconds[longest] > limit:
        start, end = run.frame["time_ns"][longest : longest + 2]
        yield Finding(
            Urgency.NOTE,
            f"No decision between {format_time(int(start))} and {format_time(int(end))} "
            f"({format_duration(float(seconds[longest]))}).",
            "The run was stopped or hung then, or its journal could not be written.",
            "Compare with the log of the training process at that time.",
        )


def _find_unpublished(run: Run) -> Iterable[Finding]:
    if run.dropped:
        yield Finding(
            Urgency.WARNING,
            f"{format_count(run.dropped, 'report')} never reached the bus.",
            "The bus was away for longer than the retries lasted.",
            f"Send them again: tamiyo-jax journal republish {run.directory} --bus URL.",
        )


def _find_rising_losses(run: Run) -> Iterable[Finding]:
    losses = run.frame["validation_loss"]
    finite = losses[np.isfinite(losses)]
    if not len(run):
        return
    if not len(finite):
        yield Finding(
            Urgency.NOTE,
            "No packet brings a validation loss.",
            "The loop measures none, or does not send it.",
            "Send it (Plug.open: validate=…): without it no rule sees a loss that rises but "
            "stays finite.",
        )
        return
    best, last = float(finite.min()), float(finite[-1])
    if best > 0 and last > _WORSE * best:
        at = int(
            run.frame["step"][int(np.nanargmin(np.where(np.isfinite(losses), losses, np.nan)))]
        )
        yield Finding(
            Urgency.WARNING,
            f"The validation loss is {format_number(last)}, {100 * (last / best - 1):.0f} % above "
            f"its best, {format_number(best)} at step {at:,}.",
            "",
            f"Compare with the training loss: if that falls, the network overfits; take a "
            f"checkpoint from near step {at:,}, or stop earlier.",
        )


def _find_unapplied(run: Run) -> Iterable[Finding]:
    shadowed = int((run.acted & (run.frame["mode"] == "shadow")).sum())
    if shadowed:
        yield Finding(
            Urgency.NOTE,
            f"{format_count(shadowed, 'command')} in shadow mode: logged, not applied.",
            "",
            "If they make sense, go on in mode guard or act.",
        )
    for event in run.events:
        if event.kind == "unreadable":
            yield Finding(
                Urgency.WARNING,
                event.text,
                "It is stored well, but says nothing that this version understands.",
                "Read the run with the version that wrote it.",
            )


def _name(column: str) -> str:
    return column.replace("_", " ")


_SEARCHES: tuple[Callable[[Run], Iterable[Finding]], ...] = (
    _find_stop,
    _find_damage,
    _find_nonfinite,
    _find_failures,
    _find_restrictions,
    _find_silence,
    _find_unpublished,
    _find_rising_losses,
    _find_unapplied,
)
