"""Records that are refused before they are written."""

from __future__ import annotations

import pytest

from tamiyo_jax.contracts import FieldReport, ReportOutcome
from tamiyo_jax.errors import InvalidReportError
from tamiyo_jax.storage import StepRecord, encode_step


def test_a_report_without_its_time_is_not_written() -> None:
    report = FieldReport("report", "", "run", "", "host", ReportOutcome.NEUTRAL, None)
    with pytest.raises(InvalidReportError, match="never age out") as raised:
        encode_step(StepRecord(report=report, action="WAIT", mode="act", state="{}"))
    assert raised.value.field == "issued_at_ns"
