"""A clock that is set back while a process lives changes nothing for its commands."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from making import SECRET

from tamiyo_jax.clock import SteadyClock, steady_time_ns
from tamiyo_jax.config import SecurityConfig
from tamiyo_jax.contracts import (
    AdaptationCommand,
    CommandType,
    NonceLedger,
    Secret,
    Verifier,
    sign,
)
from tamiyo_jax.errors import ReplayError, StaleMessageError

SECOND = 1_000_000_000
START = 1_700_000_000 * SECOND
PAUSE = AdaptationCommand("command", CommandType.PAUSE, START, execution_deadline_ms=100)


class Times:
    """A wall clock that can be set, and the time that passes."""

    def __init__(self) -> None:
        self.wall_ns, self.elapsed_ns = START, 5 * SECOND
        self.clock = SteadyClock(lambda: self.wall_ns, lambda: self.elapsed_ns)

    def sleep(self, seconds: float) -> None:
        self.wall_ns += round(seconds * SECOND)
        self.elapsed_ns += round(seconds * SECOND)


def test_commands_are_accepted_after_the_clock_was_set_back_past_the_verifiers_start() -> None:
    times, secret = Times(), Secret(SECRET)
    verifier = Verifier((secret,), NonceLedger(times.clock()), SecurityConfig())
    times.sleep(10)
    first = sign(replace(PAUSE, command_id="first", issued_at_ns=times.clock()), secret)
    verifier = verifier.verify(first, now_ns=times.clock())
    times.wall_ns -= 3_600 * SECOND
    times.sleep(1)
    second = sign(replace(PAUSE, command_id="second", issued_at_ns=times.clock()), secret)
    verifier = verifier.verify(second, now_ns=times.clock())
    with pytest.raises(ReplayError):
        verifier.verify(first, now_ns=times.clock())
    times.sleep(120)
    old = sign(replace(PAUSE, command_id="old", issued_at_ns=times.clock() - 61 * SECOND), secret)
    with pytest.raises(StaleMessageError):
        verifier.verify(old, now_ns=times.clock())


@given(
    moves=st.lists(st.tuples(st.integers(0, 100), st.integers(-10_000, 10_000)), max_size=20),
)
def test_the_clock_never_runs_backwards_and_never_slower_than_time(
    moves: list[tuple[int, int]],
) -> None:
    times = Times()
    before, elapsed = times.clock(), times.elapsed_ns
    for seconds, setting in moves:
        times.sleep(seconds)
        times.wall_ns += setting * SECOND
        now = times.clock()
        assert now - before >= times.elapsed_ns - elapsed
        assert now >= times.wall_ns
        before, elapsed = now, times.elapsed_ns


def test_the_clock_of_the_process_has_the_time_of_day() -> None:
    first = steady_time_ns()
    assert steady_time_ns() >= first > START
