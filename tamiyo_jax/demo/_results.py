"""Results of a demonstration: its epochs, networks and totals."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["DemoSummary", "Row", "Variant"]


@dataclass(frozen=True, slots=True)
class Row:
    """An epoch of a run, for the table and the picture.

    Attributes:
      epoch: number of epochs trained.
      training_loss: mean training loss of the epoch.
      validation_loss: validation loss after the epoch.
      validation_accuracy: validation accuracy after the epoch, in [0, 1].
      live_parameters: number of parameters that contribute to the output or are being trained.
      action: the decision; name of the error if the step raised; empty without Tamiyo.
      reason: reason of the decision.
      target: the seed that is acted on, and its blueprint; empty if none.
      levels: levels of the events of the decision step.
      decision_ms: latency of the decision, in milliseconds; None without Tamiyo.
      explanation: the reason in words; empty if there is none.
    """

    epoch: int
    training_loss: float | None
    validation_loss: float | None
    validation_accuracy: float | None
    live_parameters: int
    action: str
    reason: str
    target: str
    levels: tuple[str, ...]
    decision_ms: float | None
    explanation: str = ""


@dataclass(frozen=True, slots=True)
class Variant:
    """A trained network."""

    name: str
    rows: tuple[Row, ...]
    test_accuracy: float
    parameters_before: int
    parameters_after: int


@dataclass(frozen=True, slots=True)
class DemoSummary:
    """The results of a demonstration.

    Attributes:
      grown: the network grown by Tamiyo.
      small: the same network, never grown.
      full: the same network with every slot grown from the start.
      actions: number of decisions by action.
      levels: number of events by level.
      decision_ms: latency of every decision, in milliseconds.
      resumed_at: epoch from which the run was resumed; None for a new run.
    """

    grown: Variant
    small: Variant
    full: Variant
    actions: dict[str, int]
    levels: dict[str, int]
    decision_ms: tuple[float, ...]
    resumed_at: int | None
