"""Records that are refused before they are written."""

from __future__ import annotations

import pytest

from tamiyo_jax.contracts import FieldReport, ReportOutcome
from tamiyo_jax.errors import InvalidReportError
from tamiyo_jax.storage import StepRecord, decode_step, encode_step
from tamiyo_jax.storage import records_pb2 as pb


def test_a_report_without_its_time_is_not_written() -> None:
    report = FieldReport("report", "", "run", "", "host", ReportOutcome.NEUTRAL, None)
    with pytest.raises(InvalidReportError, match="never age out") as raised:
        encode_step(StepRecord(report=report, action="WAIT", mode="act", state="{}"))
    assert raised.value.field == "issued_at_ns"


def test_an_explanation_is_read_back_and_is_empty_in_older_records() -> None:
    report = FieldReport("report", "", "run", "", "host", ReportOutcome.NEUTRAL, 1)
    why = "no improvement for 3 epochs (best 0.966)"
    step = StepRecord(report=report, action="WAIT", mode="act", state="{}", explanation=why)
    assert decode_step(encode_step(step)).explanation == why
    older = pb.Step.FromString(encode_step(step))
    older.ClearField("explanation")
    assert decode_step(older.SerializeToString()).explanation == ""
