"""`tamiyo-jax replay`: the demo grown again from its journal, and what others would have done."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import pytest
from commands import Result, invoke
from making import make_blueprint, make_config, make_packet, open_tamiyo, story

from tamiyo_jax.config import TamiyoConfig
from tamiyo_jax.host import load_tree
from tamiyo_jax.library import SqliteBlueprintLibrary
from tamiyo_jax.policy import HeuristicPolicy, export_params, init_params
from tamiyo_jax.training import accuracy, init_loop

EPOCHS = 40


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A demonstration in which something grows, with Optax's own mixing of dtypes allowed."""
    root = tmp_path_factory.mktemp("demo") / "first"
    with jax.numpy_dtype_promotion("standard"):
        result = invoke(
            "demo", "--directory", str(root), "--steps", str(33 * EPOCHS), "--seed", "1"
        )
        assert result.exit_code == 0, result.stderr
        yield root


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory of a loop that is not the demo, with its library beside the journal."""
    root = tmp_path_factory.mktemp("run")
    library = SqliteBlueprintLibrary(root / "blueprints.db")
    for name in ("host", "grow-a", "grow-b"):
        library.put(make_blueprint(name))
    with open_tamiyo(root, library=library, config=make_config()) as tamiyo:
        for packet in story(36):
            tamiyo.step(packet)
    return root


@pytest.fixture(scope="module")
def seedless(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on guard as the Plug makes it: no seeds, and the controller in ``tamiyo``."""
    root = tmp_path_factory.mktemp("seedless")
    SqliteBlueprintLibrary(root / "blueprints.db").put(make_blueprint("host"))
    config = make_config(packet={"seedless": True})
    with open_tamiyo(root / "tamiyo", config=config, mode="guard") as tamiyo:
        for packet in story(18):
            tamiyo.step(replace(packet, seeds=(), candidate_blueprint_ids=()))
    return root


def what_if(directory: Path, *arguments: str) -> dict[str, Any]:
    result = invoke("replay", str(directory), "--what-if", "--json", *arguments)
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


class Broken:
    """A policy that never answers."""

    def __init__(self, config: TamiyoConfig) -> None:
        self._inner = HeuristicPolicy(config.heuristic, config.policy)

    def initial_state(self) -> Any:
        return self._inner.initial_state()

    def decide(self, params: Any, policy_state: Any, observation: Any) -> Any:
        raise RuntimeError("broken here")


def files_of(directory: Path) -> dict[Path, bytes]:
    paths = (path for path in directory.rglob("*") if path.is_file())
    return {path: path.read_bytes() for path in paths if "blueprints.db-" not in path.name}


@pytest.mark.slow
def test_the_demo_grows_again_bit_for_bit_and_its_network_is_kept(
    demo: Path, tmp_path: Path
) -> None:
    from tamiyo_jax.demo import digits_task

    before = files_of(demo)
    result = invoke("replay", str(demo), "--directory", str(tmp_path / "again"), "--json")
    assert result.exit_code == 0, result.stderr
    answer = json.loads(result.stdout)
    assert answer["identical"] is True
    assert (answer["decisions"], answer["unused"], answer["differing"]) == (EPOCHS, 0, {})
    assert answer["test_accuracy"]["now"] == answer["test_accuracy"]["recorded"]
    assert files_of(demo) == before
    inner = invoke("replay", str(demo / "tamiyo"), "--json")
    assert json.loads(inner.stdout) == answer
    task = digits_task(1)
    state = load_tree(tmp_path / "again" / "loop", init_loop(task, 1), task.host)
    assert float(accuracy(task, state.host, task.test)) == answer["test_accuracy"]["now"]


@pytest.mark.slow
def test_the_demo_is_asked_what_guard_would_have_done(demo: Path) -> None:
    unchanged = what_if(demo)
    assert (unchanged["steps"], unchanged["differ"]) == (EPOCHS, 0)
    guard = what_if(demo, "--mode", "guard")
    assert guard["actions"]["GERMINATE"]["recorded"] > 0
    assert guard["actions"]["GERMINATE"]["instead"] == 0
    assert guard["differ"] > 0


@pytest.mark.slow
def test_a_run_that_differs_from_its_journal_fails_and_names_the_differences(
    demo: Path, tmp_path: Path
) -> None:
    other = shutil.copytree(demo, tmp_path / "other")
    facts = json.loads((other / "demo.json").read_text())
    (other / "demo.json").write_text(json.dumps({**facts, "seed": 2, "test_accuracy": 0.5}))
    result = invoke("replay", str(other))
    assert result.exit_code == 1
    assert "epoch 1: not as on record: " in result.stdout
    assert "validation_loss" in result.stdout
    assert f"{EPOCHS} decisions applied" in result.stdout
    assert "on record 0.5000" in result.stdout
    assert "NOT identical" in result.stdout


def test_the_same_controller_differs_nowhere_and_another_does(run: Path, tmp_path: Path) -> None:
    unchanged = what_if(run)
    assert unchanged["steps"] == 36
    assert (unchanged["differ"], unchanged["differences"], unchanged["revised"]) == (0, [], 0)
    guard = what_if(run, "--mode", "guard")
    advances = guard["actions"]["ADVANCE"]
    assert advances["recorded"] > 0
    assert advances["instead"] == 0
    assert guard["differ"] == len(guard["differences"]) > 0
    for difference in guard["differences"]:
        assert difference["recorded"]["action"] != difference["instead"]["action"]
    settings = tmp_path / "cautious.toml"
    settings.write_text("[risk]\nloss_spike = 0.9\n")
    assert what_if(run, "--file", str(settings))["differ"] > 0


