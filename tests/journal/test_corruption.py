"""Damage costs the records it touches, is reported with its place, and is kept in quarantine."""

from __future__ import annotations

from pathlib import Path

import pytest
from journal.corruption import damaged_directories, flip_every_byte
from journal.kills import kill_writers


def test_a_flipped_byte_costs_the_record_it_belongs_to_and_no_other(tmp_path: Path) -> None:
    figures = flip_every_byte(tmp_path, 1_000, every=101)
    assert figures["examples"] == {}
    assert figures["records"] >= 1_000
    assert figures["bytes flipped"] > 800
    assert figures["in real directories"]


def test_damage_larger_than_a_byte_costs_what_it_touches(tmp_path: Path) -> None:
    problems = dict.fromkeys(damaged_directories(tmp_path, 600, 4))
    assert [problem for problem in problems if problem[1] is not None] == []


@pytest.mark.slow
def test_a_process_killed_at_any_moment_leaves_all_that_was_returned(tmp_path: Path) -> None:
    figures = kill_writers(tmp_path, 15, seed=1)
    assert figures["examples"] == {}
    assert figures["records whose append returned"]
