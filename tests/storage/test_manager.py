"""The owner of a run directory: what it gives back, what it keeps, what it lets go."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from journal.campaign import (
    EPOCH,
    POLICY_STATE,
    SECOND,
    Clock,
    make_report,
    make_step,
    make_storage_config,
    stepped,
    summarise,
)

from tamiyo_jax.config import StorageConfig
from tamiyo_jax.contracts import encode_report
from tamiyo_jax.controller import AppliedPolicy, initial_state, state_to_json
from tamiyo_jax.errors import (
    CheckpointMismatchError,
    DirectoryLockedError,
    InvalidReportError,
    JournalSealedError,
    PersistenceError,
)
from tamiyo_jax.journal import PosixFileSystem, Record, RecordType, read_journal
from tamiyo_jax.storage import DirectoryLock, StepRecord, StorageManager, Unreadable, read_entries
from tamiyo_jax.storage import records_pb2 as pb
from tamiyo_jax.storage._facts import Ledger

REPOSITORY = Path(__file__).parents[2]
Manager = StorageManager[np.ndarray]


def begin(directory: Path, clock: Clock, *, publishing: bool = True, **fields: object) -> Manager:
    config = make_storage_config(**({"flush_ms": 1.0} | fields))
    manager = StorageManager.open(
        directory, config, POLICY_STATE, clock=clock, publishing=publishing
    )
    manager.start(manager.state or initial_state(POLICY_STATE))
    return manager


def step(manager: Manager, clock: Clock, *names: str) -> int:
    """A step with a report of each name, issued now."""
    assert manager.state is not None
    after = stepped(manager.state)
    reports = [make_report(name, clock()) for name in names]
    return manager.append_step(make_step(after, *reports), after).sequence


def many(manager: Manager, clock: Clock, count: int, prefix: str = "r") -> None:
    for number in range(count):
        step(manager, clock, f"{prefix}{number}")


def segments(directory: Path) -> list[Path]:
    return sorted((directory / "journal").iterdir())


def test_a_fresh_directory_has_no_state_and_a_private_cache(tmp_path: Path) -> None:
    directory = tmp_path / "run"
    config = make_storage_config()
    with StorageManager.open(directory, config, POLICY_STATE, clock=Clock()) as manager:
        assert manager.state is None
        assert len(manager.recovered.records) == 0
        assert manager.cache_directory == directory / "cache" / "xla"
        assert stat.S_IMODE(manager.cache_directory.stat().st_mode) == 0o700
        with pytest.raises(PersistenceError, match="call start first"):
            manager.compact()


def test_everything_recorded_comes_back_bit_for_bit(tmp_path: Path) -> None:
    clock = Clock()
    with begin(tmp_path, clock) as manager:
        first = initial_state(POLICY_STATE)
        keyed = replace(stepped(first), registries=first.registries.with_keys(seeds=["s0", "s1"]))
        record = replace(
            make_step(keyed, make_report("a", EPOCH)),
            registry_additions=keyed.registries.additions(first.registries),
        )
        manager.append_step(record, keyed)
        step(manager, clock, "b", "b-window")
        manager.append_operator("conservative_on", "by hand", stepped(keyed))
        manager.retry("a", 2, EPOCH + 5)
        manager.acknowledge("b")
        digest = manager.store_parameters(b"weights")
        manager.append_policy_update("p1", digest, "v2", stepped(keyed))
        expected, facts = summarise(manager), manager.facts
    with begin(tmp_path, clock) as manager:
        assert summarise(manager) == expected
        assert manager.facts == facts
        assert list(manager.facts.pending) == ["a", "b-window"]
        assert manager.facts.pending["a"].attempts == 2
        assert manager.facts.policies == (AppliedPolicy("p1", digest, "v2"),)
        assert manager.facts.policy_ids == {"p1"}
        assert manager.state is not None
        assert manager.state.registries.seeds.keys == ("s0", "s1")


def test_a_restore_rewinds_what_decides_and_no_fact(tmp_path: Path) -> None:
    clock = Clock()
    with begin(tmp_path, clock) as manager:
        early = manager.state
        assert early is not None
        many(manager, clock, 3)
        manager.acknowledge("r0")
        manager.retry("r1", 1, EPOCH)
        manager.append_policy_update("p1", "0" * 64, "v2", early)
        manager.append_restore(early, "a checkpoint")
        facts = manager.facts
        assert list(facts.pending) == ["r1", "r2"]
    with begin(tmp_path, clock) as manager:
        assert manager.facts == facts
        assert manager.state is not None
        assert state_to_json(manager.state) == state_to_json(early)
        assert step(manager, clock, "next") == manager.last_sequence


def test_segments_rotate_at_their_size_and_each_begins_with_the_state(tmp_path: Path) -> None:
    clock = Clock()
    with begin(tmp_path, clock) as manager:
        many(manager, clock, 100)
        expected = summarise(manager)
    assert len(segments(tmp_path)) > 5
    assert all(path.stat().st_size < 4096 * 4 for path in segments(tmp_path))
    found = read_journal(tmp_path)
    assert [r.sequence for r in found.records] == list(range(1, found.last_sequence + 1))
    bases = [int(path.name[:19]) for path in segments(tmp_path)]
    assert all(found.records[base - 1].type is RecordType.SNAPSHOT for base in bases)
    with begin(tmp_path, clock) as manager:
        assert summarise(manager) == expected


def test_any_suffix_of_the_segments_recovers_the_state_by_itself(tmp_path: Path) -> None:
    clock = Clock()
    with begin(tmp_path, clock, publishing=False) as manager:
        many(manager, clock, 60)
        expected = summarise(manager)
    for path in segments(tmp_path)[:-1]:
        path.unlink()
        config = make_storage_config()
        with StorageManager.open(tmp_path, config, POLICY_STATE, clock=clock) as manager:
            assert summarise(manager) == expected
            assert manager.recovered.corrupt == ()


def test_a_record_larger_than_a_segment_is_kept(tmp_path: Path) -> None:
    clock = Clock()
    with begin(tmp_path, clock) as manager:
        step(manager, clock, "small")
        step(manager, clock, "l" * 20_000)
        step(manager, clock, "after")
    assert set(begin(tmp_path, clock).facts.pending) == {"small", "l" * 20_000, "after"}


def test_retention_removes_old_segments_and_keeps_young_ones(tmp_path: Path) -> None:
    clock = Clock()
    with begin(tmp_path, clock, publishing=False) as manager:
        many(manager, clock, 60)
        count = len(segments(tmp_path))
        manager.compact()
        assert len(segments(tmp_path)) == count + 1, "young reports stay"
        clock.now_ns += 21 * SECOND
        step(manager, clock, "young")
        manager.compact()
        assert len(segments(tmp_path)) == 2, "the segment of the young one, and the new one"
        expected = summarise(manager)
    clock.now_ns += 60 * SECOND
    with begin(tmp_path, clock, publishing=False) as manager:
        assert len(segments(tmp_path)) == 1, "retention is applied at opening too"
        assert summarise(manager) == expected
        assert manager.last_sequence > 60


def test_a_pending_report_keeps_its_segment_until_it_is_published(tmp_path: Path) -> None:
    clock = Clock()
    with begin(tmp_path, clock) as manager:
        step(manager, clock, "first")
        manager.compact()
        many(manager, clock, 30)
        for number in range(30):
            manager.drop(f"r{number}")
        clock.now_ns += 60 * SECOND
        manager.compact()
        assert int(segments(tmp_path)[0].name[:19]) == 1
    with begin(tmp_path, clock) as manager:
        assert manager.facts.pending["first"].report.report_id == "first"
        manager.acknowledge("first")
        manager.compact()
        assert len(segments(tmp_path)) == 1


def test_without_a_bus_nothing_pends_and_what_pended_is_let_go(tmp_path: Path) -> None:
    clock = Clock()
    with begin(tmp_path, clock) as manager:
        step(manager, clock, "while there was a bus")
    with begin(tmp_path, clock, publishing=False) as manager:
        step(manager, clock, "without")
        assert manager.facts.pending == {}
    with begin(tmp_path, clock) as manager:
        assert manager.facts.pending == {}
        with pytest.raises(PersistenceError, match="not pending"):
            manager.acknowledge("without")


@pytest.mark.parametrize("settle", [Manager.acknowledge, Manager.drop])
def test_only_a_pending_report_is_settled(
    settle: Callable[[Manager, str], object], tmp_path: Path
) -> None:
    clock = Clock()
    with begin(tmp_path, clock) as manager:
        step(manager, clock, "once")
        settle(manager, "once")
        for again in (settle, lambda m, r: m.retry(r, 1, 0)):
            with pytest.raises(PersistenceError, match="not pending"):
                again(manager, "once")
        assert manager.last_sequence == 3


def test_parameters_come_back_verified(tmp_path: Path) -> None:
    clock = Clock()
    with begin(tmp_path, clock) as manager:
        digest = manager.store_parameters(b"weights")
        assert manager.store_parameters(b"weights") == digest
        assert manager.load_parameters(digest) == b"weights"
        (path,) = (tmp_path / "policies").iterdir()
        assert path.name == f"{digest}.safetensors"
        path.write_bytes(b"Weights")
        with pytest.raises(PersistenceError, match="damaged"):
            manager.load_parameters(digest)
        manager.store_parameters(b"weights")
        assert manager.load_parameters(digest) == b"weights"
        with pytest.raises(PersistenceError, match="ENOENT"):
            manager.load_parameters("0" * 64)
        with pytest.raises(PersistenceError, match="not a SHA-256"):
            manager.load_parameters("../journal/x")


def test_parameters_that_were_being_written_do_not_stand_in_the_way(tmp_path: Path) -> None:
    clock = Clock()
    with begin(tmp_path, clock) as manager:
        digest = manager.store_parameters(b"weights")
    path = tmp_path / "policies" / f"{digest}.safetensors"
    path.rename(path.with_suffix(".tmp"))
    with begin(tmp_path, clock) as manager:
        assert manager.store_parameters(b"weights") == digest
        path.rename(path.with_suffix(".tmp"))  # interrupted while the directory is open
        assert manager.store_parameters(b"weights") == digest


def test_a_publisher_and_the_steps_share_the_journal(tmp_path: Path) -> None:
    clock = Clock()
    finished = threading.Event()

    def publish() -> None:
        while not finished.is_set() or manager.facts.pending:
            for report_id, pending in manager.facts.pending.items():
                if pending.attempts == 0 and int(report_id[1:]) % 3 == 0:
                    manager.retry(report_id, 1, clock())
                else:
                    manager.acknowledge(report_id)

    with begin(tmp_path, clock) as manager:
        publisher = threading.Thread(target=publish)
        publisher.start()
        many(manager, clock, 400)
        finished.set()
        publisher.join(60)
        assert not publisher.is_alive()
        expected = summarise(manager)
    found = read_journal(tmp_path)
    assert sum(record.type is RecordType.ACK for record in found.records) == 400
    with begin(tmp_path, clock) as manager:
        assert summarise(manager) == expected


def test_a_report_without_its_time_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    clock = Clock()
    with begin(tmp_path, clock) as manager:
        state = initial_state(POLICY_STATE)
        for reports in ([make_report("a", None)], [make_report("a", 1), make_report("w", None)]):
            with pytest.raises(InvalidReportError, match="issued_at_ns"):
                manager.append_step(make_step(state, *reports), state)
        assert manager.last_sequence == 1
        assert step(manager, clock, "good") == 2


def test_a_record_without_its_fold_seals_the_journal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    clock = Clock()
    with begin(tmp_path, clock) as manager:
        monkeypatch.setattr(Ledger, "add_reports", interrupted)
        with pytest.raises(KeyboardInterrupt):
            step(manager, clock, "half")
        monkeypatch.undo()
        with pytest.raises(JournalSealedError, match="interrupted"):
            step(manager, clock, "next")
        with contextlib.suppress(PersistenceError):  # its outcome may be unknown
            manager.close()
    assert list(begin(tmp_path, clock).facts.pending) == ["half"]


def test_a_directory_has_one_owner_also_after_an_opening_that_failed(tmp_path: Path) -> None:
    clock = Clock()
    config = make_storage_config()
    with begin(tmp_path, clock), pytest.raises(DirectoryLockedError, match=str(os.getpid())):
        StorageManager.open(tmp_path, config, POLICY_STATE, clock=clock)
    with pytest.raises(CheckpointMismatchError):
        StorageManager.open(tmp_path, config, np.zeros(9, np.float32), clock=clock)
    begin(tmp_path, clock).close()


def test_a_lock_that_cannot_be_written_is_let_go(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))  # a disk that takes nothing
    try:
        with pytest.raises(PersistenceError, match="cannot be used") as raised:
            DirectoryLock(tmp_path, PosixFileSystem())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert raised.value.errno == errno.EFBIG
    DirectoryLock(tmp_path, PosixFileSystem()).release()


def test_reading_needs_no_lock_filters_by_time_and_skips_what_says_nothing(tmp_path: Path) -> None:
    clock = Clock()
    with begin(tmp_path, clock) as manager:
        step(manager, clock, "old")
        clock.now_ns += 60 * SECOND
        step(manager, clock, "young")
        manager.acknowledge("young")
        found = read_journal(tmp_path)
        contents = [entry.content for entry in read_entries(found)]
        assert [type(content).__name__ for content in contents] == [
            "StateRecord",
            "StepRecord",
            "StepRecord",
            "PublicationRecord",
        ]
        recent = [entry.content for entry in read_entries(found, since_ns=clock())]
        reports = [step.report.report_id for step in recent if isinstance(step, StepRecord)]
        assert reports == ["young"]
        report = encode_report(make_report("strange", clock()))
        for payload in (b"\xff", pb.Step(report=report, command=b"\xff").SerializeToString()):
            strange = Record(5, 0, RecordType.STEP, payload)
            longer = replace(found, records=(*found.records, strange))
            assert isinstance([*read_entries(longer)][-1].content, Unreadable)


def test_the_generated_code_is_that_of_the_messages(tmp_path: Path) -> None:
    name = "tamiyo_jax/storage/records.proto"
    command = [sys.executable, "-m", "grpc_tools.protoc", "-I.", f"--python_out={tmp_path}"]
    subprocess.run([*command, f"--pyi_out={tmp_path}", name], cwd=REPOSITORY, check=True)
    for suffix in ("py", "pyi"):
        generated = f"tamiyo_jax/storage/records_pb2.{suffix}"
        assert (tmp_path / generated).read_text() == (REPOSITORY / generated).read_text()


class RetiringWhileRead(PosixFileSystem):
    """The owner of the directory retires its oldest segment between a listing and a reading."""

    def __init__(self, manager: Manager, clock: Clock) -> None:
        self._retire: Callable[[], None] | None = lambda: retire_all(manager, clock)

    def list(self, directory: Path) -> list[str]:
        names = super().list(directory)
        if self._retire is not None:
            self._retire()
            self._retire = None
        return names


def retire_all(manager: Manager, clock: Clock) -> None:
    clock.now_ns += 48 * 3_600_000_000_000
    manager.compact()


def test_a_journal_can_be_read_while_its_owner_retires_segments(tmp_path: Path) -> None:
    clock = Clock()
    with begin(tmp_path, clock, publishing=False) as manager:
        many(manager, clock, 5)
        before = segments(tmp_path)
        recovered = read_journal(tmp_path, RetiringWhileRead(manager, clock))
        assert not set(before) & set(segments(tmp_path))
        assert recovered.clean
        assert recovered.last_sequence == manager.last_sequence
    with pytest.raises(PersistenceError):
        read_journal(tmp_path / "nowhere")


@pytest.mark.parametrize("durability", ["group", "always"])
@pytest.mark.parametrize("replaced", [False, True])
def test_a_lock_that_lost_its_name_seals_the_journal(
    replaced: bool, durability: str, tmp_path: Path
) -> None:
    clock = Clock()
    manager = begin(tmp_path, clock, durability=durability)
    (tmp_path / "LOCK").unlink()
    if replaced:
        (tmp_path / "LOCK").touch()

    def record() -> None:
        step(manager, clock, "nowhere")
        manager.flush()

    with pytest.raises(PersistenceError, match="LOCK was moved, deleted or replaced"):
        record()
    with pytest.raises(JournalSealedError, match="LOCK"):
        step(manager, clock, "nowhere either")
    with contextlib.suppress(PersistenceError):
        manager.close()


def test_a_relative_run_directory_stays_where_it_was_after_a_change_of_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    with begin(Path("run"), clock) as manager:
        monkeypatch.chdir(tmp_path / "elsewhere")
        many(manager, clock, 60)
        manager.compact()
        digest = manager.store_parameters(b"weights")
        assert manager.load_parameters(digest) == b"weights"
        assert manager.cache_directory == tmp_path / "run" / "cache" / "xla"
    assert len(segments(tmp_path / "run")) > 2
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_by_default_a_run_keeps_every_record_however_old(tmp_path: Path) -> None:
    clock, events = Clock(), []
    config = StorageConfig(flush_ms=1.0)
    for _ in range(2):
        with StorageManager.open(
            tmp_path, config, POLICY_STATE, clock=clock, emit=events.extend
        ) as manager:
            manager.start(manager.state or initial_state(POLICY_STATE))
            many(manager, clock, 10)
            manager.compact()
        clock.now_ns += 10_000 * 3600 * SECOND
    found = read_journal(tmp_path)
    assert [record.type for record in found.records].count(RecordType.STEP) == 20
    assert found.records[0].sequence == 1
    assert events == []


def test_retention_announces_what_it_removes_also_at_opening(tmp_path: Path) -> None:
    clock, events = Clock(), []
    with begin(tmp_path, clock, publishing=False) as manager:
        many(manager, clock, 10)
        last = manager.last_sequence
    clock.now_ns += 60 * SECOND
    config = make_storage_config(flush_ms=1.0)
    with StorageManager.open(
        tmp_path, config, POLICY_STATE, clock=clock, emit=events.extend
    ) as manager:
        assert manager.state is not None
        manager.start(manager.state)
    (event,) = events
    assert event.name == "journal_retention"
    assert event.attributes == {
        "first_sequence": "1",
        "last_sequence": str(last),
        "setting": "retention_hours",
    }
    assert read_journal(tmp_path).records[0].sequence == last + 1


def journal_bytes(directory: Path) -> int:
    return sum(path.stat().st_size for path in segments(directory))


def test_retention_by_size_keeps_the_newest_segments_and_announces_the_others(
    tmp_path: Path,
) -> None:
    clock, events = Clock(), []
    with begin(tmp_path / "all", clock, publishing=False, retention_hours=None) as manager:
        many(manager, clock, 100)
        expected = summarise(manager)
    kept_bytes = 16_384
    config = make_storage_config(
        flush_ms=1.0, retention_hours=None, retention_bytes=kept_bytes, segment_bytes=4096
    )
    with StorageManager.open(
        tmp_path / "some", config, POLICY_STATE, clock=Clock(), emit=events.extend
    ) as manager:
        manager.start(initial_state(POLICY_STATE))
        largest = 0
        for number in range(100):
            step(manager, clock, f"r{number}")
            largest = max(largest, journal_bytes(tmp_path / "some"))
        assert summarise(manager) == expected, "what was removed has no part in the state"
    assert journal_bytes(tmp_path / "all") > 2 * kept_bytes
    assert kept_bytes - 4096 < journal_bytes(tmp_path / "some") <= largest <= kept_bytes + 4096
    found = read_journal(tmp_path / "some")
    assert found.clean
    assert {event.name for event in events} == {"journal_retention"}
    assert {event.attributes["setting"] for event in events} == {"retention_bytes"}
    firsts = [int(event.attributes["first_sequence"]) for event in events]
    lasts = [int(event.attributes["last_sequence"]) for event in events]
    assert firsts == [1, *(last + 1 for last in lasts[:-1])]
    assert found.records[0].sequence == lasts[-1] + 1


def test_retention_by_size_waits_for_a_pending_report_and_is_applied_at_opening(
    tmp_path: Path,
) -> None:
    clock, events = Clock(), []
    limits: dict[str, object] = {"retention_hours": None, "retention_bytes": 1}
    with begin(tmp_path, clock, **limits) as manager:
        step(manager, clock, "first")
        many(manager, clock, 60)
        for number in range(60):
            manager.drop(f"r{number}")
        manager.compact()
        assert int(segments(tmp_path)[0].name[:19]) == 1
        last = manager.last_sequence
    config = make_storage_config(flush_ms=1.0, **limits)
    for publishing in (True, False):  # without a bus no report is pending
        with StorageManager.open(
            tmp_path,
            config,
            POLICY_STATE,
            clock=clock,
            publishing=publishing,
            emit=events.extend,
        ) as manager:
            assert manager.state is not None
            manager.start(manager.state)
            assert len(events) == (not publishing)
    (event,) = events
    assert event.attributes["first_sequence"] == "1"
    assert int(event.attributes["last_sequence"]) > last
    assert len(segments(tmp_path)) == 1, "the newest stays whatever its size"