def test_people_get_a_table_of_the_differences_and_a_summary(run: Path) -> None:
    result = invoke("replay", str(run), "--what-if", "--mode", "guard")
    assert result.exit_code == 0
    assert "ADVANCE s0" in result.stdout
    assert "of 36 decisions differ" in result.stdout


@pytest.mark.slow
def test_a_network_can_be_asked_with_its_parameters(run: Path, tmp_path: Path) -> None:
    settings, params = tmp_path / "small.toml", tmp_path / "policy.safetensors"
    settings.write_text("[policy]\nsage_width = 16\ngat_width = 8\nheads = 2\n")
    export_params(init_params(TamiyoConfig.load(settings).policy, jax.random.key(0)), params)
    asked = ("--policy", "graph", "--file", str(settings))
    assert what_if(run, *asked, "--params", str(params))["steps"] == 36
    assert what_if(run, *asked)["steps"] == 36  # the shipped parameters answer
    with settings.open("a") as file:
        file.write('blending_methods = ["linear", "cosine", "warmup_hold", "step"]\n')
    refused = invoke("replay", str(run), "--what-if", *asked)
    assert refused.exit_code == 1
    assert "MissingParametersError" in refused.stderr


def test_a_policy_that_is_named_is_asked_about_a_run_on_guard_too(tmp_path: Path) -> None:
    library = SqliteBlueprintLibrary(tmp_path / "blueprints.db")
    for name in ("host", "grow-a", "grow-b"):
        library.put(make_blueprint(name))
    with open_tamiyo(tmp_path, library=library, config=make_config(), mode="guard") as tamiyo:
        for packet in story(12):
            tamiyo.step(packet)
    assert what_if(tmp_path)["differ"] == 0
    assert "ADVANCE" in what_if(tmp_path, "--policy", "heuristic")["actions"]


def test_a_run_without_seeds_is_asked_about_as_that_of_a_seedless_host(seedless: Path) -> None:
    unchanged = what_if(seedless)
    assert (unchanged["steps"], unchanged["differ"]) == (18, 0)
    assert len(unchanged["actions"]) > 1
    answer = what_if(seedless, "--policy", "heuristic")
    assert "WAIT" in answer["actions"]
    assert not any(difference["instead"]["failed"] for difference in answer["differences"])


@pytest.mark.parametrize("named", ["", "tamiyo"], ids=["above", "own"])
def test_either_directory_of_a_run_can_be_named(seedless: Path, named: str) -> None:
    assert what_if(seedless / named)["steps"] == 18


def test_a_run_can_be_named_from_inside(seedless: Path) -> None:
    with contextlib.chdir(seedless / "tamiyo"):
        assert what_if(Path())["steps"] == 18


def test_where_blueprints_were_looked_for_is_said(seedless: Path, tmp_path: Path) -> None:
    alone = shutil.copytree(seedless / "tamiyo", tmp_path / "a" / "tamiyo")
    result = invoke("replay", str(tmp_path / "a"), "--what-if")
    assert result.exit_code == 2
    said = result.stderr.replace("│", " ").replace(" ", "").replace("\n", "")
    assert f"{alone}/blueprints.db" in said
    assert f"{tmp_path}/a/blueprints.db" in said
    assert "--library" in said


@pytest.mark.parametrize("options", [(), ("--json",)], ids=["people", "program"])
def test_errors_alone_are_no_answer(run: Path, options: tuple[str, ...]) -> None:
    asked = ("--policy", f"{__name__}:Broken", *options)
    result = invoke("replay", str(run), "--what-if", *asked)
    assert result.exit_code == 1
    assert "every answer is an error" in result.stderr
    assert "broken here" in result.stderr
    if options:
        assert json.loads(result.stdout)["actions"]["PolicyFailureError"]["instead"] > 0


def test_another_revision_of_a_blueprint_is_pointed_out(run: Path, tmp_path: Path) -> None:
    library = SqliteBlueprintLibrary(tmp_path / "newer.db")
    for name in ("grow-a", "grow-b", "grow-a", "host"):
        library.put(make_blueprint(name))
    newer = ("--library", str(tmp_path / "newer.db"))
    assert what_if(run, *newer)["revised"] == 36
    assert "another revision" in invoke("replay", str(run), "--what-if", *newer).stderr


def test_a_journal_without_packets_has_nothing_to_ask_about(tmp_path: Path) -> None:
    SqliteBlueprintLibrary(tmp_path / "blueprints.db").put(make_blueprint())
    config = make_config(storage={"record_packets": False})
    with open_tamiyo(tmp_path, config=config) as tamiyo:
        tamiyo.step(make_packet())
    result = invoke("replay", str(tmp_path), "--what-if")
    assert result.exit_code == 1
    assert "storage.record_packets" in result.stderr


def test_a_run_that_is_not_the_demo_is_not_trained_again(run: Path) -> None:
    result: Result = invoke("replay", str(run))
    assert result.exit_code == 1
    assert "tamiyo_jax.replay.Replay" in result.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("/nowhere",),
        ("{run}", "--mode", "guard"),
        ("{run}", "--policy", "heuristic"),
        ("{run}", "--what-if", "--directory", "new"),
        ("{run}", "--what-if", "--mode", "bold"),
        ("{empty}", "--what-if"),
        ("{run}", "--what-if", "--library", "/nowhere.db"),
    ],
)
def test_misuse_has_exit_status_two(arguments: tuple[str, ...], run: Path, tmp_path: Path) -> None:
    assert (
        invoke(
            "replay", *(argument.format(run=run, empty=tmp_path) for argument in arguments)
        ).exit_code
        == 2
    )
