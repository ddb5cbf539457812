"""The program of a worker process: ``python -P _start.py FD PARENT MARK``.

It is run by its path and imports nothing of the package until the process is sure to end with its
parent: the package takes seconds to import, and the parent may end meanwhile. A guard, which is a
child in a process group of its own, outlives the worker for as long as it takes to end whatever
the worker has started, which it finds by the mark in the environment, and keeps the log short.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import sys
from pathlib import Path

_SET_PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of prctl(2)
_LOG_LIMIT = 1 << 20  # bytes
_LOG_KEPT = 1 << 16
_GLANCE_MS = 1_000  # between two looks at the log


def _start(parent: int, mark: bytes) -> None:
    """Tie the process to its parent, and a guard to both."""
    ctypes.CDLL(None, use_errno=True).prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGKILL)
    worker, parent_end = os.getpid(), os.pidfd_open(parent)
    if os.getppid() != parent:
        raise SystemExit(0)
    worker_end = os.pidfd_open(worker)
    if os.fork() == 0:
        try:
            _guard(worker, worker_end, parent_end, mark)
        finally:
            os._exit(0)
    os.close(worker_end)
    os.close(parent_end)


def _guard(worker: int, worker_end: int, parent_end: int, mark: bytes) -> None:
    """Wait for the end of worker or parent, and end all that the worker has started."""
    os.setpgid(0, 0)
    _close_others(worker_end, parent_end, sys.stderr.fileno())
    ends = select.poll()
    ends.register(worker_end, select.POLLIN)
    ends.register(parent_end, select.POLLIN)
    while not ends.poll(_GLANCE_MS):
        _shorten(sys.stderr.fileno())
    _kill(worker, group=True)
    for process in Path("/proc").glob("[0-9]*"):
        if int(process.name) != os.getpid() and mark in _environment(process):
            _kill(int(process.name), group=False)


def _close_others(*kept: int) -> None:
    """Let go of what the worker holds, above all of its connection."""
    for name in os.listdir("/proc/self/fd"):
        if int(name) not in kept:
            try:
                os.close(int(name))
            except OSError:
                continue  # it was that of the directory


def _shorten(log: int) -> None:
    """Keep the newest lines of a log that is too long."""
    size = os.fstat(log).st_size
    if size > _LOG_LIMIT:
        kept = os.pread(log, _LOG_KEPT, size - _LOG_KEPT)
        os.ftruncate(log, 0)
        os.write(log, b"(the beginning was cut off)\n" + kept)


def _environment(process: Path) -> list[bytes]:
    try:
        return (process / "environ").read_bytes().split(b"\0")
    except OSError:
        return []  # another user's, or over


def _kill(process: int, *, group: bool) -> None:
    try:
        (os.killpg if group else os.kill)(process, signal.SIGKILL)
    except OSError:
        return  # over


if __name__ == "__main__":
    _start(int(sys.argv[2]), sys.argv[3].encode())
    from tamiyo_jax.workers._main import main

    main()
