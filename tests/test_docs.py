"""The pages say what the code says, wherever that can be looked up."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from making import make_packet, make_seed, open_tamiyo

import tamiyo_jax
from tamiyo_jax.bus import MemoryBus
from tamiyo_jax.telemetry import MemorySink

PACKAGE = Path(tamiyo_jax.__file__).parent
DOCS = Path(__file__).parents[1] / "docs"
FINDINGS = DOCS / "findings.md"
TELEMETRY = (DOCS / "telemetry.md").read_text(encoding="utf-8")

# What only a worker process measures; tests of its own look at it.
OF_WORKERS = {
    f"tamiyo.{worker}.{figure}"
    for worker in ("worker", "metadata_worker")
    for figure in ("restarts", "spares_ready")
}


def first_cells(heading: str) -> list[str]:
    """Names in the first column of the table under a header of the page on telemetry."""
    _, _, table = TELEMETRY.partition(f"| {heading} |")
    rows = table.partition("\n\n")[0].splitlines()[2:]
    return [name for row in rows for name in re.findall(r"`([^`]+)`", row.split("|")[1])]


def snippets() -> Iterator[str]:
    for page in sorted(DOCS.glob("*.md")):
        yield from re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)


def test_the_documented_metrics_are_those_that_a_step_sends(tmp_path: Path) -> None:
    sink = MemorySink()
    measured = {**make_packet().training_metrics, "live_parameters": 300.0, "lr_multiplier": 0.5}
    seed = make_seed(metrics={"alpha": 0.0, "contribution": 0.1})
    plateau = [
        make_packet(step, seeds=(seed,), validation_accuracy=0.5, training_metrics=measured)
        for step in range(10)
    ]
    with open_tamiyo(tmp_path, sinks=(sink,), bus=MemoryBus()) as tamiyo:
        actions = {tamiyo.step(packet).action for packet in plateau}
    assert "GERMINATE" in actions  # which selects all that can be selected
    sent = {metric.name for packet in sink.packets for metric in packet.metrics}
    group = re.compile(r"(?<=feature_coverage\.)(node|edges)\.\w+")
    sent = {group.sub("<group>", name).replace(".s0", ".<seed>") for name in sent}
    documented = first_cells("metric")
    assert sorted(documented) == sorted(sent | OF_WORKERS)


def test_every_event_is_documented() -> None:
    pages = "".join(page.read_text(encoding="utf-8") for page in DOCS.glob("*.md"))
    documented = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            match node:
                case ast.Call(
                    func=ast.Name("Event") | ast.Attribute(attr="_warn"),
                    args=[ast.Constant(str(name)), *_],
                ):
                    documented.add(name)
    assert {name for name in documented if f"`{name}`" not in pages} == set()
    assert {name for name in first_cells("event") if name not in documented} == set()


def test_every_snippet_is_python_and_imports_what_there_is() -> None:
    for code in snippets():
        for node in ast.walk(ast.parse(code)):
            match node:
                case ast.ImportFrom(module=str(module)) if module.startswith("tamiyo_jax"):
                    exec(ast.unparse(node), {})


def rows() -> list[list[str]]:
    lines = [line for line in FINDINGS.read_text().splitlines() if re.match(r"\| \d+ \|", line)]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def existing_tests() -> set[str]:
    return {
        node.name
        for path in Path(__file__).parent.rglob("test_*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    }


def test_the_page_has_a_row_for_every_finding() -> None:
    assert [int(row[0]) for row in rows()] == list(range(1, 33))
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
