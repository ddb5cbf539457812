"""Storage alone writes to the run directory of a controller."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from making import SECRET, make_config, open_tamiyo, story

import tamiyo_jax
from tamiyo_jax.bus import MemoryBus
from tamiyo_jax.contracts import PolicyUpdate, Secret, sign_update
from tamiyo_jax.graph import schema_digest
from tamiyo_jax.policy import params_to_bytes
from tamiyo_jax.telemetry import MemorySink

PACKAGE = Path(tamiyo_jax.__file__).parent


@contextmanager
def writes(directory: Path) -> Iterator[set[str]]:
    """The modules of the package that write in a directory, found out where they do."""
    modules: set[str] = set()
    _watched[directory] = modules
    _listen_for_writes()
    try:
        yield modules
    finally:
        del _watched[directory]


_watched: dict[Path, set[str]] = {}
_NAMES_CHANGED = {"os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.truncate", "os.link"}


@cache
def _listen_for_writes() -> None:
    sys.addaudithook(_note_writes)  # stays for as long as the process


def _note_writes(event: str, arguments: tuple[Any, ...]) -> None:
    if not _watched or event not in {"open", *_NAMES_CHANGED}:
        return
    if event == "open" and not (arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
        return
    path = Path(os.fsdecode(arguments[0])) if isinstance(arguments[0], str | bytes | Path) else None
    for directory, modules in _watched.items():
        if path is not None and path.is_relative_to(directory):
            modules.add(_module_that_asked())


def _module_that_asked() -> str:
    frame = sys._getframe(2)
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if path.is_relative_to(PACKAGE):
            return str(path.relative_to(PACKAGE))
        frame = frame.f_back
    return "none of the package"


def test_storage_alone_writes_to_the_run_directory(tmp_path: Path) -> None:
    config = make_config(storage={"segment_bytes": 64 * 1024, "observation_window_epochs": 3})
    update = PolicyUpdate("p1", "elsewhere", time.time_ns(), "v1", b"", schema_digest())
    update = sign_update(replace(update, payload=params_to_bytes({})), Secret(SECRET))
    run, sink = tmp_path / "run", MemorySink()
    arguments: dict[str, Any] = {"config": config, "bus": MemoryBus(), "sinks": (sink,)}
    with writes(run) as modules:
        for _ in range(2):
            with open_tamiyo(run, **arguments, clock=time.time_ns) as tamiyo:
                for packet in story(40):
                    tamiyo.step(packet)
                tamiyo.publish()
                tamiyo.set_conservative(True, "by hand")
                if not tamiyo.state.policies:
                    tamiyo.update_policy(update)
                tamiyo.restore(tamiyo.state)
        assert len(list((run / "journal").iterdir())) > 2
    assert {"journal/_files.py", "storage/_lock.py", "storage/_manager.py"} <= modules
    assert {
        module for module in modules if not module.startswith(("storage/", "journal/"))
    } == set()
    kept = {"LOCK", "SYNCED", "journal", "policies", "quarantine", "cache", "workers"}
    assert {path.name for path in run.iterdir()} == kept
