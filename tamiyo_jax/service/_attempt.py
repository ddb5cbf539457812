"""A step in progress."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from tamiyo_jax.contracts import SystemStatePacket, encode_packet
from tamiyo_jax.controller import Situation, TamiyoState
from tamiyo_jax.risk import Stage

__all__ = ["Attempt", "Begun"]


@dataclass
class Attempt:
    """A step in progress, and what its failure record needs.

    Attributes:
      packet: what it is about.
      state: the state that it works on.
      before: the state without the trial that `state` may have been admitted for.
      start: the state of the controller before the step.
      valid: whether the packet was found valid.
      stage: the stage in progress; None between stages.
      started, resolved, encoded: seconds on the performance counter.
    """

    packet: SystemStatePacket
    state: TamiyoState[Any]
    before: TamiyoState[Any]
    start: TamiyoState[Any]
    valid: bool = False
    stage: Stage | None = None
    started: float = 0.0
    resolved: float = 0.0
    encoded: float = 0.0

    @cached_property
    def packet_bytes(self) -> bytes:
        """The packet as the journal keeps it."""
        return encode_packet(self.packet)


@dataclass(frozen=True, slots=True)
class Begun:
    """A step up to the policy; see `Stepper.begin`."""

    attempt: Attempt
    situation: Situation
