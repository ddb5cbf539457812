"""What a network is measured by at a decision boundary of a loop that is the user's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax

from tamiyo_jax.host import Host, HostState, contribution, loss_of, probe
from tamiyo_jax.training._programs import may_grow

__all__ = ["Evaluate", "Evaluation", "evaluate_growth", "run_once"]

Batch = Any


class Evaluation(NamedTuple):
    """Measurements of a train state.

    Attributes:
      validation_loss: f32[]; None where nothing validates.
      contributions: f32[] by slot id, as `host.contribution` gives them.
      probe: f32[] by slot id and blueprint id; empty while a seed is on its way.
    """

    validation_loss: jax.Array | None
    contributions: Mapping[str, jax.Array]
    probe: Mapping[str, Mapping[str, jax.Array]]


Evaluate = Callable[[Any], Evaluation]


def evaluate_growth(host: Host, validation: Batch) -> Callable[[HostState], Evaluation]:
    """What evaluates a host with seed slots on a batch for `host.loss`."""

    @jax.jit
    def measure(state: HostState, batch: Batch) -> Evaluation:
        contributions = contribution(host.loss, state.params, state.slots, batch)
        return Evaluation(loss_of(host, state, batch), contributions, {})

    def evaluate(state: HostState) -> Evaluation:
        found = measure(state, validation)
        return found._replace(probe=probe(host, state, validation)) if may_grow(state) else found

    return evaluate


def run_once(
    step: Callable[[HostState], object],
    evaluate: Callable[[HostState], Evaluation],
    state: HostState,
) -> None:
    """Compile what a loop runs on a state, and run it; the step, which is last, may donate it."""
    jax.block_until_ready((evaluate(state), step(state)))
