"""What a type checker says about the code in README and docs, and about settings and errors."""

from __future__ import annotations

import ast
import builtins
import pickle
import re
import subprocess
import sys
import typing
from pathlib import Path

import pytest

from tamiyo_jax import errors
from tamiyo_jax.config import TamiyoConfig
from tamiyo_jax.config._dicts import Sections

ROOT = Path(__file__).parents[1]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))

# Modules and names that a block may use because an earlier block of its page imports them.
IMPORTS = {
    "Secret": "from tamiyo_jax.contracts import Secret",
    "Verifier": "from tamiyo_jax.contracts import Verifier",
    "NonceLedger": "from tamiyo_jax.contracts import NonceLedger",
    "growth": "from tamiyo_jax import growth",
    "host": "from tamiyo_jax import host",
    "jax": "import jax",
    "jnp": "import jax.numpy as jnp",
    "np": "import numpy as np",
    "nn": "from flax import linen as nn",
    "nnx": "from flax import nnx",
    "eqx": "import equinox as eqx",
    "optax": "import optax",
    "partial": "from functools import partial",
    "time": "import time",
    "tj": "import tamiyo_jax as tj",
}


def blocks() -> dict[str, str]:
    """The Python blocks of all pages, by a name that says where they are."""
    found: dict[str, str] = {}
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for block in re.finditer(r"```python\n(.*?)```", text, re.DOTALL):
            line = text.count("\n", 0, block.start()) + 1
            found[f"{page.stem}_line_{line}.py"] = block[1]
    return found


def complete(code: str) -> str:
    """Declare the names that a block takes from its context, and fill in ``...`` arguments."""
    code = re.sub(r"\(\.\.\.(?=[,)])", "(*omitted, **omitted_by_name", code)
    tree = ast.parse(code)
    bound = set(dir(builtins))
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=aliases) | ast.ImportFrom(names=aliases):
                bound |= {(alias.asname or alias.name).split(".")[0] for alias in aliases}
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name) | ast.arg(arg=name):
                bound.add(name)
            case ast.ExceptHandler(name=str(name)):
                bound.add(name)
            case _:
                continue
    loaded = {
        node.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)
    }
    given = sorted(loaded - bound)
    declared = [IMPORTS.get(name, f"{name}: Any = eval('{name}')") for name in given]
    header = "from __future__ import annotations\nfrom typing import Any\n"
    return "\n".join((header, *declared, code))


def run_pyright(directory: Path, *options: str) -> str:
    command = [sys.executable, "-m", "pyright", "--pythonpath", sys.executable, *options]
    done = subprocess.run(
        [*command, str(directory)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return done.stdout


@pytest.mark.slow
def test_the_code_of_readme_and_docs_passes_the_type_checker(tmp_path: Path) -> None:
    for name, code in blocks().items():
        (tmp_path / name).write_text(complete(code), encoding="utf-8")
    assert len(list(tmp_path.iterdir())) > 20
    found = [line for line in run_pyright(tmp_path).splitlines() if " - error: " in line]
    assert found == []


@pytest.mark.slow
def test_settings_as_dicts_and_attributes_of_errors_are_typed_strictly(tmp_path: Path) -> None:
    (tmp_path / "user.py").write_text(
        "# pyright: strict\n"
        "import tamiyo_jax as tj\n"
        "from tamiyo_jax.errors import DeadlineExceededError\n"
        'tj.TamiyoConfig(deadlines={"inference_ms": 100})\n'
        'tj.TamiyoConfig.load("tamiyo.toml", deadlines={"inference_ms": 20})\n'
        "def explain(error: DeadlineExceededError) -> str:\n"
        "    return error.stage\n"
        'tj.TamiyoConfig(deadlines={"inference": 100})\n'
        "def misspell(error: DeadlineExceededError) -> object:\n"
        "    return error.stagee\n",
        encoding="utf-8",
    )
    lines = {
        int(line.split(":")[1])
        for line in run_pyright(tmp_path).splitlines()
        if " - error: " in line
    }
    assert lines == {8, 10}


def test_the_dicts_have_the_settings_of_the_sections_with_their_types() -> None:
    sections = typing.get_type_hints(Sections)
    assert list(sections) == list(TamiyoConfig.model_fields)
    for kinds in sections.values():
        section, as_dict = typing.get_args(kinds)
        expected = {name: field.annotation for name, field in section.model_fields.items()}
        assert typing.get_type_hints(as_dict) == expected


def attributes(kind: type[errors.TamiyoError]) -> set[str]:
    return set(typing.get_type_hints(kind))


def required(kind: type[errors.TamiyoError]) -> set[str]:
    return {name for name in attributes(kind) if not hasattr(kind, name)} - {"context"}


def test_every_error_is_raised_with_the_attributes_that_it_declares() -> None:
    for path in (ROOT / "tamiyo_jax").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            match node:
                case ast.Call(func=ast.Name(id=name), keywords=keywords) if name in errors.__all__:
                    kind: type[errors.TamiyoError] = getattr(errors, name)
                    given = {keyword.arg for keyword in keywords}
                    place = f"{path}:{node.lineno}"
                    assert {name for name in given if name} <= attributes(kind), place
                    assert None in given or required(kind) <= given, place


@pytest.mark.parametrize("name", errors.__all__)
def test_an_error_keeps_its_attributes_between_processes(name: str) -> None:
    kind: type[errors.TamiyoError] = getattr(errors, name)
    context = dict.fromkeys(attributes(kind) - {"context"}, "some value")
    again = pickle.loads(pickle.dumps(kind("what happened", **context)))
    assert type(again) is kind
    assert str(again) == "what happened"
    assert {attribute: getattr(again, attribute) for attribute in context} == context
    assert again.context == context
    with pytest.raises(AttributeError):
        _ = again.unknown
