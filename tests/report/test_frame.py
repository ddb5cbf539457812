"""The table of a run: a row per step, and what every journal can look like."""

from __future__ import annotations

import fcntl
import math
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from making import open_tamiyo
from report.runs import decide_run, one_packet, packets, record, rollback, write_run

from tamiyo_jax.contracts import SeedStage
from tamiyo_jax.errors import PersistenceError
from tamiyo_jax.report import RunReader, frame, read_run


def test_every_step_is_a_row_with_measurements_decision_and_reason(tmp_path: Path):
    table = frame(decide_run(tmp_path, packets(12, broken=[12])))
    assert {len(column) for column in table.values()} == {12}
    assert table["step"].tolist() == list(range(10, 130, 10))
    assert table["training_loss"][0] == np.float32(1.5)
    assert math.isnan(table["training_loss"][-1])
    assert table["nonfinite"].tolist() == [""] * 11 + ["training_loss"]
    assert table["command"][-1] == "ROLLBACK to step-10"
    assert table["reason"][-1] == "nonfinite_loss"
    assert table["seeds/s0/stage"][[0, 11]].tolist() == [SeedStage.DORMANT, SeedStage.TRAINING]
    assert table["metrics/layer/dense/kernel/gradient_norm"][3] == np.float32(0.25)


def test_what_a_step_does_not_say_is_nan_or_nothing(tmp_path: Path):
    first, second = packets(2)
    second = replace(second, validation_loss=None, training_metrics={"late": 1.0}, seeds=())
    table = frame(write_run(tmp_path, [record(1, first), record(2, second), record(3, None)]))
    assert np.isnan(table["validation_loss"][1:]).all()
    assert np.isnan(table["metrics/late"][[0, 2]]).all()
    assert table["seeds/s0/stage"].tolist() == [SeedStage.DORMANT, 0, 0]
    assert table["has_packet"].tolist() == [True, True, False]
    assert table["step"].tolist() == [10, 20, 20]  # where the last packet was


def test_a_step_that_failed_has_no_action_and_says_what_it_raised(tmp_path: Path):
    good = one_packet(1, broken=False, seeds=True)
    table = frame(decide_run(tmp_path, [good, replace(good, blueprint_id="unheard-of")]))
    assert table["action"][1] == ""
    assert table["reason"][1].startswith("UnknownBlueprintError: ")


def test_steps_that_a_resumed_run_did_again_are_not_shown_twice(tmp_path: Path):
    with open_tamiyo(tmp_path) as tamiyo:
        for packet in packets(4):
            tamiyo.step(packet)
        state, params = tamiyo.state, tamiyo.params
        for packet in packets(7)[4:]:
            tamiyo.step(packet)
        tamiyo.restore(state, params)
        for packet in packets(6)[4:]:
            tamiyo.step(packet)
    run = read_run(tmp_path)
    assert run.frame["step"].tolist() == [10, 20, 30, 40, 50, 60]
    (restored,) = (event for event in run.events if event.kind == "restore")
    assert "3 later decisions were undone" in restored.text


def test_a_run_is_read_on_where_the_last_reading_ended(tmp_path: Path):
    reader = RunReader(tmp_path)
    with open_tamiyo(tmp_path) as tamiyo:
        lengths = []
        for packet in packets(5):
            tamiyo.step(packet)
            lengths.append(len(reader.read()))
        assert reader.read().holder == os.getpid()
    assert lengths == [1, 2, 3, 4, 5]
    once = frame(tmp_path)
    for name, column in reader.read().frame.items():
        np.testing.assert_array_equal(column, once[name])


def test_segments_that_retention_removes_stay_in_what_was_read(tmp_path: Path):
    reader = RunReader(tmp_path)
    write_run(
        tmp_path, [record(number, packet) for number, packet in enumerate(packets(3), start=1)]
    )
    assert len(reader.read()) == 3
    old = set((tmp_path / "journal").iterdir())
    write_run(tmp_path, [record(number, None) for number in (4, 5)])
    for segment in old & set((tmp_path / "journal").iterdir()):
        segment.unlink()
    assert reader.read().frame["step"].tolist() == [10, 20, 30, 30, 30]


def test_reading_never_takes_the_lock_from_an_owner(tmp_path: Path):
    decide_run(tmp_path, packets(1))
    with (tmp_path / "LOCK").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        assert read_run(tmp_path).holder == os.getpid()
    assert read_run(tmp_path).holder is None


def test_commands_are_said_in_words(tmp_path: Path):
    (packet,) = packets(1)
    back = rollback(1, "step-7")
    table = frame(write_run(tmp_path, [record(1, packet, action="ROLLBACK", command=back)]))
    assert table["command"].tolist() == ["ROLLBACK to step-7"]


def test_a_directory_without_a_journal_is_refused_by_name(tmp_path: Path):
    with pytest.raises(PersistenceError, match="holds no journal; name a run directory"):
        frame(tmp_path)


def test_a_run_without_a_decision_is_an_empty_table(tmp_path: Path):
    table = frame(write_run(tmp_path, []))
    assert {len(column) for column in table.values()} == {0}


def test_pandas_takes_the_table_as_it_is(tmp_path: Path):
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    table = pandas.DataFrame(frame(decide_run(tmp_path, packets(6))))
    assert len(table) == 6
    assert table[table.action != "WAIT"].reason.notna().all()
