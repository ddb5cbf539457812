"""What is sent again is what was dropped last of all, as far as the bus takes it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tamiyo_jax.bus import FIELD_REPORTS, MemoryBus, ReportReader, dropped_reports, republish
from tamiyo_jax.contracts import FieldReport, ReportOutcome, Secret
from tamiyo_jax.errors import PublishError
from tamiyo_jax.journal import Record, RecordType
from tamiyo_jax.storage import Entry, PublicationRecord, StepRecord, Unreadable

SECRET = Secret(b"a secret of tests, long enough")
NAMES = "abcd"


def report(report_id: str) -> FieldReport:
    return FieldReport(
        report_id=report_id,
        command_id="",
        training_run_id="run",
        seed_id="",
        blueprint_id="host",
        outcome=ReportOutcome.NEUTRAL,
        issued_at_ns=1_700_000_000_000_000_000,
    )


def entry(sequence: int, kind: RecordType, report_id: str) -> Entry:
    record = Record(sequence, 0, kind, b"")
    if kind is RecordType.STEP:
        closed = (report(f"window of {report_id}"),)
        return Entry(
            record, StepRecord(report(report_id), "WAIT", "act", "", closed_windows=closed)
        )
    return Entry(record, PublicationRecord(report_id, 0, 0))


FATES = st.sampled_from([RecordType.ACK, RecordType.RETRY, RecordType.DROP])


@given(
    held=st.sets(st.sampled_from(NAMES)),
    fates=st.lists(st.tuples(FATES, st.sampled_from(NAMES)), max_size=20),
)
def test_a_report_is_dropped_if_nothing_was_acknowledged_after_its_last_drop(
    held: set[str], fates: list[tuple[RecordType, str]]
) -> None:
    history = [(RecordType.STEP, name) for name in sorted(held)] + fates
    found = dropped_reports(entry(at, kind, name) for at, (kind, name) in enumerate(history))
    last = {name: kind for kind, name in fates if kind is not RecordType.RETRY}
    dropped = {name for name, kind in last.items() if kind is RecordType.DROP}
    assert [report.report_id for report in found.reports] == sorted(dropped & held)
    assert set(found.lost) == dropped - held
    assert len(found.lost) == len(dropped - held)


def test_reports_of_closed_windows_count_and_what_is_unreadable_is_passed_over() -> None:
    entries = [
        entry(1, RecordType.STEP, "a"),
        Entry(Record(2, 0, RecordType.STEP, b""), Unreadable("damaged")),
        entry(3, RecordType.DROP, "window of a"),
        entry(4, RecordType.DROP, "b"),
    ]
    found = dropped_reports(entries)
    assert [report.report_id for report in found.reports] == ["window of a"]
    assert found.lost == ("b",)


def test_a_bus_that_refuses_in_the_middle_leaves_no_doubt_about_what_it_took() -> None:
    bus, sent, seen = MemoryBus(capacity=2), list[str](), list[str]()
    with pytest.raises(PublishError):
        sent.extend(republish(map(report, NAMES), bus, SECRET))
    reader = ReportReader(
        lambda report: seen.append(report.report_id), secrets=[SECRET], refuse=pytest.fail
    )
    assert bus.consume(FIELD_REPORTS, "analysis", reader) == 2
    assert sent == seen == ["a", "b"]
