"""Circuit breakers of the controller's own stages, as pure transitions.

CLOSED counts consecutive failures and opens at the configured number. OPEN refuses calls until
the cool-down is over; the next call is a HALF_OPEN trial. A trial that succeeds closes the
breaker, one that fails opens it again for twice as long, up to the longest cool-down.

What counts as a failure is the caller's to say: deadlines, workers and the network, never bad
input. A call that was admitted but never started (no worker was warm) is neither failure nor
success: the caller keeps the state from before `admit`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from tamiyo_jax.config import BreakerConfig
from tamiyo_jax.contracts import CircuitBreakerState, Event, TelemetryLevel
from tamiyo_jax.errors import CircuitOpenError

__all__ = ["BreakerState", "Stage", "admit", "fail", "succeed"]

Stage = Literal["inference", "metadata"]

_CLOSED = CircuitBreakerState.CLOSED
_OPEN = CircuitBreakerState.OPEN
_HALF_OPEN = CircuitBreakerState.HALF_OPEN
_NS_PER_MS = 1_000_000


@dataclass(frozen=True, slots=True)
class BreakerState:
    """One breaker.

    Attributes:
      state: CLOSED, OPEN or HALF_OPEN.
      failures: consecutive failures.
      opened_at_ns: when it last opened, in the caller's nanoseconds; 0 while CLOSED.
      cooldown_ns: how long it refuses calls after that; 0 while CLOSED.
    """

    state: CircuitBreakerState = _CLOSED
    failures: int = 0
    opened_at_ns: int = 0
    cooldown_ns: int = 0


_SOUND = BreakerState()


def admit(breaker: BreakerState, now_ns: int, stage: Stage) -> BreakerState:
    """Ask for a call; after the cool-down it becomes a HALF_OPEN trial.

    A clock that was set back before the opening says nothing about the time that went by, so it
    admits a trial rather than prolong the refusal.

    Raises:
      CircuitOpenError: the breaker is open; nothing may be started.
    """
    if breaker.state is not _OPEN:
        return breaker
    elapsed_ns = now_ns - breaker.opened_at_ns
    if not 0 <= elapsed_ns < breaker.cooldown_ns:
        return replace(breaker, state=_HALF_OPEN)
    retry_ms = (breaker.cooldown_ns - elapsed_ns) / _NS_PER_MS
    raise CircuitOpenError(
        f"the {stage} breaker is open after {breaker.failures} consecutive failures; "
        f"the next trial is in {retry_ms:.0f} ms",
        stage=stage,
        failures=breaker.failures,
        retry_ms=retry_ms,
    )


def succeed(breaker: BreakerState, stage: Stage) -> tuple[BreakerState, tuple[Event, ...]]:
    """A call went well: the count starts anew, and a trial closes the breaker (INFO)."""
    if breaker.state is _CLOSED:
        return _SOUND, ()
    return _SOUND, (_event(_SOUND, stage, TelemetryLevel.INFO),)


def fail(
    breaker: BreakerState, now_ns: int, stage: Stage, config: BreakerConfig
) -> tuple[BreakerState, tuple[Event, ...]]:
    """A call failed: count it (WARNING) or open the breaker (CRITICAL)."""
    failures = breaker.failures + 1
    if breaker.state is _CLOSED and failures < config.failures:
        counted = replace(breaker, failures=failures)
        return counted, (_event(counted, stage, TelemetryLevel.WARNING),)
    base_ns, longest_ns = _nanoseconds(config.cooldown_ms), _nanoseconds(config.max_cooldown_ms)
    cooldown_ns = base_ns if breaker.state is _CLOSED else min(2 * breaker.cooldown_ns, longest_ns)
    opened = BreakerState(_OPEN, failures, opened_at_ns=now_ns, cooldown_ns=cooldown_ns)
    return opened, (_event(opened, stage, TelemetryLevel.CRITICAL),)


def _nanoseconds(milliseconds: float) -> int:
    return round(milliseconds * _NS_PER_MS)


def _event(breaker: BreakerState, stage: Stage, level: TelemetryLevel) -> Event:
    attributes = {
        "stage": stage,
        "state": breaker.state.name,
        "failures": str(breaker.failures),
        "cooldown_ms": f"{breaker.cooldown_ns / _NS_PER_MS:g}",
    }
    return Event("breaker_event", level, attributes)
