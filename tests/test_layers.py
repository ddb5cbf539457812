"""The house: imports run downwards, and what is public is what the design says."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import tamiyo_jax

PACKAGE = Path(tamiyo_jax.__file__).parent

# The one table of the rule: what a room may import besides itself, config and errors.
MAY_IMPORT = {
    "errors": set(),
    "config": set(),
    "contracts": set(),
    "graph": {"contracts"},
    "policy": {"graph", "contracts"},
    "risk": {"contracts"},
    "controller": {"graph", "policy", "risk", "contracts"},
    "storage": {"controller", "contracts", "graph"},
    "runtime": {"controller", "storage", "contracts", "graph", "policy", "risk"},
    "host": {"contracts", "graph"},
    "loop": {
        "task",
        "host",
        "runtime",
        "storage",
        "controller",
        "policy",
        "risk",
        "graph",
        "contracts",
    },
    "plug": {"host", "runtime", "contracts"},
    "task": {"host", "contracts"},
    "digits": {"task", "host", "contracts"},
    "conformance": {"policy", "risk", "graph", "contracts"},
}
FREE = {"errors", "config"}
TOP = {"cli", "demo", "__init__", "__main__"}


def room_of(path: Path) -> str:
    first = path.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py")


def imported_rooms(path: Path) -> set[str]:
    rooms: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names: list[str] = []
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names = [node.module or ""]
            if node.module == "tamiyo_jax":
                names = [f"tamiyo_jax.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        rooms |= {name.split(".")[1] for name in names if name.startswith("tamiyo_jax.")}
    return rooms


SOURCES = sorted(path for path in PACKAGE.rglob("*.py") if not path.name.endswith("_pb2.py"))


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_run_downwards(path: Path) -> None:
    room = room_of(path)
    if room in TOP:
        return
    allowed = MAY_IMPORT[room] | {room} | FREE
    assert imported_rooms(path) <= allowed


def test_every_room_stands_in_the_table() -> None:
    assert {room_of(path) for path in SOURCES} <= set(MAY_IMPORT) | TOP


def test_no_room_imports_in_a_circle() -> None:
    settled: set[str] = set()
    waiting = dict(MAY_IMPORT)
    while waiting:
        ready = {room for room, needs in waiting.items() if needs <= settled}
        assert ready, f"a circle among {sorted(waiting)}"
        settled |= ready
        waiting = {room: needs for room, needs in waiting.items() if room not in ready}


def test_the_public_names_are_the_twelve_of_the_design() -> None:
    assert sorted(tamiyo_jax.__all__) == [
        "AdaptationCommand",
        "Blueprint",
        "CommandType",
        "Decision",
        "SeedStage",
        "SeedState",
        "SystemStatePacket",
        "Tamiyo",
        "TamiyoConfig",
        "TamiyoError",
        "TamiyoState",
        "__version__",
    ]
    for name in tamiyo_jax.__all__:
        assert hasattr(tamiyo_jax, name)


def test_only_the_shell_reads_clock_environment_and_files() -> None:
    core = {"contracts", "graph", "policy", "risk", "controller"}
    forbidden = {"time", "os", "random", "uuid", "datetime", "socket", "subprocess", "threading"}
    for path in SOURCES:
        if room_of(path) not in core:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names = {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                names = {(node.module or "").split(".")[0]}
            else:
                continue
            assert not names & forbidden, f"{path} imports {names & forbidden}"
