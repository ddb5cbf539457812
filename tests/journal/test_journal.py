"""What the journal promises about records, through crashes, full disks and damage."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from journal.faults import FaultyFileSystem

from tamiyo_jax.errors import JournalSealedError, PersistenceError
from tamiyo_jax.journal import (
    Hole,
    Journal,
    PosixFileSystem,
    RecordType,
    Recovered,
    Scar,
    Ticket,
    read_journal,
)
from tamiyo_jax.journal._frames import FRAME_MAGIC
from tamiyo_jax.journal._journal import Durability

STEP = RecordType.STEP


def begin(
    directory: Path, durability: Durability = "group", files: PosixFileSystem | None = None
) -> Journal:
    journal, _ = Journal.open(directory, durability=durability, files=files)
    journal.start(b"state")
    return journal


def steps(recovered: Recovered) -> list[bytes]:
    return [record.payload for record in recovered.records if record.type is STEP]


def segments(directory: Path) -> list[Path]:
    return sorted((directory / "journal").iterdir())


def damage(path: Path, quote: bytes) -> None:
    """Flip the first byte of a quotation in a file."""
    data = bytearray(path.read_bytes())
    data[data.index(quote)] ^= 0xFF
    path.write_bytes(bytes(data))


@settings(max_examples=20)
@given(sessions=st.lists(st.lists(st.binary(max_size=50), max_size=5), max_size=4))
def test_every_reopening_finds_all_that_was_ever_appended(
    sessions: list[list[bytes]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    directory = tmp_path_factory.mktemp("run")
    expected: list[bytes] = []
    for session in sessions:
        with begin(directory) as journal:
            for payload in session:
                journal.append(STEP, payload)
        expected += session
        found = read_journal(directory)
        assert steps(found) == expected
        assert found.clean
        assert found.replay[0].type is RecordType.SNAPSHOT
        assert [r.payload for r in found.replay[1:]] == session


def test_records_are_numbered_from_one_and_on_through_reopenings(tmp_path: Path) -> None:
    with begin(tmp_path) as journal:
        assert journal.last_sequence == 1
        assert journal.append(STEP, b"").sequence == 2
    with begin(tmp_path) as journal:
        assert journal.append(STEP, b"").sequence == 4


def test_frames_say_what_was_durable_when_they_were_written(tmp_path: Path) -> None:
    with begin(tmp_path) as journal:
        journal.append(STEP, b"a").wait()
        journal.append(STEP, b"b")
    assert [record.synced for record in read_journal(tmp_path).records] == [0, 1, 2]


def test_appends_of_several_threads_are_all_kept(tmp_path: Path) -> None:
    tickets: list[Ticket] = []
    with begin(tmp_path) as journal:

        def work() -> None:
            tickets.extend([journal.append(STEP, b"x" * n) for n in range(200)])

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(ticket.sequence for ticket in tickets) == list(range(2, 802))
    assert len(steps(read_journal(tmp_path))) == 800


def test_short_writes_are_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole_write = os.write

    def short_write(descriptor: int, data: memoryview) -> int:
        return whole_write(descriptor, data[:7])

    with begin(tmp_path) as journal, monkeypatch.context() as short:
        short.setattr(os, "write", short_write)
        journal.append(STEP, b"a payload of more than seven bytes")
    assert steps(read_journal(tmp_path)) == [b"a payload of more than seven bytes"]


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EROFS])
def test_a_failed_write_seals_the_journal_and_loses_nothing_on_disk(
    code: int, tmp_path: Path
) -> None:
    files = FaultyFileSystem()
    journal = begin(tmp_path, files=files)
    journal.append(STEP, b"kept").wait()
    files.faults.errors["write"], files.faults.half_written = code, True
    with pytest.raises(PersistenceError, match=errno.errorcode[code]) as failure:
        journal.append(STEP, b"failed")
    assert failure.value.errno == code
    assert not isinstance(failure.value, JournalSealedError)
    files.faults.errors.clear()
    with pytest.raises(JournalSealedError, match=errno.errorcode[code]):
        journal.append(STEP, b"refused")
    journal.close()
    _, found = Journal.open(tmp_path)
    assert steps(found) == [b"kept"]
    assert found.corrupt == ()


def test_a_full_disk_is_called_by_its_name(tmp_path: Path) -> None:
    files = FaultyFileSystem()
    journal = begin(tmp_path, files=files)
    files.faults.errors["write"] = errno.ENOSPC
    with pytest.raises(PersistenceError, match="disk is full"):
        journal.append(STEP, b"")
    journal.close()


def test_an_append_that_a_signal_handler_leaves_seals_the_journal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(_descriptor: int, _data: bytes) -> int:
        raise KeyboardInterrupt

    with begin(tmp_path) as journal:
        monkeypatch.setattr(os, "write", interrupted)
        with pytest.raises(KeyboardInterrupt):
            journal.append(STEP, b"")
        monkeypatch.undo()
        with pytest.raises(JournalSealedError, match="interrupted"):
            journal.append(STEP, b"")


def test_a_record_that_is_too_large_changes_nothing(tmp_path: Path) -> None:
    with begin(tmp_path) as journal:
        with pytest.raises(PersistenceError, match="exceeds the limit"):
            journal.append(STEP, bytes(2**24 + 1))
        assert journal.append(STEP, b"next").sequence == 2


@pytest.mark.parametrize(
    "operation", ["list", "read", "mkdir", "create", "write", "fdatasync", "rename", "unlink"]
)
def test_an_opening_that_fails_anywhere_loses_nothing(operation: str, tmp_path: Path) -> None:
    with begin(tmp_path) as journal:
        journal.append(STEP, b"kept")
    files = FaultyFileSystem()
    files.faults.errors[operation] = errno.EIO
    with pytest.raises(PersistenceError, match="EIO"):
        Journal.open(tmp_path, files=files)
    journal = begin(tmp_path)
    journal.append(STEP, b"next")
    journal.close()
    assert steps(read_journal(tmp_path)) == [b"kept", b"next"]
    assert read_journal(tmp_path).clean


@pytest.mark.parametrize("operation", ["create", "write", "fdatasync", "rename", "fsync_dir"])
def test_a_start_that_fails_seals_the_journal(operation: str, tmp_path: Path) -> None:
    files = FaultyFileSystem()
    journal, _ = Journal.open(tmp_path, files=files)
    files.faults.errors[operation] = errno.ENOSPC
    with pytest.raises(PersistenceError, match="disk is full"):
        journal.start(b"state")
    with pytest.raises(JournalSealedError):
        journal.append(STEP, b"")
    journal.close()
    begin(tmp_path).close()


def test_misuse_is_named(tmp_path: Path) -> None:
    journal, _ = Journal.open(tmp_path)
    with pytest.raises(PersistenceError, match="call start first"):
        journal.append(STEP, b"")
    journal.start(b"state")
    with pytest.raises(PersistenceError, match="started before"):
        journal.start(b"state")
    journal.close()
    with pytest.raises(PersistenceError, match="closed"):
        journal.append(STEP, b"")


def test_a_torn_end_is_cut_off_and_its_numbers_are_given_again(tmp_path: Path) -> None:
    files = FaultyFileSystem()
    journal = begin(tmp_path, files=files)
    journal.append(STEP, b"first").wait()
    files.faults.errors["write"] = errno.EIO
    files.faults.half_written = True
    with pytest.raises(PersistenceError, match="EIO"):
        journal.append(STEP, b"second")
    with contextlib.suppress(PersistenceError):
        journal.close()
    journal, found = Journal.open(tmp_path)
    assert (steps(found), found.corrupt, len(found.torn)) == ([b"first"], (), 1)
    journal.start(b"state")
    assert journal.last_sequence == 3
    journal.close()
    assert read_journal(tmp_path).clean
    assert list((tmp_path / "quarantine").iterdir()) == []


def test_corruption_is_reported_quarantined_and_does_not_alarm_again(tmp_path: Path) -> None:
    for session in (b"early", b"later"):
        with begin(tmp_path) as journal:
            for name in (b"one", b"two", b"three"):
                journal.append(STEP, session + b" " + name).wait()
    path = segments(tmp_path)[0]
    damage(path, b"early two")
    damaged = path.read_bytes()

    journal, found = Journal.open(tmp_path)
    assert b"early two" not in steps(found)
    assert len(steps(found)) == 5
    scar, hole = found.corrupt
    assert isinstance(scar, Scar)
    assert scar.segment == path.name
    assert hole == Hole(3, 3)
    assert (tmp_path / "quarantine" / path.name).read_bytes() == damaged

    journal.close()
    journal, found = Journal.open(tmp_path)
    assert found.corrupt == (hole,), "the alarm stands until start has put it on record"
    journal.start(b"state")
    journal.close()
    found = read_journal(tmp_path)
    assert found.clean
    assert len(steps(found)) == 5


def test_strict_refuses_corruption_and_touches_nothing(tmp_path: Path) -> None:
    with begin(tmp_path) as journal:
        for payload in (b"one", b"two", b"three"):
            journal.append(STEP, payload).wait()
    damage(segments(tmp_path)[0], b"one")
    before = {path: path.read_bytes() for path in segments(tmp_path)}
    with pytest.raises(PersistenceError, match="is corrupt") as refusal:
        Journal.open(tmp_path, recovery="strict")
    assert refusal.value.corrupt
    assert {path: path.read_bytes() for path in segments(tmp_path)} == before


def test_the_last_segment_is_on_disk_afresh_before_anything_is_appended(tmp_path: Path) -> None:
    with begin(tmp_path) as journal:
        journal.append(STEP, b"kept")
    (old,) = segments(tmp_path)
    Journal.open(tmp_path)
    (new,) = segments(tmp_path)
    assert new.name != old.name
    assert steps(read_journal(tmp_path)) == [b"kept"]


def flip(data: bytes, position: int) -> bytes:
    return data[:position] + bytes([data[position] ^ 0xFF]) + data[position + 1 :]


def cut(data: bytes, position: int) -> bytes:
    return data[:position]


def delete(data: bytes, position: int) -> bytes:
    return data[:position] + data[position + 1 :]


@pytest.mark.parametrize("damaging", [flip, cut, delete])
def test_a_log_damaged_at_any_byte_opens_and_goes_on(
    damaging: Callable[[bytes, int], bytes], tmp_path: Path
) -> None:
    original = tmp_path / "original"
    original.mkdir()
    with begin(original) as journal:
        for payload in (b"one", b"two"):
            journal.append(STEP, payload)
    (path,) = segments(original)
    data = path.read_bytes()
    first_record_ends = data.index(b"state") + len(b"state") + 4
    for position in range(first_record_ends, len(data)):
        directory = tmp_path / str(position)
        (directory / "journal").mkdir(parents=True)
        (directory / "journal" / path.name).write_bytes(damaging(data, position))
        with begin(directory) as journal:
            journal.append(STEP, b"next")
        found = read_journal(directory)
        assert found.clean
        survivors = set(steps(found))
        assert survivors <= {b"one", b"two", b"next"}
        assert b"next" in survivors
        assert damaging is cut or len(survivors) >= 2


_CHILD = """
import sys
from pathlib import Path
from tamiyo_jax.journal import Journal, RecordType

