"""How long steps and waits take beside those before them."""

from __future__ import annotations

import pytest

from tamiyo_jax.training._pace import Pace, end_interval, wait


def usual(intervals: int) -> Pace:
    pace = Pace()
    for _ in range(intervals):
        pace, _ = end_interval(wait(pace, 0.1), 10 * 0.02 + 0.1, 10)
    return pace


def test_a_slow_step_and_a_long_wait_are_told_apart():
    _, slow = end_interval(wait(usual(8), 0.1), 10 * 0.2 + 0.1, 10)
    assert slow == pytest.approx({"latency_ratio": 10.0, "loader_ratio": 5.0})
    pace = wait(wait(usual(8), 0.1), 0.8)
    _, stalled = end_interval(pace, 10 * 0.02 + 0.9, 10)
    assert stalled == pytest.approx({"latency_ratio": 1.0, "loader_ratio": 40.0})


def test_in_the_first_intervals_nothing_is_said():
    assert [bool(end_interval(usual(count), 9.0, 1)[1]) for count in range(5)] == [
        *[False] * 3,
        *[True] * 2,
    ]


def test_the_waits_of_an_interval_do_not_count_for_the_next():
    pace, _ = end_interval(wait(usual(4), 5.0), 5.2, 10)
    assert (pace.longest_wait, pace.waited) == (0.0, 0.0)
