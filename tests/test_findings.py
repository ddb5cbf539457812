"""What a review of an earlier controller found, as behaviour that must not come back.

`docs/findings.md` says for each finding where it is met and which test shows it.
"""

from __future__ import annotations

import ast
import errno
import inspect
import os
import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from making import SECRET, make_blueprint, make_config, make_packet, open_tamiyo, story
from troubles import sleep, trouble_metrics

import tamiyo_jax
from tamiyo_jax.contracts import (
    Blueprint,
    CircuitBreakerState,
    FieldReport,
    PolicyUpdate,
    ReportOutcome,
    Secret,
    TelemetryLevel,
    sign_update,
)
from tamiyo_jax.controller import state_to_json
from tamiyo_jax.errors import (
    CircuitOpenError,
    DeadlineExceededError,
    InvalidReportError,
    MissingBlueprintIdError,
    MissingFeatureError,
    PersistenceError,
)
from tamiyo_jax.graph import schema_digest
from tamiyo_jax.policy import params_to_bytes
from tamiyo_jax.runtime import (
    Decision,
    MemoryBlueprintLibrary,
    MemoryBus,
    MemorySink,
    SqliteBlueprintLibrary,
    Tamiyo,
)
from tamiyo_jax.storage import Journal, StepRecord, encode_step, read_entries, read_journal
from tamiyo_jax.storage.files import PosixFileSystem

PACKAGE = Path(tamiyo_jax.__file__).parent
TESTS = Path(__file__).parent
PAGE = TESTS.parent / "docs" / "findings.md"
FINDINGS = 32

# A host that the package brings along; it names the slots that it builds, and may number them.
HOSTS = {"digits.py"}

SOURCES = {
    str(path.relative_to(PACKAGE)): ast.parse(path.read_text())
    for path in sorted(PACKAGE.rglob("*.py"))
    if not path.name.endswith("_pb2.py")
}


def nodes(kind: type, *rooms: str) -> Iterator[tuple[str, ast.AST]]:
    """Every node of `kind` in the package, or in some of its rooms, with its file."""
    for name, tree in SOURCES.items():
        if not rooms or name.startswith(rooms):
            yield from ((name, node) for node in ast.walk(tree) if isinstance(node, kind))


def dotted(node: ast.AST) -> str:
    return ast.unparse(node) if isinstance(node, ast.Attribute | ast.Name) else ""


def imports(*rooms: str) -> Iterator[tuple[str, str]]:
    for name, node in nodes(ast.Import, *rooms):
        yield from ((name, alias.name) for alias in node.names)
    yield from ((name, node.module or "") for name, node in nodes(ast.ImportFrom, *rooms))


def critical(sink: MemorySink) -> list[str]:
    return [one.name for one in sink.events if one.level is TelemetryLevel.CRITICAL]


# Ids


def test_no_placeholder_id_stands_anywhere_in_the_package() -> None:
    invented = re.compile(r"\b(bp|blueprint|seed|run|packet)-(unknown|demo|default|none|\d+)\b")
    found = [
        (name, node.value)
        for name, node in nodes(ast.Constant)
        if isinstance(node.value, str) and invented.search(node.value) and name not in HOSTS
    ]
    assert found == []


def test_blueprint_identity_is_never_taken_from_packet_or_run(tmp_path: Path) -> None:
    packet = make_packet(blueprint_id="", packet_id="host", training_run_id="host")
    with open_tamiyo(tmp_path) as tamiyo, pytest.raises(MissingBlueprintIdError):
        tamiyo.step(packet)


# Failures


def test_every_handler_of_all_exceptions_raises() -> None:
    broad = {"", "Exception", "BaseException"}
    handlers = [
        (name, handler)
        for name, handler in nodes(ast.ExceptHandler)
        if handler.type is None or broad & set(re.findall(r"\w+", ast.unparse(handler.type)))
    ]
    going_on = [name for name, one in handlers if not isinstance(one.body[-1], ast.Raise)]
    # A worker sends the error home, where it is raised (tests/runtime/test_worker.py).
    assert going_on == ["runtime/worker_main.py"]