journal, _ = Journal.open(Path(sys.argv[1]))
journal.start(b"state")
while True:
    ticket = journal.append(RecordType.STEP, b"payload " * 20)
    sys.stdout.write(f"{ticket.sequence}\\n")
    sys.stdout.flush()
"""


@pytest.mark.parametrize("lines", [1, 5000])
def test_a_killed_process_leaves_every_record_whose_append_returned(
    lines: int, tmp_path: Path
) -> None:
    command = [sys.executable, "-c", _CHILD, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        returned = [int(child.stdout.readline()) for _ in range(lines)]
        child.send_signal(signal.SIGKILL)
        returned += [int(line) for line in child.stdout.read().split("\n")[:-1]]
    _, found = Journal.open(tmp_path)
    assert found.corrupt == ()
    assert {record.sequence for record in found.records} >= set(returned)
    assert found.last_sequence - returned[-1] <= 1


def cut_last_frame(directory: Path) -> None:
    path = segments(directory)[-1]
    data = path.read_bytes()
    path.write_bytes(data[: data.rindex(FRAME_MAGIC)])


def delete_last_segment(directory: Path) -> None:
    segments(directory)[-1].unlink()


def delete_all_segments(directory: Path) -> None:
    for path in segments(directory):
        path.unlink()


@pytest.mark.parametrize("durability", ["group", "always"])
@pytest.mark.parametrize("lose", [cut_last_frame, delete_last_segment, delete_all_segments])
def test_a_journal_that_lost_its_synced_end_is_corrupt_and_says_what_is_missing(
    lose: Callable[[Path], None], durability: Durability, tmp_path: Path
) -> None:
    last = 0
    for _ in range(2):
        with begin(tmp_path, durability) as journal:
            for number in range(3):
                journal.append(STEP, b"%d" % number)
            last = journal.last_sequence
    lose(tmp_path)
    found = read_journal(tmp_path)
    (hole,) = found.corrupt
    assert isinstance(hole, Hole)
    assert hole.last == last
    with pytest.raises(PersistenceError, match="missing"):
        Journal.open(tmp_path, recovery="strict")
    journal, again = Journal.open(tmp_path)
    assert again.corrupt == found.corrupt
    journal.start(b"state")
    assert journal.append(STEP, b"next").sequence > last
    journal.close()
    assert read_journal(tmp_path).clean


def test_a_journal_without_an_anchor_or_with_an_unreadable_one_opens(tmp_path: Path) -> None:
    for damage_anchor in (Path.unlink, lambda path: path.write_bytes(b"9" * 29)):
        with begin(tmp_path) as journal:
            journal.append(STEP, b"a")
        damage_anchor(tmp_path / "SYNCED")
        assert read_journal(tmp_path).clean


def move_segment(directory: Path) -> None:
    path = segments(directory)[-1]
    path.rename(path.with_suffix(".moved"))


def replace_segment(directory: Path) -> None:
    path = segments(directory)[-1]
    data = path.read_bytes()
    path.unlink()
    path.write_bytes(data)


def move_directory(directory: Path) -> None:
    directory.rename(directory.with_name("elsewhere"))


@pytest.mark.parametrize(
    "move", [move_segment, replace_segment, move_directory, delete_all_segments]
)
def test_a_segment_that_lost_its_name_seals_the_journal(
    move: Callable[[Path], None], tmp_path: Path
) -> None:
    directory = tmp_path / "run"
    directory.mkdir()
    journal = begin(directory, "always")
    journal.append(STEP, b"on disk")
    move(directory)
    with pytest.raises(PersistenceError, match="moved or deleted"):
        journal.append(STEP, b"nowhere")
    with pytest.raises(JournalSealedError, match="moved or deleted"):
        journal.append(STEP, b"nowhere either")
    with contextlib.suppress(PersistenceError):
        journal.close()


_FORK = """
import os, sys
from pathlib import Path
from tamiyo_jax.errors import ForkedProcessError
from tamiyo_jax.journal import Journal, RecordType

