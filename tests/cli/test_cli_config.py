"""`tamiyo-jax config show`: every setting, and where it comes from."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from commands import invoke

from tamiyo_jax.config import TamiyoConfig

SECRET = "a-secret-that-no-output-may-show"


@pytest.fixture
def toml(tmp_path: Path) -> Path:
    path = tmp_path / "tamiyo.toml"
    path.write_text("[deadlines]\ninference_ms = 10.0\nmetadata_ms = 11.0\n")
    return path


def shown(*options: str) -> dict[str, Any]:
    result = invoke("config", "show", "--json", *options)
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def test_every_setting_is_there_with_its_value(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TAMIYO__POLICY__HEADS", "8")
    values = {
        section: {name: setting["value"] for name, setting in fields.items()}
        for section, fields in shown()["settings"].items()
    }
    assert TamiyoConfig(**values) == TamiyoConfig.load()
    assert values == json.loads(TamiyoConfig.load().model_dump_json())


def test_each_value_says_where_it_comes_from(toml: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TAMIYO__DEADLINES__METADATA_MS", "21")
    deadlines = shown("--file", str(toml))["settings"]["deadlines"]
    assert deadlines["inference_ms"] == {"value": 10.0, "from": f"file {toml}"}
    variable = "variable TAMIYO__DEADLINES__METADATA_MS"
    assert deadlines["metadata_ms"] == {"value": 21.0, "from": variable}
    assert deadlines["execution_ms"] == {"value": 5, "from": "default"}


def test_the_table_for_people_says_the_same(toml: Path) -> None:
    environment = os.environ | {"COLUMNS": "200", "TAMIYO__GRAPH__OVERFLOW": "truncate"}
    command = [sys.executable, "-m", "tamiyo_jax", "config", "show", "--file", str(toml)]
    result = subprocess.run(
        command, capture_output=True, text=True, timeout=300, check=False, env=environment
    )
    assert result.returncode == 0, result.stderr
    rows = [[c.strip() for c in line.split("│")[1:-1]] for line in result.stdout.splitlines()]
    assert ["deadlines.inference_ms", "10.0", f"file {toml}"] in rows
    assert ["graph.overflow", '"truncate"', "variable TAMIYO__GRAPH__OVERFLOW"] in rows
    assert ["graph.max_seeds", "16", "default"] in rows


@pytest.mark.parametrize("options", [(), ("--json",)])
def test_the_secret_is_never_shown_but_whether_it_is_set(
    options: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TAMIYO__SECURITY__SECRET_ENV", "KEY_OF_THE_RUN")
    monkeypatch.setenv("KEY_OF_THE_RUN", SECRET)
    result = invoke("config", "show", *options)
    assert result.exit_code == 0
    assert SECRET not in result.stdout + result.stderr
    assert shown()["secrets"] == {"KEY_OF_THE_RUN": "set"}
    monkeypatch.delenv("KEY_OF_THE_RUN")
    assert shown()["secrets"] == {"KEY_OF_THE_RUN": "not set"}


def test_a_configuration_that_cannot_be_is_refused_in_one_line(
    toml: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TAMIYO__DEADLINES__INFERENCE", "1")
    result = invoke("config", "show", "--file", str(toml))
    assert result.exit_code == 1
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert "deadlines.inference (variable TAMIYO__DEADLINES__INFERENCE)" in line


@pytest.mark.parametrize("arguments", [("config",), ("config", "show", "--file", "/nowhere")])
def test_misuse_has_exit_status_two(arguments: tuple[str, ...]) -> None:
    assert invoke(*arguments).exit_code == 2