def test_there_is_no_fallback_device() -> None:
    chosen = {"device_put", "devices", "local_devices", "default_device", "default_backend", "to"}
    found = [
        (name, dotted(node.func))
        for name, node in nodes(ast.Call, "graph", "policy", "controller")
        if dotted(node.func).rpartition(".")[2] in chosen
    ]
    assert found == []


class SlowLibrary(MemoryBlueprintLibrary):
    """A library that answers each question late."""

    def get(self, blueprint_id: str) -> Blueprint | None:
        time.sleep(0.02)
        return super().get(blueprint_id)


def test_late_blueprints_are_an_error_and_never_a_pause(tmp_path: Path) -> None:
    library, sink = SlowLibrary(), MemorySink()
    for name in ("host", "grow-a", "grow-b"):
        library.put(make_blueprint(name))
    config = make_config(deadlines={"metadata_ms": 5.0, "inference_ms": 60_000.0})
    with open_tamiyo(tmp_path, library=library, sinks=(sink,), config=config) as tamiyo:
        with pytest.raises(DeadlineExceededError, match=r"metadata_ms") as raised:
            tamiyo.step(make_packet())
        assert raised.value.stage == "metadata"
        assert tamiyo.state.risk.metadata.failures == 1
        assert tamiyo.state.risk.metadata.state is CircuitBreakerState.CLOSED
        assert tamiyo.state.steps == 0
    assert critical(sink) == ["step_failed"]


@pytest.mark.slow
def test_timeouts_escalate_and_never_pause(tmp_path: Path) -> None:
    sink = MemorySink()
    hung = make_packet(1, training_metrics=trouble_metrics(sleep))
    with open_tamiyo(
        tmp_path,
        policy="troubles:Troubled",
        isolation="process",
        clock=time.time_ns,
        sinks=(sink,),
        config=make_config(
            deadlines={"inference_ms": 300.0, "metadata_ms": 60_000.0, "spares": 2},
            breakers={"failures": 2, "cooldown_ms": 60_000.0},
        ),
    ) as tamiyo:
        tamiyo.step(make_packet())
        until_warm(tamiyo, 3)
        before = tamiyo.state
        for _ in range(2):
            with pytest.raises(DeadlineExceededError, match="its worker was ended"):
                tamiyo.step(hung)
        with pytest.raises(CircuitOpenError):
            tamiyo.step(hung)
        assert tamiyo.state.risk.inference.state is CircuitBreakerState.OPEN
        assert tamiyo.state.risk.conservative is not None
        assert (tamiyo.state.steps, tamiyo.state.failures) == (1, before.failures + 3)
        until_warm(tamiyo, 3)  # those that were ended have been replaced
    assert critical(sink) == ["step_failed", "step_failed", "breaker_event", "step_failed"]
    _, *failed = steps_on_record(tmp_path)
    assert [one.report.outcome for one in failed] == [ReportOutcome.ABORTED] * 3
    assert [(one.action, one.command) for one in failed] == [("", None)] * 3


def until_warm(tamiyo: Tamiyo, workers: int) -> None:
    deadline = time.monotonic() + 60.0
    while len(tamiyo._steps.seat.runner.pool.pids()) < workers:  # type: ignore[attr-defined]
        assert time.monotonic() < deadline, "no worker took the place of another"
        time.sleep(0.01)


def steps_on_record(directory: Path) -> list[StepRecord]:
    entries = read_entries(read_journal(directory))
    return [entry.content for entry in entries if isinstance(entry.content, StepRecord)]


