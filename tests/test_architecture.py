"""The house: who imports whom, what is public, and what no file may do."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

import tamiyo_jax
from tamiyo_jax.decision import Decision
from tamiyo_jax.service import Tamiyo

PACKAGE = Path(tamiyo_jax.__file__).parent

# The one table of the rule, from the top of the house to its foundation: what a room may import
# besides itself, `config` and `errors`. A row names only rooms below it.
MAY_IMPORT = {
    "learn": {
        *("replay", "library", "storage", "host", "growth", "policy", "graph", "contracts"),
        *("_digests", "_orbax"),
    },
    "training": {
        *("serving", "service", "library", "expansion", "host", "growth", "decision"),
        *("contracts", "clock"),
    },
    "serving": {
        *("service", "bus", "decision", "risk", "contracts", "_redis_client", "clock"),
    },
    "service": {
        *("telemetry", "bus", "inference", "library", "workers", "decision", "storage", "journal"),
        *("controller", "policy", "risk", "contracts", "clock"),
    },
    "replay": {
        *("report", "inference", "library", "storage", "journal", "controller", "policy"),
        *("risk", "contracts", "clock"),
    },
    "report": {"storage", "journal", "contracts"},
    "telemetry": {"bus", "decision", "journal", "controller", "contracts"},
    "bus": {"storage", "journal", "contracts", "_redis_client"},
    "inference": {"workers", "storage", "controller", "policy", "graph", "contracts", "_digests"},
    "library": {"workers", "graph", "contracts", "_redis_client"},
    "workers": {"contracts"},
    "decision": {"journal", "contracts"},
    "storage": {"journal", "controller", "graph", "contracts", "_digests", "_orbax"},
    "journal": set(),
    "expansion": {"host"},
    "host": {"growth", "contracts", "_digests", "_orbax"},
    "growth": {"contracts"},
    "conformance": {"policy", "risk", "graph", "contracts"},
    "controller": {"policy", "risk", "graph", "contracts"},
    "risk": {"contracts"},
    "policy": {"graph", "contracts"},
    "graph": {"contracts"},
    "contracts": set(),
    "config": set(),
    "errors": set(),
    "_digests": set(),
    "_orbax": set(),
    "_redis_client": set(),
    "clock": set(),
}
FREE = {"errors", "config"}
SHELL = ("service", "inference", "workers", "library", "bus", "telemetry", "replay", "clock")
TOP = {"cli", "demo", "__init__", "__main__"}
LARGEST_SHARE = 0.12  # of the package's lines, in one room


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


def test_a_row_of_the_table_names_only_rooms_below_it() -> None:
    rooms = list(MAY_IMPORT)
    for position, room in enumerate(rooms):
        assert MAY_IMPORT[room] <= set(rooms[position + 1 :]), room


def test_other_rooms_are_entered_by_their_face() -> None:
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("tamiyo_jax."):
                _, room, *inside = str(node.module).split(".")
                assert not inside or room == room_of(path), f"{path} imports {node.module}"


def test_modules_of_a_room_are_private_so_that_no_name_hides_one() -> None:
    inside = [path for path in SOURCES if path.parent != PACKAGE]
    public = [path for path in inside if not path.name.startswith("_")]
    assert public == []
    for room in sorted({path.parent.name for path in inside} - {"cli"}):
        face = importlib.import_module(f"tamiyo_jax.{room}")
        assert face.__doc__, room
        assert face.__all__ == sorted(face.__all__, key=by_kind), room
        assert all(not inspect.ismodule(getattr(face, name)) for name in face.__all__), room


def by_kind(name: str) -> tuple[bool, bool, str]:
    """Constants, then classes, then functions, as the linter sorts them."""
    return (not name.isupper(), not name[0].isupper(), name)


def test_no_room_holds_more_than_its_share_of_the_package() -> None:
    lines: Counter[str] = Counter()
    for path in SOURCES:
        lines[room_of(path)] += len(path.read_text().splitlines())
    limit = LARGEST_SHARE * lines.total()
    assert {room: count for room, count in lines.items() if count > limit} == {}


def test_the_public_names_are_fourteen() -> None:
    assert sorted(tamiyo_jax.__all__) == [
        "AdaptationCommand",
        "Blueprint",
        "CommandType",
        "Decision",
        "Plug",
        "SeedStage",
        "SeedState",
        "SystemStatePacket",
        "Tamiyo",
        "TamiyoConfig",
        "TamiyoError",
        "TamiyoState",
        "__version__",
        "connect",
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


# A host that the package brings along; it names the slots that it builds, and may number them.
HOSTS = {"demo/_digits.py"}

TREES = {
    str(path.relative_to(PACKAGE)): ast.parse(path.read_text())
    for path in sorted(PACKAGE.rglob("*.py"))
    if not path.name.endswith("_pb2.py")
}


def nodes(kind: type, *rooms: str) -> Iterator[tuple[str, ast.AST]]:
    """Every node of `kind` in the package, or in some of its rooms, with its file."""
    for name, tree in TREES.items():
        if not rooms or name.startswith(rooms):
            yield from ((name, node) for node in ast.walk(tree) if isinstance(node, kind))


def dotted(node: ast.AST) -> str:
    return ast.unparse(node) if isinstance(node, ast.Attribute | ast.Name) else ""


def imports(*rooms: str) -> Iterator[tuple[str, str]]:
    for name, node in nodes(ast.Import, *rooms):
        yield from ((name, alias.name) for alias in node.names)
    yield from ((name, node.module or "") for name, node in nodes(ast.ImportFrom, *rooms))


def test_no_placeholder_id_stands_anywhere_in_the_package() -> None:
    invented = re.compile(r"\b(bp|blueprint|seed|run|packet)-(unknown|demo|default|none|\d+)\b")
    found = [
        (name, node.value)
        for name, node in nodes(ast.Constant)
        if isinstance(node.value, str) and invented.search(node.value) and name not in HOSTS
    ]
    assert found == []


def test_every_handler_of_all_exceptions_raises() -> None:
    broad = {"", "Exception", "BaseException"}
    handlers = [
        (name, handler)
        for name, handler in nodes(ast.ExceptHandler)
        if handler.type is None or broad & set(re.findall(r"\w+", ast.unparse(handler.type)))
    ]
    going_on = [name for name, handler in handlers if not isinstance(handler.body[-1], ast.Raise)]
    # A worker sends the error home, where it is raised (tests/workers/test_worker.py); a program
    # that cannot be built is an error where it is taken (tests/expansion/test_ahead.py); an error
    # of Orbax is raised in the thread of the caller (tests/host/test_checkpoints.py).
    assert going_on == ["_orbax.py", "expansion/_ahead.py", "workers/_main.py"]


def test_there_is_no_fallback_device() -> None:
    chosen = {"device_put", "devices", "local_devices", "default_device", "default_backend", "to"}
    found = [
        (name, dotted(node.func))
        for name, node in nodes(ast.Call, "graph", "policy", "controller")
        if dotted(node.func).rpartition(".")[2] in chosen
    ]
    assert found == []


def test_one_manager_owns_the_run_directory() -> None:
    makers = {
        (dotted(node.func), name)
        for name, node in nodes(ast.Call)
        if dotted(node.func) in ("DirectoryLock", "Journal.open", "StorageManager.open")
        or ast.unparse(node.func) == "StorageManager[Any].open"
    }
    assert {name for _, name in makers} == {
        "storage/_manager.py",
        "service/_assembly.py",  # for a controller
        "service/_fleet.py",  # for each of many runs
        "cli/_compaction.py",  # for a directory that no process uses
    }


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


def test_the_environment_is_read_while_opening_and_by_load_alone() -> None:
    loaders = {name for name, module in imports() if module == "pydantic_settings"}
    assert loaders == {"config/_sources.py"}
    readers = {
        name
        for name, node in nodes(ast.Attribute)
        if node.attr in ("environ", "environb", "getenv") and dotted(node.value) == "os"
    }
    # `config show` looks whether the secret is set, which is not part of any controller.
    assert readers == {
        "service/_assembly.py",
        "workers/_worker.py",
        "config/_sources.py",
        "cli/_config.py",
        "cli/_serve.py",  # the secret from which those of runs are derived
    }
    inside = {
        (name, function.name)
        for name, function in nodes(ast.FunctionDef, *SHELL)
        if "os.environ" in ast.unparse(function)
    }
    assert inside == {
        ("service/_assembly.py", "resolve_secrets"),
        ("workers/_worker.py", "worker_environment"),
    }
    callers = {
        (name, function.name)
        for name, function in nodes(ast.FunctionDef, *SHELL)
        for call in ast.walk(function)
        if isinstance(call, ast.Call)
        and dotted(call.func) in ("resolve_secrets", "worker_environment")
    }
    opening = {("service/_service.py", "open"), ("service/_assembly.py", "assemble")}
    assert callers <= opening | {("service/_assembly.py", "_metadata_pool")}


def test_no_part_makes_a_configuration_of_its_own() -> None:
    rooms = ("graph", "policy", "risk", "controller", "storage", "journal", *SHELL)
    made = [
        name
        for name, node in nodes(ast.Call, *rooms)
        if dotted(node.func) in ("TamiyoConfig", "TamiyoConfig.load")
    ]
    assert made == []


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
