"""A renamed file is durable only with its directory."""

from __future__ import annotations

from pathlib import Path

from making import make_packet, open_tamiyo

from tamiyo_jax.journal import Journal, PosixFileSystem


class RecordingFileSystem(PosixFileSystem):
    """The real file system, and in which order it was asked to rename and to sync names."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, Path]] = []

    def rename(self, source: Path, target: Path) -> None:
        super().rename(source, target)
        self.asked.append(("rename", target.parent))

    def fsync_dir(self, directory: Path) -> None:
        super().fsync_dir(directory)
        self.asked.append(("fsync", directory))


def test_after_every_rename_its_directory_is_brought_to_disk(tmp_path: Path) -> None:
    with open_tamiyo(tmp_path) as tamiyo:
        tamiyo.step(make_packet())
    files = RecordingFileSystem()
    journal, _ = Journal.open(tmp_path, files=files)
    journal.start(b"state")
    journal.close()
    renames = [index for index, (what, _) in enumerate(files.asked) if what == "rename"]
    assert renames
    for index in renames:
        assert ("fsync", files.asked[index][1]) in files.asked[index:]
