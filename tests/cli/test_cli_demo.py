"""`tamiyo-jax demo` as a user meets it: what it refuses, and what it prints."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from commands import Result, invoke

import tamiyo_jax.demo
from tamiyo_jax.demo import DemoSummary, Row, Variant

BEGUN = {"seed": 1, "policy": "graph", "deterministic": True}


@pytest.fixture
def begun(tmp_path: Path) -> Path:
    """What a run has in its directory that was killed before its first checkpoint."""
    (tmp_path / "tamiyo" / "journal").mkdir(parents=True)
    (tmp_path / "demo.json").write_text(json.dumps(BEGUN))
    return tmp_path


def refusal(result: Result) -> str:
    """The error, which is the only line on stderr, and nothing else is printed."""
    assert result.exit_code == 1
    assert result.stdout == ""
    lines = result.stderr.splitlines()
    assert len(lines) == 1, lines
    return lines[0]


@pytest.mark.parametrize("options", [(), ("--json",)], ids=["people", "program"])
@pytest.mark.parametrize("steps", [1, 32])
def test_less_than_an_epoch_is_refused_before_anything_is_made(
    tmp_path: Path, steps: int, options: tuple[str, ...]
) -> None:
    directory = tmp_path / "new"
    message = refusal(invoke("demo", f"--directory={directory}", f"--steps={steps}", *options))
    assert message.startswith("ConfigurationError: ")
    assert f"steps is {steps}" in message
    assert "--steps 33 or more" in message
    assert not directory.exists()


@pytest.mark.parametrize(
    ("option", "values"),
    [("--seed=2", ("seed is 2", "seed 1")), ("--policy=heuristic", ("heuristic", "policy graph"))],
)
def test_a_run_is_not_resumed_with_other_settings(
    begun: Path, option: str, values: tuple[str, str]
) -> None:
    message = refusal(invoke("demo", f"--directory={begun}", "--resume", option))
    assert message.startswith("ConfigurationError: ")
    assert all(value in message for value in values)
    assert json.loads((begun / "demo.json").read_text()) == BEGUN


def test_a_run_that_measured_times_is_not_resumed_without_them(begun: Path) -> None:
    (begun / "demo.json").write_text(json.dumps({**BEGUN, "deterministic": False}))
    message = refusal(invoke("demo", f"--directory={begun}", "--resume", "--deterministic"))
    assert message.startswith("ConfigurationError: deterministic is True")


@pytest.mark.parametrize("content", [None, "", '{"seed": "many"}'], ids=repr)
def test_a_directory_without_a_run_is_not_resumed_and_left_unchanged(
    tmp_path: Path, content: str | None
) -> None:
    path = tmp_path / "demo.json"
    if content is not None:
        path.write_text(content)
    message = refusal(invoke("demo", f"--directory={tmp_path}", "--resume"))
    assert message.startswith("PersistenceError: ")
    assert str(path) in message
    assert [path.name for path in tmp_path.iterdir()] == ([] if content is None else ["demo.json"])


def test_a_run_killed_before_its_first_checkpoint_cannot_be_resumed(begun: Path) -> None:
    result = invoke("demo", f"--directory={begun}", "--resume")
    assert result.exit_code == 1
    assert "holds no checkpoint" in result.stderr


def test_a_directory_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "demo.json.new").mkdir()
    message = refusal(invoke("demo", f"--directory={tmp_path}", "--steps=33"))
    assert message.startswith("PersistenceError: ")
    assert str(tmp_path / "demo.json") in message


def test_a_run_that_has_not_ended_is_not_replayed(begun: Path) -> None:
    message = refusal(invoke("replay", str(begun)))
    assert message.startswith("PersistenceError: ")
    assert "--resume" in message


def test_json_holds_no_number_that_json_does_not_know(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = Row(1, float("nan"), float("inf"), 0.5, 330, "WAIT", "heuristic:wait", "", ("INFO",), 1.0)
    variant = Variant("any", (row,), 0.5, 330, 330)
    summary = DemoSummary(variant, variant, variant, {"WAIT": 1}, {"INFO": 1}, (1.0,), None)
    monkeypatch.setattr(tamiyo_jax.demo, "run_demo", lambda settings, on_row, on_start: summary)
    monkeypatch.setattr(tamiyo_jax.demo, "draw", lambda summary, path: None)
    result = invoke("demo", f"--directory={tmp_path}", "--json")
    assert result.exit_code == 0

    def unknown(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    answer = json.loads(result.stdout, parse_constant=unknown)
    epoch = answer["grown"]["rows"][0]
    assert (epoch["training_loss"], epoch["validation_loss"]) == ("NaN", "Infinity")