journal, _ = Journal.open(Path(sys.argv[1]))
journal.start(b"state")
for _ in range(2):
    journal.append(RecordType.STEP, b"parent")
    child = os.fork()
    if child == 0:
        for call in (lambda: journal.append(RecordType.STEP, b"child"), journal.flush):
            try:
                call()
            except ForkedProcessError as error:
                assert error.pid == os.getpid() and error.owner == os.getppid()
            else:
                os._exit(1)
        journal.close()
        sys.exit(0)
    _, status = os.waitpid(child, 0)
    assert status == 0, status
journal.append(RecordType.STEP, b"parent")
journal.close()
"""


@pytest.mark.slow
def test_a_forked_child_is_refused_and_leaves_the_journal_alone(tmp_path: Path) -> None:
    command = [sys.executable, "-c", _FORK, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    found = read_journal(tmp_path)
    assert found.clean
    assert steps(found) == [b"parent"] * 3


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOTSUP])
def test_a_file_system_that_cannot_sync_directories_is_named_with_the_choice(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.fsync

    def fsync(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(code, os.strerror(code))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(PersistenceError, match="set storage") as raised:
        begin(tmp_path)
    assert raised.value.action == "fsync of a directory"
    assert "mounted at /" in str(raised.value)
    with begin(tmp_path, files=PosixFileSystem(sync_directories=False)) as journal:
        journal.append(STEP, b"a")
    assert steps(read_journal(tmp_path)) == [b"a"]
