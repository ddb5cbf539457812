"""Who holds a run directory, found without taking its lock."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["lock_of"]

_LOCKS = Path("/proc/locks")


def lock_of(home: Path) -> tuple[int | None, str]:
    """The process that holds a run directory, and why its journal takes no more records.

    The kernel's list of locks says it. Taking the lock to see whether it is free would turn
    away an owner that opens the directory at that moment.

    Args:
      home: the directory that holds the lock file.

    Returns:
      The process id, None where no process of this machine holds it; and the reason, empty
      where there is none.
    """
    try:
        status = (home / "LOCK").stat()
        written = (home / "LOCK").read_text(errors="replace").strip(" \0\n")
        locks = _LOCKS.read_text()
    except OSError:
        return None, ""
    owner, _, stopped = written.partition("\n")
    device = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}"
    for line in locks.splitlines():
        kind, _, _, pid, inode = line.replace("-> ", "").split()[1:6]
        names = (f"{device}:{status.st_ino}", f":{status.st_ino}" if pid == owner.strip() else "\0")
        if kind == "FLOCK" and inode.endswith(names):
            return int(pid), stopped.strip()
    return None, stopped.strip()
