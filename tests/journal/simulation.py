"""A file system in memory that knows what a loss of power may leave of it.

Every change is an operation in `SimulatedFileSystem.trace`. What a workload did is a prefix of
its trace wherever the power went, so one run of it has all crash points. `Disk` is what a
machine finds when it comes up again; `Surviving` says which ones are possible:

- of a file, what was there at its last fdatasync; of the writes after it nothing, all, a torn
  first part, or any of them without the others, with zeros or stale bytes in between;
- of a directory, its names at its last fsync, and any subset of the changes after it. A rename
  is atomic: a file that moves is never lost from both of its places.
"""

from __future__ import annotations

import errno
import os
import random
import threading
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

Survival = Literal["lost", "kept", "torn", "scattered"]
SURVIVALS: tuple[Survival, ...] = ("lost", "kept", "torn", "scattered")


class Inode:
    """A file apart from its names; the identity of one."""

    def __init__(self, data: bytes = b"") -> None:
        self.data = bytearray(data)


@dataclass(frozen=True)
class Disk:
    """What is there after the power came back; all of it is durable."""

    files: dict[Path, bytes] = field(default_factory=dict)
    directories: frozenset[Path] = frozenset()


@dataclass(frozen=True)
class Write:
    inode: Inode
    data: bytes


@dataclass(frozen=True)
class Sync:
    inode: Inode


@dataclass(frozen=True)
class Change:
    """A change of names; `source` is None for a new file and `target` for a removal."""

    inode: Inode | None
    source: Path | None
    target: Path | None


@dataclass(frozen=True)
class SyncDirectory:
    directory: Path


@dataclass(frozen=True)
class Overwrite:
    """A file of one sector: any of its contents since it was created may be found."""

    path: Path
    data: bytes


Operation = Write | Sync | Change | SyncDirectory | Overwrite


class SimulatedFile:
    def __init__(self, files: SimulatedFileSystem, inode: Inode) -> None:
        self._files = files
        self._inode = inode

    def write(self, data: bytes) -> None:
        self._files.record(Write(self._inode, data))
        self._inode.data += data

    def fdatasync(self) -> None:
        self._files.record(Sync(self._inode))

    def is_at(self, path: Path) -> bool:
        return self._files.inodes.get(path) is self._inode

    def close(self) -> None:
        pass


class SimulatedFileSystem:
    """A `FileSystem` that begins with a disk and keeps a trace of every change."""

    def __init__(self, disk: Disk | None = None) -> None:
        self.disk = Disk() if disk is None else disk
        self.trace: list[Operation] = []
        self.inodes = {path: Inode(data) for path, data in self.disk.files.items()}
        self.initial_inodes = dict(self.inodes)
        self._directories = set(self.disk.directories)
        self._lock = threading.Lock()

    def record(self, operation: Operation) -> None:
        with self._lock:
            self.trace.append(operation)

    def image(self) -> Disk:
        """What is there while the power stays on."""
        files = {path: bytes(inode.data) for path, inode in self.inodes.items()}
        return Disk(files, frozenset(self._directories))

    def list(self, directory: Path) -> list[str]:
        self._must_exist(directory)
        return [path.name for path in self.inodes if path.parent == directory]

    def size(self, path: Path) -> int:
        self._must_exist(path)
        return len(self.inodes[path].data)

    def read(self, path: Path) -> bytes:
        self._must_exist(path)
        return bytes(self.inodes[path].data)

    def create(self, path: Path) -> SimulatedFile:
        self._must_exist(path.parent)
        if path in self.inodes:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), path)
        inode = self.inodes[path] = Inode()
        self.record(Change(inode, None, path))
        return SimulatedFile(self, inode)

    def overwrite(self, path: Path, data: bytes) -> None:
        self.inodes[path] = Inode(data)
        self.record(Overwrite(path, data))

    def rename(self, source: Path, target: Path) -> None:
        self._must_exist(source)
        self._must_exist(target.parent)
        inode = self.inodes[target] = self.inodes.pop(source)
        self.record(Change(inode, source, target))

    def unlink(self, path: Path) -> None:
        self._must_exist(path)
        self.record(Change(self.inodes.pop(path), path, None))

    def mkdir(self, directory: Path) -> None:
        if directory not in self._directories:
            self._directories.add(directory)
            self.record(Change(None, None, directory))

    def fsync_dir(self, directory: Path) -> None:
        self.record(SyncDirectory(directory))

    def _must_exist(self, path: Path) -> None:
        if path not in self.inodes and path not in self._directories:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)


