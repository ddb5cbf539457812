"""Observation windows: what became of the training in the steps after a command.

A window is a fold over the reports of the steps that follow its command. It is part of the
state, so a run that is restored in the middle of a window goes on with it, and pure, so any
split of a run into restarts closes the same windows with the same reports.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from tamiyo_jax.config import StorageConfig
from tamiyo_jax.contracts import FieldReport, ReportOutcome
from tamiyo_jax.controller._report import select_reportable

__all__ = ["Window", "watch"]


@dataclass(frozen=True, slots=True)
class Window:
    """An open window: the command that it watches, and what was seen of it so far.

    Attributes:
      command_id: the command.
      training_run_id: the run.
      seed_id: the seed acted upon, empty where none was.
      blueprint_id: the blueprint that the risk rules evaluated.
      policy_version: the policy that decided.
      start_epoch: epoch of the command's step.
      length: steps to watch.
      steps: steps seen, fewer than `length`.
      loss_delta_total: sum of their loss deltas, where those are numbers.
      loss_delta_min: the lowest; None before the first.
      loss_delta_max: the highest; None before the first.
      hook_latency_ms_total: sum of the hook latencies, milliseconds.
      hook_latencies: steps that measured one.
      alarmed: a step was CRITICAL, or its loss delta was no number that a report can carry.
    """

    command_id: str
    training_run_id: str
    seed_id: str
    blueprint_id: str
    policy_version: str
    start_epoch: int
    length: int
    steps: int = 0
    loss_delta_total: float = 0.0
    loss_delta_min: float | None = None
    loss_delta_max: float | None = None
    hook_latency_ms_total: float = 0.0
    hook_latencies: int = 0
    alarmed: bool = False


def watch(
    windows: tuple[Window, ...],
    report: FieldReport,
    *,
    epoch: int,
    critical: bool,
    carried_out: bool,
    config: StorageConfig,
) -> tuple[tuple[Window, ...], tuple[FieldReport, ...]]:
    """Show a decided step to the open windows, and open one for its command.

    A window keeps the length that it was opened with, whatever the configuration says later.
    Shadow decisions open none, since they are not carried out and have no effect to observe; to
    windows that are open already they are steps like others.

    Args:
      windows: the open windows, oldest first.
      report: the step's own report.
      epoch: the step's epoch.
      critical: one of the step's events is CRITICAL.
      carried_out: the host is given the step's command; False where there is none.
      config: length of a window in steps, where 1 opens none; and how many may be open.

    Returns:
      The windows that are open after the step, and the reports of those that it closed, dated
      like `report`.
    """
    seen = [_with_step(window, report, critical) for window in windows]
    closed = [_close(window, report) for window in seen if window.steps >= window.length]
    still_open = [window for window in seen if window.steps < window.length]
    if carried_out and config.observation_window_epochs > 1:
        still_open.append(_open(report, epoch, config.observation_window_epochs))
    surplus = max(0, len(still_open) - config.max_windows)
    closed += [_close_early(window, report, config) for window in still_open[:surplus]]
    return tuple(still_open[surplus:]), tuple(closed)


def _open(report: FieldReport, epoch: int, length: int) -> Window:
    return Window(
        command_id=report.command_id,
        training_run_id=report.training_run_id,
        seed_id=report.seed_id,
        blueprint_id=report.blueprint_id,
        policy_version=report.tamiyo_policy_version,
        start_epoch=epoch,
        length=length,
    )


def _with_step(window: Window, report: FieldReport, critical: bool) -> Window:
    delta = report.metrics.get("loss_delta")
    latency = report.metrics.get("hook_latency_ms")
    total, low, high = window.loss_delta_total, window.loss_delta_min, window.loss_delta_max
    if delta is not None:
        total += delta
        low = delta if low is None else min(low, delta)
        high = delta if high is None else max(high, delta)
    return replace(
        window,
        steps=window.steps + 1,
        loss_delta_total=total,
        loss_delta_min=low,
        loss_delta_max=high,
        hook_latency_ms_total=window.hook_latency_ms_total + (latency or 0.0),
        hook_latencies=window.hook_latencies + (latency is not None),
        alarmed=window.alarmed or critical or delta is None,
    )


def _close(window: Window, report: FieldReport) -> FieldReport:
    measured = window.hook_latencies
    metrics = {
        "loss_delta_total": window.loss_delta_total,
        "loss_delta_min": window.loss_delta_min,
        "loss_delta_max": window.loss_delta_max,
        "avg_hook_latency_ms": window.hook_latency_ms_total / measured if measured else None,
    }
    return FieldReport(
        report_id=f"fr-synth-{window.command_id}-{window.start_epoch}+{window.length}",
        command_id=window.command_id,
        training_run_id=window.training_run_id,
        seed_id=window.seed_id,
        blueprint_id=window.blueprint_id,
        outcome=_outcome(window),
        issued_at_ns=report.issued_at_ns,
        metrics=select_reportable(
            {name: value for name, value in metrics.items() if value is not None}
        ),
        observation_window_epochs=window.steps,
        tamiyo_policy_version=window.policy_version,
    )


def _close_early(window: Window, report: FieldReport, config: StorageConfig) -> FieldReport:
    return replace(
        _close(window, report),
        outcome=ReportOutcome.NEUTRAL,
        notes=f"closed after {window.steps} of {window.length} steps to make room for a newer "
        f"window: storage.max_windows is {config.max_windows}",
    )


def _outcome(window: Window) -> ReportOutcome:
    if window.alarmed or window.loss_delta_total > 0:
        return ReportOutcome.REGRESSION
    return ReportOutcome.SUCCESS if window.loss_delta_total < 0 else ReportOutcome.NEUTRAL
