"""Benchmarks are run by hand and borrow from one another; each must still start."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
OF_THE_PEER = {"forward_peer", "peer"}


def test_every_benchmark_finds_what_it_imports() -> None:
    names = {path.stem for path in BENCHMARKS.glob("*.py")}
    if find_spec("torch") is None:
        names -= OF_THE_PEER
    assert len(names) > 15
    lines = "\n".join(f"import {name}" for name in sorted(names))
    done = subprocess.run(
        [sys.executable, "-c", lines], cwd=BENCHMARKS, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
