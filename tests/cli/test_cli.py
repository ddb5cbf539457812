"""The command line as a user meets it: what it prints, and its exit status."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from tamiyo_jax.cli import app

runner = CliRunner()


@pytest.mark.slow
def test_conformance_holds_on_the_golden_files(golden: Path) -> None:
    result = runner.invoke(app, ["conformance", str(golden), "--json"])
    assert result.exit_code == 0, result.output
    lines = json.loads(result.stdout)
    assert len(lines) == 8
    assert all(line["holds"] for line in lines)
    assert all(line["error"] <= 1e-5 for line in lines)


def test_conformance_says_no_when_a_golden_file_disagrees(tmp_path: Path, golden: Path) -> None:
    cases = json.loads((golden / "risk.json").read_text())
    cases[0]["expected"]["reason"] = "something else"
    (tmp_path / "risk.json").write_text(json.dumps(cases))
    result = runner.invoke(app, ["conformance", str(tmp_path)])
    assert result.exit_code == 1
    assert "NO" in result.stdout


@pytest.mark.parametrize("arguments", [["conformance", "/nowhere"], ["conformance"], ["dance"]])
def test_misuse_has_exit_status_two(arguments: list[str]) -> None:
    assert runner.invoke(app, arguments).exit_code == 2


def test_an_empty_directory_is_misuse_and_not_a_pass(tmp_path: Path) -> None:
    assert runner.invoke(app, ["conformance", str(tmp_path)]).exit_code == 2


def commands(group: Any, *names: str) -> Iterator[tuple[str, ...]]:
    """The names of every command, those of its groups first."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, *names, name)
        else:
            yield (*names, name)


COMMANDS = tuple(commands(typer.main.get_command(app)))


def test_the_commands_are_known() -> None:
    assert {" ".join(names) for names in COMMANDS} >= {
        *("demo", "conformance", "import-torch", "config show"),
        *("journal verify", "journal dump", "journal compact"),
        *("blueprint put", "blueprint get", "blueprint list", "blueprint validate"),
    }


@pytest.mark.parametrize("names", COMMANDS, ids=" ".join)
def test_every_command_has_help_with_an_example(names: tuple[str, ...]) -> None:
    result = runner.invoke(app, [*names, "--help"])
    assert result.exit_code == 0
    words = " ".join(result.stdout.replace("│", " ").split())
    assert f"Example: tamiyo-jax {' '.join(names)}" in words


def test_imported_parameters_can_be_loaded_again(tmp_path: Path, golden: Path) -> None:
    from tamiyo_jax.config import PolicyConfig
    from tamiyo_jax.policy import load_params

    source, target = tmp_path / "policy.npz", tmp_path / "policy.safetensors"
    with np.load(golden / "policy_small.npz") as stored:
        names = [name for name in stored.files if name.startswith("params/")]
        state_dict = {name.removeprefix("params/"): stored[name] for name in names}
    np.savez(source, **state_dict)
    result = runner.invoke(app, ["import-torch", str(source), "--output", str(target)])
    assert result.exit_code == 0, result.output
    assert "32/16, 4 heads" in result.stdout
    params = load_params(target, PolicyConfig(sage_width=32, gat_width=16, heads=4))
    expected = state_dict["_value_head.weight"].T
    assert np.array_equal(np.asarray(params["value"]["kernel"]), expected)


def test_a_run_is_never_overwritten_and_the_error_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "tamiyo").mkdir()
    command = [sys.executable, "-m", "tamiyo_jax", "demo", "--directory", str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 1
    assert "ConfigurationError" in result.stderr
    assert "--resume" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.slow
def test_the_example_on_guard_rolls_back_and_recovers() -> None:
    example = Path(__file__).parents[2] / "examples" / "guard.py"
    result = subprocess.run(
        [sys.executable, str(example)], capture_output=True, text=True, timeout=300, check=False
    )
    assert result.returncode == 0, result.stderr
    assert "ROLLBACK (nonfinite_loss)" in result.stdout
    assert float(result.stdout.split("accuracy ")[1].split(",")[0]) > 0.9
