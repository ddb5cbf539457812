"""A disk that fails: the journal is sealed, says why, and has lost nothing it acknowledged."""

from __future__ import annotations

import contextlib
import errno
import resource
import subprocess
from collections.abc import Iterator
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
)
from journal.faults import Faults, FaultyFileSystem

from tamiyo_jax.controller import initial_state
from tamiyo_jax.errors import JournalSealedError, PersistenceError
from tamiyo_jax.journal import FileSystem
from tamiyo_jax.storage import StorageManager

OTHER_CODES = [errno.ENOSPC, errno.EDQUOT, errno.EROFS]
CODES = [errno.EIO, *(pytest.param(code, marks=pytest.mark.slow) for code in OTHER_CODES)]
Manager = StorageManager[np.ndarray]


def open_manager(directory: Path, clock: Clock, files: FileSystem | None = None) -> Manager:
    config = make_storage_config()
    return StorageManager.open(
        directory, config, POLICY_STATE, clock=clock, publishing=True, files=files
    )


def step(manager: Manager, clock: Clock, name: str = "") -> int:
    """A step that is on disk once this returns."""
    assert manager.state is not None
    after = stepped(manager.state)
    clock.now_ns += SECOND
    report = make_report(f"{name}{clock.now_ns}", clock.now_ns)
    ticket = manager.append_step(make_step(after, report), after)
    ticket.wait()
    return ticket.sequence


def work(manager: Manager, clock: Clock, acknowledged: list[int]) -> None:
    """A little of everything that touches the disk, rotation and retention included."""
    manager.start(manager.state or initial_state(POLICY_STATE))
    for _ in range(2):
        acknowledged.append(step(manager, clock))
    digest = manager.store_parameters(b"weights")
    assert manager.state is not None
    manager.append_policy_update(digest[:8], digest, "v2", manager.state).wait()
    for report_id in manager.facts.pending:
        manager.acknowledge(report_id)
    manager.flush()
    clock.now_ns += 60 * SECOND
    acknowledged.clear()  # all of them are old and published now, so they may go
    manager.compact()
    acknowledged.append(step(manager, clock))


def prepare(directory: Path, clock: Clock) -> None:
    with open_manager(directory, clock) as manager:
        work(manager, clock, [])


def count_operations(directory: Path) -> int:
    files, clock = FaultyFileSystem(), Clock()
    prepare(directory, clock)
    with open_manager(directory, clock, files) as manager:
        work(manager, clock, [])
    return files.faults.total


def attempt(
    directory: Path, clock: Clock, faults: Faults, acknowledged: list[int]
) -> tuple[Manager | None, PersistenceError | None]:
    """Open and work until something fails; the manager if it was opened, and the failure."""
    manager = None
    try:
        manager = open_manager(directory, clock, FaultyFileSystem(faults))
        work(manager, clock, acknowledged)
    except PersistenceError as error:
        return manager, error
    return manager, None


@pytest.mark.parametrize("code", CODES, ids=errno.errorcode.get)
def test_any_operation_may_fail_and_nothing_acknowledged_is_lost(code: int, tmp_path: Path) -> None:
    for fail_at in range(count_operations(tmp_path / "sound")):
        directory, clock = tmp_path / str(fail_at), Clock()
        prepare(directory, clock)
        faults = Faults(fail_at, code)
        faults.half_written = True
        acknowledged: list[int] = []
        manager, failure = attempt(directory, clock, faults, acknowledged)
        assert failure is not None, fail_at
        assert errno.errorcode[code] in str(failure)
        assert failure.errno == code
        if manager is not None:
            with pytest.raises(JournalSealedError, match=errno.errorcode[code]):
                manager.append_operator("refused", "", initial_state(POLICY_STATE))
            with contextlib.suppress(PersistenceError):
                manager.close()
        with open_manager(directory, clock) as reopened:
            found = {record.sequence for record in reopened.recovered.records}
            assert found.issuperset(acknowledged), fail_at
            assert reopened.recovered.corrupt == ()
            work(reopened, clock, [])


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 256 KiB."""
    mounted = tmp_path / "disk"
    mounted.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=256k", "tamiyo-test", str(mounted)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        pytest.skip(f"a tmpfs may not be mounted here: {result.stderr.strip()}")
    try:
        yield mounted
    finally:
        subprocess.run(["umount", str(mounted)], check=True)


def fill(manager: Manager, clock: Clock) -> tuple[list[int], PersistenceError]:
    """Append until the disk refuses; what was acknowledged, and the refusal."""
    acknowledged: list[int] = []
    try:
        while True:
            acknowledged.append(step(manager, clock))  # pending, so retention lets nothing go
    except PersistenceError as error:
        return acknowledged, error


def check_refusal(manager: Manager, acknowledged: list[int], refusal: PersistenceError) -> None:
    assert len(acknowledged) > 5
    assert not isinstance(refusal, JournalSealedError)
    with pytest.raises(JournalSealedError):
        manager.compact()
    with contextlib.suppress(PersistenceError):
        manager.close()


def test_a_disk_that_is_really_full_seals_and_there_is_a_way_back(small_disk: Path) -> None:
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(128 * 1024))
    directory, clock = small_disk / "run", Clock()
    manager = open_manager(directory, clock)
    manager.start(initial_state(POLICY_STATE))
    acknowledged, refusal = fill(manager, clock)
    assert "disk is full" in str(refusal)
    check_refusal(manager, acknowledged, refusal)
    with pytest.raises(PersistenceError, match="disk is full"):
        open_manager(directory, clock).start(initial_state(POLICY_STATE))
    ballast.unlink()
    with open_manager(directory, clock) as reopened:
        assert {r.sequence for r in reopened.recovered.records}.issuperset(acknowledged)
        assert reopened.recovered.corrupt == ()
        assert reopened.state is not None
        reopened.start(reopened.state)
        step(reopened, clock)


def test_a_file_that_may_not_grow_seals_and_there_is_a_way_back(tmp_path: Path) -> None:
    clock = Clock(EPOCH)
    manager = open_manager(tmp_path, clock)
    manager.start(initial_state(POLICY_STATE))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    acknowledged = [step(manager, clock) for _ in range(6)]
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
    try:
        more, refusal = fill(manager, clock)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "EFBIG" in str(refusal)
    check_refusal(manager, acknowledged + more, refusal)
    with open_manager(tmp_path, clock) as reopened:
        found = {record.sequence for record in reopened.recovered.records}
        assert found.issuperset(acknowledged + more)
        assert reopened.recovered.corrupt == ()
