"""Every example runs as it stands, and the page shows the loops and their diffs as they are."""

from __future__ import annotations

import difflib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"
LOOPS = EXAMPLES / "loops"
PAGE = (ROOT / "docs" / "plug_it_in.md").read_text()
LIMITS = {"guard": 10, "grow": 25}
DIFFS = [(name, kind) for name in ("linen", "nnx", "equinox") for kind in LIMITS]
SCRIPTS = sorted(path for path in EXAMPLES.rglob("*.py"))
# A machine that runs tests is busy; the deadlines have tests of their own.
UNHURRIED = {"TAMIYO__DEADLINES__INFERENCE_MS": "60000", "TAMIYO__DEADLINES__METADATA_MS": "60000"}


def lines(name: str, kind: str) -> list[str]:
    return (LOOPS / f"{name}_{kind}.py").read_text().splitlines()


def diff(name: str, kind: str) -> list[str]:
    """The changes with a line around each; places in the files are left out."""
    whole = difflib.unified_diff(lines(name, "plain"), lines(name, kind), n=1, lineterm="")
    return [re.sub(r"^@@.*@@$", "@@", line) for line in list(whole)[2:]]


def run(script: Path, directory: Path) -> str:
    """What a script prints; run beside nothing but its own framework and what it writes."""
    paths = os.pathsep.join(path for path in (str(ROOT), os.environ.get("PYTHONPATH", "")) if path)
    environment = {**os.environ, **UNHURRIED, "PYTHONPATH": paths, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, str(script)],
        cwd=directory,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def need(script: Path) -> None:
    pytest.importorskip("sklearn")
    if "equinox" in script.name:
        pytest.importorskip("equinox")


@pytest.mark.parametrize(("name", "kind"), DIFFS)
def test_a_loop_needs_few_added_lines(name: str, kind: str):
    added = [line for line in diff(name, kind) if line.startswith("+")]
    assert 0 < len(added) <= LIMITS[kind]


@pytest.mark.parametrize(("name", "kind"), DIFFS)
def test_the_page_shows_the_diff_as_it_is(name: str, kind: str):
    assert "```diff\n" + "\n".join(diff(name, kind)) + "\n```" in PAGE


@pytest.mark.parametrize("name", ["linen", "nnx", "equinox"])
def test_the_page_shows_the_loop_as_it_is(name: str):
    assert "```python\n" + "\n".join(lines(name, "plain")) + "\n```" in PAGE


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_an_example_is_short(script: Path):
    assert len(script.read_text().splitlines()) < 120


@pytest.mark.slow
@pytest.mark.parametrize(("name", "kind"), DIFFS)
def test_a_loop_runs(name: str, kind: str, tmp_path: Path):
    """The other two examples run in tests/test_cli.py and tests/service/test_multihost.py."""
    script = LOOPS / f"{name}_{kind}.py"
    need(script)
    said = run(script, tmp_path)
    assert said
    assert "without Tamiyo" not in said
    if kind == "grow":
        assert "GERMINATE" in said
