"""The programs of a run: one for what grows in the slots, the next compiled while the last trains.

A run's train step and its measuring are traced for the structure of the host: which slots hold a
seed, and of which candidate. When a seed germinates, the programs with it are compiled in a
thread. Until they are there the old ones go on, and the seed is carried beside them, as it was
made: it is at alpha 0, so the network is the same with it and without. It begins to learn with the
first step of the new programs. A seed that is to blend in before that is waited for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from tamiyo_jax.contracts import SeedStage
from tamiyo_jax.errors import CompilationError
from tamiyo_jax.expansion import CompileAhead
from tamiyo_jax.host import HostState, Slot

__all__ = ["Programs", "may_grow"]

Structure = frozenset[tuple[str, str]]
"""The slots in which something grows, each with its blueprint id."""

_SILENT = (SeedStage.GERMINATED, SeedStage.TRAINING)
"""Stages at alpha 0."""

_ON_THE_WAY = (*_SILENT, SeedStage.BLENDING, SeedStage.PROBATIONARY)


class Programs:
    """Which seeds are in the programs that run, and what compiles those of the others.

    Args:
      build_for: compiles all of a run's programs for a host, and runs each once: the first run of
        a program takes several steps' time. The host is a copy, whose buffers it may donate.
      wait: whether a run waits for its programs at once, so that equal runs are equal.
    """

    def __init__(self, build_for: Callable[[HostState], Any], *, wait: bool) -> None:
        self._build_for = build_for
        self._wait = wait
        self._inside: Structure | None = None
        self._wanted: Structure = frozenset()
        self._ahead: CompileAhead[Any] | None = None
        self._carried: dict[str, Slot] = {}

    @property
    def ready(self) -> bool:
        """Whether programs for the seeds that are carried are there, or have failed."""
        return self._ahead is not None and self._ahead.done

    def inside(self, host: HostState) -> tuple[HostState, CompilationError | None]:
        """The host as the programs are to see it; what they do not know is carried beside them.

        With an error, once, if the next programs could not be built: the old ones go on, until
        another seed grows.
        """
        grown, error = structure_of(host), None
        if self._wait or self._inside is None:
            self._inside = grown
        elif not grown <= self._inside and grown != self._wanted:
            self._wanted = grown
            # The loop may donate the host's own buffers to its next step meanwhile.
            copied = jax.tree.map(jnp.copy, host)
            self._ahead = CompileAhead(lambda: self._build_for(copied))
        if self._ahead is not None and (self._ahead.done or not self._is_silent(host)):
            ahead, self._ahead = self._ahead, None
            try:
                ahead.result()
                self._inside = self._wanted
            except CompilationError as raised:
                error = raised
        outside = {name for name, _ in grown - self._inside}
        self._carried = {name: host.slots[name] for name in outside}
        without = {name: Slot(slot.state, {}, ()) for name, slot in self._carried.items()}
        return (host._replace(slots=host.slots | without) if outside else host), error

    def rejoin(self, trained: HostState) -> HostState:
        """The host after some steps, with the seeds that were carried beside its programs."""
        carried = {
            name: slot._replace(state=trained.slots[name].state)
            for name, slot in self._carried.items()
        }
        return trained._replace(slots=trained.slots | carried)

    def _is_silent(self, host: HostState) -> bool:
        outside = structure_of(host) - (self._inside or frozenset())
        return all(int(host.slots[name].state.stage) in _SILENT for name, _ in outside)


def may_grow(host: HostState) -> bool:
    """Whether a slot is free and no seed is on its way; else no candidate need be compared."""
    stages = {int(slot.state.stage) for slot in host.slots.values()}
    return SeedStage.DORMANT in stages and not stages & set(_ON_THE_WAY)


def structure_of(host: HostState) -> Structure:
    """What grows in the slots of a host."""
    return frozenset((name, one) for name, slot in host.slots.items() for one in slot.params)
