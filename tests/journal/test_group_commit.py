"""Who waits for the disk, who does the fsync, and what becomes of both when it fails."""

from __future__ import annotations

import contextlib
import errno
import os
import threading
import time
from pathlib import Path

import pytest
from journal.faults import FaultyFileSystem

from tamiyo_jax.errors import JournalSealedError, PersistenceError
from tamiyo_jax.journal import Journal, PosixFileSystem, RecordType, read_journal
from tamiyo_jax.journal._files import AppendFile, PosixAppendFile
from tamiyo_jax.journal._journal import Durability

STEP = RecordType.STEP


def begin(
    directory: Path, durability: Durability = "group", files: PosixFileSystem | None = None
) -> Journal:
    journal, _ = Journal.open(directory, durability=durability, files=files)
    journal.start(b"state")
    return journal


def test_a_ticket_is_done_when_its_record_is_on_disk(tmp_path: Path) -> None:
    with begin(tmp_path) as journal:
        ticket = journal.append(STEP, b"")
        assert ticket.wait(timeout=10)
        assert ticket.done


def test_always_returns_from_append_only_after_the_fsync(tmp_path: Path) -> None:
    files = FaultyFileSystem()
    with begin(tmp_path, "always", files) as journal:
        before = files.faults.counts["fdatasync"]
        for count in range(1, 5):
            assert journal.append(STEP, b"").done
            assert files.faults.counts["fdatasync"] == before + count


def test_many_appends_share_an_fsync(tmp_path: Path) -> None:
    files = FaultyFileSystem()
    journal, _ = Journal.open(tmp_path, flush_ms=60_000, files=files)
    journal.start(b"state")
    for _ in range(1000):
        journal.append(STEP, b"")
    journal.flush()
    assert files.faults.counts["fdatasync"] <= 4
    journal.close()


def test_threads_that_wait_share_an_fsync(tmp_path: Path) -> None:
    class SlowFile(PosixAppendFile):
        def fdatasync(self) -> None:
            fsyncs.append(threading.current_thread().name)
            time.sleep(0.02)

    class SlowDisk(PosixFileSystem):
        def create(self, path: Path) -> AppendFile:
            return SlowFile(os.open(path, os.O_WRONLY | os.O_CREAT))

    fsyncs: list[str] = []
    with begin(tmp_path, "always", SlowDisk()) as journal:
        fsyncs.clear()
        threads = [
            threading.Thread(target=lambda: [journal.append(STEP, b"") for _ in range(5)])
            for _ in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert journal.synced == 41
    assert 5 <= len(fsyncs) <= 20


def test_a_thread_that_waits_does_the_fsync_itself(tmp_path: Path) -> None:
    class NamingFile(PosixAppendFile):
        def fdatasync(self) -> None:
            names.append(threading.current_thread().name)

    class NamingDisk(PosixFileSystem):
        def create(self, path: Path) -> AppendFile:
            return NamingFile(os.open(path, os.O_WRONLY | os.O_CREAT))

    names: list[str] = []
    with begin(tmp_path, "always", NamingDisk()) as journal:
        for _ in range(10):
            journal.append(STEP, b"")
    assert len(names) >= 10
    assert set(names) == {threading.current_thread().name}


def test_an_fsync_that_a_signal_handler_leaves_seals_the_journal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(_descriptor: int) -> None:
        raise KeyboardInterrupt

    journal = begin(tmp_path, "always")
    monkeypatch.setattr(os, "fdatasync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        journal.append(STEP, b"in doubt")
    monkeypatch.undo()
    with pytest.raises(JournalSealedError, match="interrupted"):
        journal.append(STEP, b"")
    with pytest.raises(PersistenceError, match="outcome unknown"):
        journal.close()


def test_a_sealed_journal_closes_only_after_the_fsync_under_way(tmp_path: Path) -> None:
    class StuckFile(PosixAppendFile):
        def fdatasync(self) -> None:
            if stuck:
                entered.set()
                released.wait(30)
                events.append("fsync ends")

        def close(self) -> None:
            events.append("file closes")
            super().close()

    class StuckDisk(PosixFileSystem):
        def create(self, path: Path) -> AppendFile:
            return StuckFile(os.open(path, os.O_WRONLY | os.O_CREAT))

    stuck: list[bool] = []
    events: list[str] = []
    entered, released = threading.Event(), threading.Event()
    journal = begin(tmp_path, "always", StuckDisk())
    stuck.append(True)
    waiting = threading.Thread(target=lambda: journal.append(STEP, b""))
    waiting.start()
    assert entered.wait(30)
    journal.seal(PersistenceError("something else failed"))
    threading.Timer(0.05, released.set).start()
    with contextlib.suppress(PersistenceError):
        journal.close()
    waiting.join()
    assert events[-2:] == ["fsync ends", "file closes"]


def test_an_idle_flusher_syncs_without_being_asked(tmp_path: Path) -> None:
    with begin(tmp_path) as journal:
        ticket = journal.append(STEP, b"")
        pause = threading.Event()
        assert any(ticket.done or pause.wait(0.01) for _ in range(1000))


def test_a_wait_that_is_too_short_says_so(tmp_path: Path) -> None:
    class StuckFile(PosixAppendFile):
        def fdatasync(self) -> None:
            if journal_started.is_set():
                released.wait(30)

    class StuckDisk(PosixFileSystem):
        def create(self, path: Path) -> AppendFile:
            return StuckFile(os.open(path, os.O_WRONLY | os.O_CREAT))

    journal_started, released = threading.Event(), threading.Event()
    with begin(tmp_path, files=StuckDisk()) as journal:
        journal_started.set()
        assert not journal.append(STEP, b"").wait(timeout=0.01)
        released.set()


def test_after_a_failed_fsync_tickets_fail_and_nothing_is_tried_again(tmp_path: Path) -> None:
    files = FaultyFileSystem()
    journal = begin(tmp_path, files=files)
    kept = journal.append(STEP, b"kept")
    assert kept.wait()
    files.faults.errors["fdatasync"] = errno.EIO
    ticket = journal.append(STEP, b"in doubt")
    with pytest.raises(PersistenceError, match="outcome unknown"):
        ticket.wait(timeout=10)
    files.faults.errors.clear()
    syncs = files.faults.counts["fdatasync"]
    assert kept.wait()
    with pytest.raises(JournalSealedError):
        journal.append(STEP, b"refused")
    with pytest.raises(PersistenceError, match="outcome unknown"):
        journal.close()
    journal.close()
    assert files.faults.counts["fdatasync"] == syncs
    assert b"kept" in [record.payload for record in read_journal(tmp_path).records]


def test_always_reports_a_failed_fsync_from_the_append_itself(tmp_path: Path) -> None:
    files = FaultyFileSystem()
    journal = begin(tmp_path, "always", files)
    files.faults.errors["fdatasync"] = errno.EIO
    with pytest.raises(PersistenceError, match="EIO"):
        journal.append(STEP, b"")
    with pytest.raises(PersistenceError, match="outcome unknown"):
        journal.close()