def test_a_write_that_fails_is_told_and_raised_and_the_state_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int, data: memoryview) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    sink = MemorySink()
    with open_tamiyo(tmp_path, sinks=(sink,)) as tamiyo:
        assert tamiyo.step(make_packet()).ticket.wait()
        before = state_to_json(tamiyo.state)
        with monkeypatch.context() as disk:
            disk.setattr(os, "write", full)
            with pytest.raises(PersistenceError, match="disk is full"):
                tamiyo.step(make_packet(1))
        assert state_to_json(tamiyo.state) == before
        with pytest.raises(PersistenceError):
            tamiyo.step(make_packet(2))
    assert critical(sink)[0] == "persistence_failure"
    with open_tamiyo(tmp_path) as tamiyo:
        assert state_to_json(tamiyo.state) == before


def test_what_is_not_measured_is_told_and_what_is_required_stops_the_step(tmp_path: Path) -> None:
    sink = MemorySink()
    packet = make_packet()
    metrics = dict(packet.training_metrics)
    del metrics["gradient_norm"]
    with open_tamiyo(tmp_path, sinks=(sink,)) as tamiyo:
        tamiyo.step(packet)
        seeds = tuple(replace(seed, gradient_norm=None) for seed in packet.seeds)
        decision = tamiyo.step(make_packet(1, seeds=seeds))
        (event,) = [one for one in decision.events if one.name == "feature_missing"]
        assert event.attributes == {"features": "seed.gradient_norm"}
        with pytest.raises(MissingFeatureError, match=r"global\.gradient_norm"):
            tamiyo.step(make_packet(2, training_metrics=metrics))
    assert critical(sink) == ["step_failed"]


def test_a_report_without_its_time_is_not_written() -> None:
    report = FieldReport("report", "", "run", "", "host", ReportOutcome.NEUTRAL, None)
    with pytest.raises(InvalidReportError, match="never age out") as raised:
        encode_step(StepRecord(report=report, action="WAIT", mode="act", state="{}"))
    assert raised.value.field == "issued_at_ns"


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


# What is kept


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
    assert {"storage/files.py", "storage/lock.py", "storage/manager.py"} <= modules
    assert {module for module in modules if not module.startswith("storage/")} == set()
    kept = {"LOCK", "journal", "policies", "quarantine", "cache"}
    assert {path.name for path in run.iterdir()} == kept


def test_one_manager_owns_the_run_directory() -> None:
    makers = {
        (dotted(node.func), name)
        for name, node in nodes(ast.Call)
        if dotted(node.func) in ("DirectoryLock", "Journal.open", "StorageManager.open")
        or ast.unparse(node.func) == "StorageManager[Any].open"
    }
    assert {name for _, name in makers} == {
        "storage/manager.py",
        "runtime/assembly.py",  # for a controller
        "cli/compaction.py",  # for a directory that nobody uses
    }


def test_the_cache_follows_change_notifications_and_nothing_else(tmp_path: Path) -> None:
    library = SqliteBlueprintLibrary(tmp_path / "blueprints.db")
    for name in ("host", "grow-a", "grow-b"):
        library.put(make_blueprint(name))
    elsewhere = SqliteBlueprintLibrary(tmp_path / "blueprints.db")
    with open_tamiyo(tmp_path / "run", library=library) as tamiyo:
        listener = tamiyo._parts.resolver._listener

        def fetched_by(step: int) -> int:
            before = listener.cache.misses
            tamiyo.step(make_packet(step))
            return listener.cache.misses - before

        assert [fetched_by(step) for step in range(3)] == [3, 0, 0]
        revision = elsewhere.put(make_blueprint("grow-a", risk=0.4))
        deadline = time.monotonic() + 10.0
        while listener.cache.watermark < revision:
            assert time.monotonic() < deadline, "the change was never heard"
            time.sleep(0.005)
        assert [fetched_by(step) for step in range(3, 5)] == [1, 0]
        assert listener.cache.entries["grow-a"].blueprint.revision == revision
        assert listener.cache.entries["host"].blueprint.revision == 1


