"""What a reader learns of a run directory's owner from the lock file."""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
from journal.campaign import POLICY_STATE, Clock, make_report, make_step, make_storage_config
from journal.faults import Faults, FaultyFileSystem

from tamiyo_jax.controller import initial_state
from tamiyo_jax.errors import DirectoryLockedError, PersistenceError
from tamiyo_jax.journal import PosixFileSystem
from tamiyo_jax.storage import DirectoryLock, LockState, StorageManager, read_lock


def test_the_holder_is_known_while_it_holds(tmp_path: Path) -> None:
    assert read_lock(tmp_path) == LockState(None, "")
    lock = DirectoryLock(tmp_path, PosixFileSystem())
    assert read_lock(tmp_path) == LockState(os.getpid(), "")
    lock.release()
    assert read_lock(tmp_path) == LockState(None, "")


def test_another_process_is_seen_until_it_is_killed(tmp_path: Path) -> None:
    script = (
        "import sys, pathlib, time; from tamiyo_jax.storage import DirectoryLock; "
        "from tamiyo_jax.journal import PosixFileSystem; "
        "lock = DirectoryLock(pathlib.Path(sys.argv[1]), PosixFileSystem()); "
        "print('held', flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", script, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        assert read_lock(tmp_path).holder == process.pid
        with pytest.raises(DirectoryLockedError) as raised:
            DirectoryLock(tmp_path, PosixFileSystem())
        assert raised.value.pid == process.pid
        process.kill()
    assert read_lock(tmp_path).holder is None


def test_a_note_is_read_until_the_next_owner_and_its_file_never_grows(tmp_path: Path) -> None:
    lock = DirectoryLock(tmp_path, PosixFileSystem())
    size = (tmp_path / "LOCK").stat().st_size
    lock.note_stop("the disk is full " + "ä" * 2000)
    lock.release()
    assert (tmp_path / "LOCK").stat().st_size == size
    assert read_lock(tmp_path).stopped.startswith("the disk is full ä")
    DirectoryLock(tmp_path, PosixFileSystem()).release()
    assert read_lock(tmp_path).stopped == ""


@pytest.mark.parametrize("operation", ["write", "fdatasync"])
def test_a_sealed_journal_leaves_its_reason(tmp_path: Path, operation: str) -> None:
    faults = Faults()
    clock = Clock()
    state = initial_state(POLICY_STATE)
    manager = StorageManager.open(
        tmp_path, make_storage_config(), POLICY_STATE, clock=clock, files=FaultyFileSystem(faults)
    )
    manager.start(state)
    faults.errors[operation] = errno.ENOSPC
    with pytest.raises(PersistenceError):
        manager.append_step(make_step(state, make_report("r", clock())), state).wait()
    with contextlib.suppress(PersistenceError):  # where the outcome of a record is unknown
        manager.close()
    assert "the disk is full" in read_lock(tmp_path).stopped
