"""`tamiyo-jax blueprint`, on libraries in a file and on a server."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from commands import invoke
from making import make_blueprint
from redis_server import RedisServer

from tamiyo_jax.contracts import (
    HandlingClass,
    HazardBand,
    LayerSpec,
    SafetySheet,
    blueprint_from_json,
    blueprint_to_json,
)
from tamiyo_jax.library import SqliteBlueprintLibrary

SHEET = SafetySheet(0.7, HazardBand.MEDIUM, HandlingClass.RESTRICTED)


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    blueprints = (make_blueprint("host"), make_blueprint("grow", name="[b]old", safety=SHEET))
    for blueprint in blueprints:
        (tmp_path / f"{blueprint.blueprint_id}.json").write_text(blueprint_to_json(blueprint))
    return [str(tmp_path / f"{blueprint.blueprint_id}.json") for blueprint in blueprints]


@pytest.fixture
def library(tmp_path: Path) -> str:
    return str(tmp_path / "new" / "blueprints.db")


@pytest.fixture(scope="module")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    pytest.importorskip("redis", reason="tamiyo_jax[redis] is not installed")
    with RedisServer(tmp_path_factory.mktemp("redis")) as server:
        yield server.url


def test_a_library_may_be_a_server(files: list[str], redis_url: str) -> None:
    put = invoke("blueprint", "put", *files, "--library", redis_url, "--json")
    assert put.exit_code == 0, put.stderr
    revisions = json.loads(put.stdout)
    listed = invoke("blueprint", "list", "--library", redis_url, "--json")
    assert {
        blueprint["blueprint_id"]: blueprint["revision"] for blueprint in json.loads(listed.stdout)
    } == revisions
    got = invoke("blueprint", "get", "host", "--library", redis_url)
    assert blueprint_from_json(got.stdout).revision == revisions["host"]


def test_a_server_that_does_not_answer_is_a_no_and_its_password_is_not_shown() -> None:
    pytest.importorskip("redis", reason="tamiyo_jax[redis] is not installed")
    url = "redis://:a-password@127.0.0.1:1/0"
    result = invoke("blueprint", "list", "--library", url)
    assert result.exit_code == 1
    assert "PersistenceError" in result.stderr
    assert "a-password" not in result.stdout + result.stderr


def test_what_was_put_is_listed_and_got(files: list[str], library: str) -> None:
    put = invoke("blueprint", "put", *files, "--library", library, "--json")
    assert put.exit_code == 0, put.stderr
    assert json.loads(put.stdout) == {"host": 1, "grow": 2}

    listed = invoke("blueprint", "list", "--library", library, "--json")
    assert listed.exit_code == 0
    grow, host = json.loads(listed.stdout)
    assert (host["blueprint_id"], host["revision"], host["tier"]) == ("host", 1, "SAFE")
    assert (host["risk"], host["layers"], host["parameters"]) == (0.2, 3, 600)
    assert (grow["blueprint_id"], grow["risk"]) == ("grow", 0.7)

    got = invoke("blueprint", "get", "grow", "--library", library)
    assert got.exit_code == 0
    assert blueprint_from_json(got.stdout) == SqliteBlueprintLibrary(library).get("grow")


def test_what_get_prints_can_be_put(files: list[str], library: str, tmp_path: Path) -> None:
    invoke("blueprint", "put", *files, "--library", library)
    again = tmp_path / "again.json"
    again.write_text(invoke("blueprint", "get", "host", "--library", library).stdout)
    put = invoke("blueprint", "put", str(again), "--library", library)
    assert put.stdout == "host: revision 3\n"


def test_the_list_for_people_shows_names_as_they_are(files: list[str], library: str) -> None:
    invoke("blueprint", "put", *files, "--library", library)
    printed = invoke("blueprint", "list", "--library", library).stdout
    assert "host" in printed
    assert "[b]old" in printed


def test_one_invalid_blueprint_and_none_is_put(
    files: list[str], library: str, tmp_path: Path
) -> None:
    bad = tmp_path / "bad.json"
    bad.write_text('{"blueprint_id": "bad", "stage": 12}')
    put = invoke("blueprint", "put", *files, str(bad), "--library", library)
    assert put.exit_code == 1
    assert str(bad) in put.stderr
    assert not Path(library).exists()


def test_validating_names_the_file_and_the_field(files: list[str], tmp_path: Path) -> None:
    assert invoke("blueprint", "validate", *files).exit_code == 0
    bad, binary = tmp_path / "bad.json", tmp_path / "binary.json"
    bad.write_text('{"blueprint_id": "bad", "colour": 1}')
    binary.write_bytes(b"\xff\xfe")
    result = invoke("blueprint", "validate", *files, str(bad), str(binary), "--json")
    assert result.exit_code == 1
    found = json.loads(result.stdout)
    assert [found[file] for file in files] == [None, None]
    assert "colour" in found[str(bad)]
    assert "not UTF-8" in found[str(binary)]
    assert f"{files[0]}: valid" in invoke("blueprint", "validate", files[0], str(bad)).stdout


def test_the_configured_caps_hold(tmp_path: Path, library: str) -> None:
    layers = tuple(LayerSpec(f"L{i}", "dense", i) for i in range(600))
    big, toml = tmp_path / "big.json", tmp_path / "tamiyo.toml"
    big.write_text(blueprint_to_json(make_blueprint("big", layers=layers)))
    toml.write_text("[graph]\nmax_layers = 600\n")
    refused = invoke("blueprint", "put", str(big), "--library", library)
    assert refused.exit_code == 1
    assert "GraphCapacityError" in refused.stderr
    for command in (("put", str(big)), ("get", "big"), ("list",)):
        result = invoke("blueprint", *command, "--library", library, "--file", str(toml))
        assert result.exit_code == 0, result.stderr


def test_an_unknown_blueprint_is_a_no(files: list[str], library: str) -> None:
    invoke("blueprint", "put", *files, "--library", library)
    result = invoke("blueprint", "get", "nowhere", "--library", library)
    assert result.exit_code == 1
    assert "UnknownBlueprintError" in result.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ("blueprint",),
        ("blueprint", "list"),
        ("blueprint", "list", "--library", "/nowhere/blueprints.db"),
        ("blueprint", "get", "host", "--library", "/nowhere/blueprints.db"),
        ("blueprint", "put", "/nowhere.json", "--library", "blueprints.db"),
        ("blueprint", "validate"),
    ],
)
def test_misuse_has_exit_status_two_and_makes_nothing(
    arguments: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert invoke(*arguments).exit_code == 2
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_no_library_is_a_no(files: list[str]) -> None:
    result = invoke("blueprint", "list", "--library", files[0])
    assert result.exit_code == 1
    assert "PersistenceError" in result.stderr