# The one door


def test_step_is_the_only_way_to_a_decision() -> None:
    ways = [
        name
        for name, method in inspect.getmembers(Tamiyo, inspect.isfunction)
        if not name.startswith("_")
        and inspect.get_annotations(method, eval_str=False).get("return") == Decision.__name__
    ]
    assert ways == ["step"]
    assert list(inspect.signature(Tamiyo.step).parameters) == ["self", "packet"]
    assert not [name for name in dir(Tamiyo) if "epoch" in name]


def test_no_thread_pool_pretends_to_cancel_work() -> None:
    assert [found for found in imports() if found[1].startswith("concurrent")] == []
    cancelled = [name for name, node in nodes(ast.Attribute) if node.attr == "cancel"]
    assert cancelled == []


# Settings


def test_the_environment_is_read_while_opening_and_by_load_alone() -> None:
    loaders = {name for name, module in imports() if module == "pydantic_settings"}
    assert loaders == {"config/sources.py"}
    readers = {
        name
        for name, node in nodes(ast.Attribute)
        if node.attr in ("environ", "environb", "getenv") and dotted(node.value) == "os"
    }
    # `config show` looks whether the secret is set, which is not part of any controller.
    assert readers == {
        "runtime/assembly.py",
        "runtime/worker.py",
        "config/sources.py",
        "cli/config.py",
    }
    inside = {
        (name, function.name)
        for name, function in nodes(ast.FunctionDef, "runtime")
        if "os.environ" in ast.unparse(function)
    }
    assert inside == {
        ("runtime/assembly.py", "resolve_secrets"),
        ("runtime/worker.py", "worker_environment"),
    }
    callers = {
        (name, function.name)
        for name, function in nodes(ast.FunctionDef, "runtime")
        for call in ast.walk(function)
        if isinstance(call, ast.Call)
        and dotted(call.func) in ("resolve_secrets", "worker_environment")
    }
    opening = {("runtime/service.py", "open"), ("runtime/assembly.py", "assemble")}
    assert callers <= opening | {("runtime/assembly.py", "_metadata_pool")}


def test_no_part_makes_a_configuration_of_its_own() -> None:
    rooms = ("graph", "policy", "risk", "controller", "storage", "runtime")
    made = [
        name
        for name, node in nodes(ast.Call, *rooms)
        if dotted(node.func) in ("TamiyoConfig", "TamiyoConfig.load")
    ]
    assert made == []


# What the package says about itself


def test_docstrings_describe_this_package_and_no_other_design() -> None:
    other = re.compile(r"(?i)prototype|legacy|backlog|(detailed|full) design|design doc|docs/\w+/")
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    found = [
        (name, text)
        for kind in documented
        for name, node in nodes(kind)
        if (text := ast.get_docstring(node)) and other.search(text)
    ]
    assert found == []


# The page


def rows() -> list[list[str]]:
    lines = [line for line in PAGE.read_text().splitlines() if re.match(r"\| \d+ \|", line)]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def existing_tests() -> set[str]:
    return {
        node.name
        for path in TESTS.rglob("test_*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    }


def test_the_page_has_a_row_for_every_finding() -> None:
    assert [int(row[0]) for row in rows()] == list(range(1, FINDINGS + 1))
    assert {row[-1] for row in rows()} == {"met"}


def test_every_test_that_the_page_names_exists() -> None:
    known = existing_tests()
    for row in rows():
        named = re.findall(r"`(test_\w+)`", row[3])
        assert named, f"finding {row[0]} is met but no test shows it"
        assert set(named) <= known, f"finding {row[0]}: {set(named) - known}"


def test_every_module_that_the_page_names_exists() -> None:
    for row in rows():
        for module in re.findall(r"`([\w/]+\.py)`", row[2]):
            assert (PACKAGE / module).is_file(), f"finding {row[0]}: {module}"