class Surviving:
    """The disks that are possible after the operations given to `perform`."""

    def __init__(self, files: SimulatedFileSystem) -> None:
        self._names: dict[Path, Inode | None] = dict(files.initial_inodes)
        self._names.update(dict.fromkeys(files.disk.directories))
        self._changes: list[Change] = []
        self._durable = {
            inode: files.disk.files[path] for path, inode in files.initial_inodes.items()
        }
        self._unsynced: dict[Inode, list[bytes]] = {}
        self._overwritten: dict[Path, list[bytes]] = {}

    def perform(self, operation: Operation) -> None:
        match operation:
            case Write(inode, data):
                self._unsynced.setdefault(inode, []).append(data)
            case Sync(inode):
                written = b"".join(self._unsynced.pop(inode, ()))
                self._durable[inode] = self._durable.get(inode, b"") + written
            case Overwrite(path, data):
                self._overwritten.setdefault(path, []).append(data)
            case Change():
                self._changes.append(operation)
            case SyncDirectory(directory):
                done = [change for change in self._changes if _touches(change, directory)]
                self._changes = [c for c in self._changes if not _touches(c, directory)]
                for change in done:
                    _apply(change, self._names)

    def disk(self, survival: Survival, chance: random.Random) -> Disk:
        """One of the possible disks."""
        names = dict(self._names)
        for change in self._changes:
            if survival == "kept" or (survival != "lost" and chance.random() < 0.5):
                _apply(change, names)
                if survival != "kept" and _crosses(change) and chance.random() < 0.3:
                    _apply(replace(change, source=None, target=change.source), names)
        directories = {path for path, inode in names.items() if inode is None}
        files = {
            path: self._content(inode, survival, chance)
            for path, inode in names.items()
            if inode is not None and path.parent in directories
        }
        for path, contents in self._overwritten.items():
            if survival == "kept":
                files[path] = contents[-1]
            elif survival != "lost" and chance.random() < 0.7:
                files[path] = chance.choice(contents)
        return Disk(files, frozenset(directories))

    def _content(self, inode: Inode, survival: Survival, chance: random.Random) -> bytes:
        durable = self._durable.get(inode, b"")
        writes = self._unsynced.get(inode, [])
        match survival:
            case "lost":
                return durable
            case "kept":
                return durable + b"".join(writes)
            case "torn":
                written = b"".join(writes)
                return durable + written[: chance.randint(0, len(written))]
            case "scattered":
                pieces = [_scattered(data, chance) for data in writes]
                return durable + b"".join(pieces[: chance.randint(0, len(pieces))])


def _scattered(data: bytes, chance: random.Random) -> bytes:
    """What may stand where `data` was written, as long as it."""
    at = chance.randint(0, len(data))
    rest = len(data) - at
    return chance.choice(
        (
            data,
            bytes(len(data)),
            data[:at] + bytes(rest),
            bytes(at) + data[at:],
            data[:at] + chance.randbytes(rest),
        )
    )


def _touches(change: Change, directory: Path) -> bool:
    return any(path and path.parent == directory for path in (change.source, change.target))


def _crosses(change: Change) -> bool:
    """Whether it is a rename to another directory, whose old name may be removed too late."""
    return bool(change.source and change.target and change.source.parent != change.target.parent)


def _apply(change: Change, names: dict[Path, Inode | None]) -> None:
    if change.source is not None:
        names.pop(change.source, None)
    if change.target is not None:
        names[change.target] = change.inode
