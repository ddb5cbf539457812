"""The append-only log of a run, with a single writer.

A journal is opened (which reads and repairs it), started with a snapshot of the recovered state,
appended to, rotated by its owner when a segment is full, and closed. The first write or fsync
that fails seals it: the kernel may have dropped the data, so nothing is retried, and the next
opening reads what is on disk.
"""

from __future__ import annotations

import os
from itertools import pairwise
from typing import TYPE_CHECKING, Literal, Self
from zlib import crc32

from tamiyo_jax.errors import PersistenceError
from tamiyo_jax.journal._anchor import read_anchor, write_anchor
from tamiyo_jax.journal._files import FileSystem, PosixFileSystem
from tamiyo_jax.journal._frames import Record, RecordType, encode_frame, frame_bytes
from tamiyo_jax.journal._group_commit import GroupCommit, Ticket
from tamiyo_jax.journal._recovery import Recovered, encode_repair, merge, plan_rewrites
from tamiyo_jax.journal._scanning import SALT_BYTES, segment_name
from tamiyo_jax.journal._segments import (
    discard_unfinished,
    read_segments,
    replace_segments,
    segment_names,
    translate_errors,
    write_segment,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

__all__ = ["Durability", "Journal", "RecoveryMode"]

Durability = Literal["group", "always"]
RecoveryMode = Literal["repair", "strict"]


class Journal:
    """The log of one run directory; safe to share between threads, not between processes.

    The caller holds the lock of the run directory. Made by `Journal.open`.
    """

    def __init__(
        self,
        directory: Path,
        *,
        durability: Durability,
        flush_ms: float,
        files: FileSystem,
        salt_source: Callable[[int], bytes],
        recovered: Recovered,
        segments: dict[int, str],
        check_owner: Callable[[], None],
    ) -> None:
        self._directory = directory
        self._check_owner = check_owner
        self._path: Path | None = None
        self._durability = durability
        self._files = files
        self._salt_source = salt_source
        self._recovered: Recovered | None = recovered
        self._commit = GroupCommit(
            directory, recovered.last_sequence, flush_ms, self._confirm_synced
        )
        self._lock = self._commit.lock
        self._segments = segments
        self._head_bytes = self._segment_bytes = 0
        self._seed = 0

    @classmethod
    def open(
        cls,
        directory: Path,
        *,
        durability: Durability = "group",
        flush_ms: float = 5.0,
        recovery: RecoveryMode = "repair",
        files: FileSystem | None = None,
        salt_source: Callable[[int], bytes] = os.urandom,
        check_owner: Callable[[], None] = lambda: None,
    ) -> tuple[Self, Recovered]:
        """Read the journal of a run directory and rewrite damaged segments.

        Segments with invalid bytes, and always the last segment, are rewritten and fsynced;
        those with corrupt bytes move to ``quarantine/``. The remaining holes are reported
        at every opening until `start` has recorded them.

        Args:
          directory: the run directory, which exists; ``journal/`` and ``quarantine/`` are in it.
          durability: ``"group"`` lets `append` return after the write, ``"always"`` once the
            record is on disk.
          flush_ms: milliseconds between two fsyncs when no thread waits.
          recovery: ``"repair"`` continues after corruption, ``"strict"`` raises.
          files: the file system, by default that of the operating system.
          salt_source: random bytes for the salts of new segments.
          check_owner: called after each sync; raises `PersistenceError` if the run directory
            no longer belongs to the caller.

        Returns:
          The journal, on which `start` must be called next, and what was read.

        Raises:
          PersistenceError: the disk failed; a newer version wrote the journal; no readable
            SNAPSHOT or RESTORE is left; or something is corrupt and `recovery` is ``"strict"``.
        """
        files = PosixFileSystem() if files is None else files
        home, quarantine = directory / "journal", directory / "quarantine"
        with translate_errors("opening the journal", home):
            for child in (home, quarantine):
                files.mkdir(child)
            files.fsync_dir(directory)
            anchor = read_anchor(directory, files)
            segments = read_segments(home, segment_names(home, files), files)
            recovered = merge(segments, anchor)
            if recovery == "strict" and recovered.corrupt:
                raise PersistenceError(
                    f"{home} is corrupt in {len(recovered.corrupt)} places, among them:"
                    f" {recovered.corrupt[0]}; open it with recovery='repair' to quarantine them"
                    " and go on",
                    corrupt=recovered.corrupt,
                )
            discard_unfinished(home, files)
            names = {segment.base: segment.name for segment in segments}
            for rewrite in plan_rewrites(segments, recovered):
                salt = salt_source(SALT_BYTES)
                replace_segments(rewrite, home, quarantine, salt, files)
                names[rewrite.base] = segment_name(salt, rewrite.base)
        journal = cls(
            home,
            durability=durability,
            flush_ms=flush_ms,
            files=files,
            salt_source=salt_source,
            recovered=recovered,
            segments=dict(sorted(names.items())),
            check_owner=check_owner,
        )
        return journal, recovered

    @property
    def synced(self) -> int:
        """The highest sequence known to be on disk."""
        return self._commit.synced

    @property
    def last_sequence(self) -> int:
        """The highest sequence handed out."""
        return self._commit.written

    @property
    def bases(self) -> tuple[int, ...]:
        """The base sequences of the segments, ascending; the last one is appended to."""
        with self._lock:
            return tuple(self._segments)

    def measure_segment(self, base: int) -> int:
        """The size in bytes of the segment that begins at `base`, one of `bases`.

        Raises:
          PersistenceError: the disk failed, and the journal is sealed.
        """
        with self._lock:
            if base == next(reversed(self._segments)):
                return self._segment_bytes
            with self._commit.seal_on_failure("measuring a segment"):
                return self._files.size(self._directory / self._segments[base])

    def start(self, snapshot: bytes) -> None:
        """Begin a segment with a SNAPSHOT; only then can records be appended.

        The holes that recovery found follow as a REPAIR record in the same fsync: they are
        reported at every opening before that and never afterwards.

        Raises:
          PersistenceError: the disk failed, and the journal is sealed; or the journal was
            started before.
        """
        with self._lock:
            recovered = self._recovered
            if self._commit.failure is not None or self._commit.closing or recovered is None:
                raise self._commit.make_refusal()
            base = recovered.last_sequence + 1
            records = [Record(base, base - 1, RecordType.SNAPSHOT, snapshot)]
            if recovered.missing:
                repair = encode_repair(recovered.missing)
                records.append(Record(base + 1, base - 1, RecordType.REPAIR, repair))
            with self._commit.seal_on_failure("beginning a segment"):
                self._begin_segment(records)
                self._recovered = None
                if self._durability == "group":
                    self._commit.start_flusher()

    @property
    def failure(self) -> PersistenceError | None:
        """What sealed the journal; None while it is not."""
        return self._commit.failure

    def has_room(self, payload: bytes, segment_bytes: int) -> bool:
        """Whether a record with this payload fits into a segment of `segment_bytes`.

        Always true while the snapshot that begins the segment takes up more than half of it, so
        that a large snapshot does not cause a rotation for each record.
        """
        size = self._segment_bytes + frame_bytes(payload)
        return size <= segment_bytes or size <= 2 * self._head_bytes

    def rotate(self, snapshot: bytes) -> None:
        """Continue in a new segment that begins with a SNAPSHOT of the state after the last record.

        The current segment is synced first, and the new one is on disk before it is used.

        Raises:
          PersistenceError: the disk failed, and the journal is sealed.
          JournalSealedError: an earlier write or fsync failed.
        """
        while True:
            with self._lock:
                self._commit.require_open()
            self.flush()
            with self._lock:
                old = self._commit.require_open()
                synced = self._commit.synced
                if synced < self._commit.written:
                    continue
                # Everything is on disk, so no thread is in an fsync of the old file.
                with self._commit.seal_on_failure("beginning a segment"):
                    self._begin_segment([Record(synced + 1, synced, RecordType.SNAPSHOT, snapshot)])
                    old.close()
                return

    def retire(self, before: int) -> None:
        """Remove the segments, oldest first, whose records are all below sequence `before`.

        The segment that is appended to stays. Each removal is on disk before the next begins, so
        that a crash leaves a log without holes.

        Raises:
          PersistenceError: the disk failed, and the journal is sealed.
          JournalSealedError: an earlier write or fsync failed.
        """
        with self._lock:
            self._commit.require_open()
            bases = list(self._segments)
            for base, following in pairwise(bases):
                if following > before:
                    break
                with self._commit.seal_on_failure("removing a segment"):
                    self._files.unlink(self._directory / self._segments[base])
                    self._files.fsync_dir(self._directory)
                    del self._segments[base]

    def append(self, record_type: RecordType, payload: bytes) -> Ticket:
        """Write a record; it survives the death of the process once this returns.

        Raises:
          PersistenceError: the write failed, which seals the journal (`errno` says why); with
            durability ``"always"`` also if the fsync did; or the payload is too large, which
            changes nothing.
          JournalSealedError: an earlier write or fsync failed.
        """
        commit = self._commit
        commit.process.check()
        with self._lock:
            file = commit.require_open()
            sequence = commit.written + 1
            frame = encode_frame(Record(sequence, commit.synced, record_type, payload), self._seed)
            try:
                file.write(frame)
                self._segment_bytes += len(frame)
                commit.note_written(sequence)
            except BaseException as error:
                commit.seal_after(error, "appending a record")
                raise
        ticket = Ticket(sequence, commit)
        if self._durability == "always":
            ticket.wait()
        return ticket

    def flush(self) -> None:
        """Wait until everything appended so far is on disk.

        Raises:
          PersistenceError: the journal was sealed before that.
        """
        self._commit.wait(self._commit.written)

    def close(self) -> None:
        """Wait until everything is on disk and release the file; closing twice is harmless.

        Raises:
          PersistenceError: the journal was sealed with records of unknown outcome.
        """
        self._commit.close()

    def seal(self, cause: PersistenceError) -> None:
        """Refuse every further record because of a failure outside the journal; see `append`."""
        with self._lock:
            self._commit.fail(cause)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _begin_segment(self, records: list[Record]) -> None:
        """Continue in a new, durable segment with `records`; the lock is held."""
        base = records[0].sequence
        salt = self._salt_source(SALT_BYTES)
        file, size = write_segment(self._directory, salt, base, records, self._files)
        self._seed = crc32(salt)
        self._segments[base] = segment_name(salt, base)
        self._head_bytes = self._segment_bytes = size
        try:
            self._commit.continue_in(file, records[-1].sequence)
        except BaseException:
            file.close()
            raise
        self._path = self._directory / self._segments[base]

    def _confirm_synced(self, sequence: int) -> None:
        """Check that what was synced still has its name, and note how far the log is on disk.

        Raises:
          PersistenceError: the segment or the lock was moved or deleted.
          OSError: the anchor cannot be written.
        """
        file = self._commit.file
        if file is not None and self._path is not None and not file.is_at(self._path):
            raise PersistenceError(
                f"{self._path} was moved or deleted while the run was using it; records since the"
                " last sync may be lost. Restore the run directory and open it again",
                path=str(self._path),
                sequence=sequence,
            )
        self._check_owner()
        write_anchor(self._directory.parent, sequence, self._files)
