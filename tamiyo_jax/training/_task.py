"""What the reference loop trains: a network with seed slots, its data, and its blueprints."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax

from tamiyo_jax.contracts import Blueprint
from tamiyo_jax.host import Host

__all__ = ["Data", "Task"]

Params = Any


class Data(NamedTuple):
    """Labelled examples.

    Attributes:
      inputs: f32[N, D].
      labels: i32[N].
    """

    inputs: jax.Array
    labels: jax.Array


@dataclass(frozen=True, slots=True, eq=False)
class Task:
    """What is trained, on what, and what it is called in packets.

    A task is itself alone: runs of the same object share their compiled programs.

    Attributes:
      host: the host; its loss takes a `Data` as the batch.
      init_params: ``key -> params``.
      logits: ``(params, seeds, gates, inputs) -> f32[B, classes]``.
      train: examples to learn from.
      validation: examples to decide on.
      test: examples that nothing but the final accuracy looks at.
      batch_size: examples in a step; what is left of an epoch is not seen in it.
      blueprint: of the host; its layer ids are the monitor's layer names.
      candidates: what seeds may be grown into.
      slot_depths: index of the layer that each slot follows, by slot id.
      optimizer_id: the optimiser that Tamiyo may scale.
      seed_learning_rate: of every slot's optimiser.
    """

    host: Host
    init_params: Callable[[jax.Array], Params]
    logits: Callable[[Params, Any, Any, jax.Array], jax.Array]
    train: Data
    validation: Data
    test: Data
    batch_size: int
    blueprint: Blueprint
    candidates: tuple[Blueprint, ...]
    slot_depths: Mapping[str, int]
    optimizer_id: str
    seed_learning_rate: float

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps in one pass over the training examples."""
        return len(self.train.labels) // self.batch_size
