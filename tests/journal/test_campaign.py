"""A loss of power at any operation loses nothing that was promised, invents nothing, and ends."""

from __future__ import annotations

from pathlib import Path

import pytest
from journal.campaign import Tally, campaign, corrupted, travel
from journal.simulation import SimulatedFileSystem

LONG = pytest.mark.slow


@pytest.mark.parametrize(
    ("seed", "records"),
    [(5, 60), pytest.param(0, 240, marks=LONG), pytest.param(1, 240, marks=LONG)],
)
def test_a_crash_after_any_operation_loses_nothing_that_was_promised(
    seed: int, records: int, tmp_path: Path
) -> None:
    tally = Tally()
    campaign(tmp_path, travel(tmp_path, seed, records), tally, seed, every=7)
    assert tally.examples == []
    assert tally.crash_points > records / 3


@pytest.mark.slow
def test_a_crash_after_any_operation_of_a_repair_loses_nothing_more(tmp_path: Path) -> None:
    journey = travel(tmp_path, 2, 120)
    disk = corrupted(tmp_path, journey, 2)
    now_ns = journey.notes[-1].now_ns
    repaired = travel(tmp_path, 3, 60, disk=disk, now_ns=now_ns)
    assert repaired.missing
    tally = Tally()
    campaign(tmp_path, repaired, tally, 2, every=4)
    assert tally.examples == []


def test_a_workload_has_the_same_operations_every_time(tmp_path: Path) -> None:
    first, second = (travel(tmp_path, 4, 90).files.trace for _ in range(2))
    assert [type(event) for event in first] == [type(event) for event in second]
    writes = [[getattr(event, "data", None) for event in trace] for trace in (first, second)]
    assert writes[0] == writes[1]


@pytest.mark.parametrize("forgotten", ["fsync_dir", "fdatasync"])
def test_the_campaign_notices_an_fsync_that_is_left_out(
    forgotten: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = SimulatedFileSystem.record
    kind = {"fsync_dir": "SyncDirectory", "fdatasync": "Sync"}[forgotten]

    def forgetful(files: SimulatedFileSystem, operation: object) -> None:
        if type(operation).__name__ != kind:
            record(files, operation)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(SimulatedFileSystem, "record", forgetful)
    tally = Tally()
    campaign(tmp_path, travel(tmp_path, 0, 60), tally, 0, every=9)
    assert tally.failures["acknowledged record lost"]
