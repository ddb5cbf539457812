"""Every example in a fresh environment, as a user runs it who has only installed the package.

    python tests/fresh_examples.py
    python tests/fresh_examples.py equinox guard  # those whose names begin so

For the examples of each framework a virtual environment is made, in which the wheel of this tree
is installed with its extra `demo`, and the framework where tamiyo_jax does not bring it along; in
the versions of requirements.lock. Each example is copied to a directory of its own and started
there, without a variable that is meant for Python, JAX or Tamiyo. A line per example says how
long it took and the last thing that it said. Exit status 1 if one fails.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
import venv
from itertools import groupby
from pathlib import Path

ROOT = Path(__file__).parents[1]
FRAMEWORKS = ("equinox",)  # those that tamiyo_jax does not need itself
LIMIT_S = 300
BARE = {
    name: value
    for name, value in os.environ.items()
    if not name.startswith(("PYTHON", "JAX", "XLA", "TAMIYO", "VIRTUAL_ENV"))
}


def framework(example: Path) -> tuple[str, ...]:
    """What must be installed for an example beside this package, by the beginning of its name."""
    return tuple(name for name in FRAMEWORKS if example.name.startswith(name))


def install(home: Path, packages: tuple[str, ...]) -> Path:
    """The Python of a fresh environment that holds this package and those others.

    Raises:
      CalledProcessError: something cannot be installed, or the package is found elsewhere.
    """
    venv.create(home / "venv", with_pip=True)
    python = home / "venv" / "bin" / "python"

    def run(*arguments: str | Path) -> None:
        subprocess.run([python, *arguments], cwd=home, env=BARE, check=True)

    pip = ("-m", "pip", "-qq")  # errors are still printed
    run(*pip, "wheel", "--no-deps", "--wheel-dir", home, ROOT)
    (wheel,) = home.glob("*.whl")
    run(*pip, "install", "-c", ROOT / "requirements.lock", f"{wheel}[demo]", *packages)
    here = "import sys, tamiyo_jax; sys.exit(not tamiyo_jax.__file__.startswith(sys.prefix))"
    run("-c", here)
    return python


def works(python: Path, example: Path, directory: Path) -> bool:
    """Run an example in a new directory and return whether it succeeded."""
    directory.mkdir()
    shutil.copy(example, directory)
    started = time.perf_counter()
    try:
        done = subprocess.run(
            [python, example.name],
            cwd=directory,
            env=BARE,
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            check=False,
        )
        succeeded, said = done.returncode == 0, done.stdout
        complaint = done.stderr
    except subprocess.TimeoutExpired:
        succeeded, said, complaint = False, "", f"still running after {LIMIT_S} s\n"
    seconds = time.perf_counter() - started
    last = said.splitlines()[-1] if said else "nothing said"
    say(f"{'ok' if succeeded else 'FAILED':6} {seconds:5.1f} s  {example.stem}: {last}")
    if not succeeded:
        sys.stderr.write(complaint)
    return succeeded


def say(line: str) -> None:
    """Print a line without buffering."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main() -> None:
    """Run the examples that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="beginnings of names; all examples without")
    names = tuple(parser.parse_args().names) or ("",)
    found = (ROOT / "examples").rglob("*.py")
    chosen = sorted(finding for finding in found if finding.name.startswith(names))
    chosen.sort(key=framework)
    if not chosen:
        parser.error(f"no example's name begins with {' or '.join(names)}")
    results: list[bool] = []
    for packages, examples in groupby(chosen, framework):
        with tempfile.TemporaryDirectory() as home:
            started = time.perf_counter()
            python = install(Path(home), packages)
            seconds = time.perf_counter() - started
            say(f"fresh  {seconds:5.1f} s  {' '.join(('tamiyo_jax[demo]', *packages))}")
            results += [works(python, example, Path(home) / example.stem) for example in examples]
    sys.exit(not all(results))


if __name__ == "__main__":
    main()
