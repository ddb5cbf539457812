"""The configuration: where values come from, and what is refused."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, cast

import pytest
from making import SECRET, open_tamiyo, story
from pydantic import ValidationError

import tamiyo_jax
from tamiyo_jax.config import (
    BreakerConfig,
    DeadlineConfig,
    GuardConfig,
    Origin,
    PolicyConfig,
    SecurityConfig,
    TamiyoConfig,
    resolve,
    settings_markdown,
)
from tamiyo_jax.contracts import Secret, signature_of
from tamiyo_jax.decision import Decision
from tamiyo_jax.errors import ConfigurationError


@pytest.fixture
def toml(tmp_path: Path) -> Path:
    path = tmp_path / "tamiyo.toml"
    path.write_text("[deadlines]\ninference_ms = 10.0\nmetadata_ms = 11.0\nexecution_ms = 12\n")
    return path


def test_a_keyword_wins_over_a_variable_and_a_variable_over_the_file(
    toml: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TAMIYO__DEADLINES__METADATA_MS", "21")
    monkeypatch.setenv("TAMIYO__DEADLINES__EXECUTION_MS", "22")
    deadlines = TamiyoConfig.load(toml, deadlines={"execution_ms": 32}).deadlines
    assert (deadlines.inference_ms, deadlines.metadata_ms, deadlines.execution_ms) == (10, 21, 32)
    assert deadlines.warmup_s == TamiyoConfig().deadlines.warmup_s


def test_a_section_object_overrides_only_the_fields_that_it_was_given(toml: Path) -> None:
    deadlines = TamiyoConfig.load(toml, deadlines=DeadlineConfig(execution_ms=32)).deadlines
    assert (deadlines.inference_ms, deadlines.execution_ms) == (10, 32)


def test_without_sources_loading_gives_the_defaults() -> None:
    assert TamiyoConfig.load() == TamiyoConfig()


def test_the_constructor_reads_no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TAMIYO__DEADLINES__INFERENCE_MS", "1")
    assert TamiyoConfig().deadlines.inference_ms == 45


def test_a_tuple_comes_from_a_variable_as_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TAMIYO__POLICY__BLENDING_METHODS", '["linear"]')
    assert TamiyoConfig.load().policy.blending_methods == ("linear",)
    monkeypatch.setenv("TAMIYO__POLICY__BLENDING_METHODS", "linear")
    with pytest.raises(ConfigurationError, match="not JSON"):
        TamiyoConfig.load()


def test_the_secrets_own_variable_is_no_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TAMIYO_SECRET", "not part of any configuration")
    assert TamiyoConfig.load() == TamiyoConfig()


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("[deadline]\ninference_ms = 1.0\n", "deadline"),
        ("[deadlines]\ninference = 1.0\n", "deadlines.inference"),
        ('[deadlines]\ninference_ms = "soon"\n', "deadlines.inference_ms"),
        ("[deadlines]\ninference_ms = nan\n", "deadlines.inference_ms"),
        ("[policy]\nheads = 0\n", "policy.heads"),
        ("deadlines = 3\n", "deadlines"),
    ],
)
def test_what_a_file_must_not_hold_is_named(tmp_path: Path, text: str, field: str) -> None:
    path = tmp_path / "tamiyo.toml"
    path.write_text(text)
    with pytest.raises(ConfigurationError, match=field) as caught:
        TamiyoConfig.load(path)
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("variable", "field"),
    [
        ("TAMIYO__DEADLINES__INFERENCE", "deadlines.inference"),
        ("TAMIYO__DEADLINE__INFERENCE_MS", "deadline"),
    ],
)
def test_an_unknown_variable_is_named(
    monkeypatch: pytest.MonkeyPatch, variable: str, field: str
) -> None:
    monkeypatch.setenv(variable, "1")
    with pytest.raises(ConfigurationError) as caught:
        TamiyoConfig.load()
    assert caught.value.field == field


def test_unknown_keywords_are_named() -> None:
    with pytest.raises(ConfigurationError, match="deadline"):
        TamiyoConfig.load(deadline={"inference_ms": 1.0})
    with pytest.raises(ConfigurationError, match=r"deadlines\.inference"):
        TamiyoConfig.load(deadlines={"inference": 1.0})
    with pytest.raises(ConfigurationError, match=r"did you mean loss_spike\?"):
        TamiyoConfig.load(risk={"los_spike": 1.0})


def test_a_section_without_a_setting_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TAMIYO__RISK", "0.3")
    with pytest.raises(ConfigurationError, match="risk alone") as caught:
        TamiyoConfig.load()
    assert caught.value.field == "risk"
    assert "did you mean" not in str(caught.value)


def test_a_file_that_is_missing_or_no_toml_is_named(tmp_path: Path) -> None:
    path = tmp_path / "tamiyo.toml"
    with pytest.raises(ConfigurationError, match="does not exist"):
        TamiyoConfig.load(path)
    path.write_text("[deadlines\n")
    with pytest.raises(ConfigurationError, match=r"tamiyo\.toml"):
        TamiyoConfig.load(path)


@pytest.mark.parametrize(
    ("section", "values", "remedy"),
    [
        ("breakers", {"cooldown_ms": 2.0, "max_cooldown_ms": 1.0}, "max_cooldown_ms"),
        ("security", {"max_age_s": 300.0, "max_future_s": 5.0}, "nonce_window_s"),
    ],
)
def test_values_that_cannot_stand_together_are_refused(
    section: str, values: dict[str, float], remedy: str
) -> None:
    with pytest.raises(ConfigurationError, match=remedy) as caught:
        TamiyoConfig.load(None, **{section: values})
    assert caught.value.field == section
    with pytest.raises(ValidationError, match=remedy):
        {"breakers": BreakerConfig, "security": SecurityConfig}[section](**values)


def test_every_refusal_says_where_the_value_stood(
    toml: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigurationError, match=r"inference_ms is -1 \(argument deadlines\)"):
        TamiyoConfig.load(toml, deadlines={"inference_ms": -1})
    monkeypatch.setenv("tamiyo__deadlines__inference_ms", "soon")
    with pytest.raises(ConfigurationError, match="variable tamiyo__deadlines__inference_ms"):
        TamiyoConfig.load(toml)
    monkeypatch.delenv("tamiyo__deadlines__inference_ms")
    toml.write_text("[policy]\nblending_methods = [1]\n")
    with pytest.raises(ConfigurationError, match=r"blending_methods is \[1\] \(file .*toml\)"):
        TamiyoConfig.load(toml)
    toml.write_text("[polic]\nheads = 1\n")
    with pytest.raises(ConfigurationError, match=r"polic \(file .*toml\).*sections: packet"):
        TamiyoConfig.load(toml)


def test_an_impossible_combination_names_every_value_and_its_origin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "tamiyo.toml"
    path.write_text("[security]\nmax_age_s = 400.0\n")
    monkeypatch.setenv("TAMIYO__SECURITY__MAX_FUTURE_S", "7")
    with pytest.raises(ConfigurationError) as caught:
        TamiyoConfig.load(path)
    message = str(caught.value)
    assert f"max_age_s is 400.0 (file {path})" in message
    assert "max_future_s is '7' (variable TAMIYO__SECURITY__MAX_FUTURE_S)" in message
    assert "nonce_window_s is 300.0 (default)" in message
    assert [str(origin) for origin in cast(tuple[Origin, ...], caught.value.origins)] == [
        "default",
        f"file {path}",
        "variable TAMIYO__SECURITY__MAX_FUTURE_S",
    ]


def test_a_lower_source_is_checked_even_where_a_higher_one_wins(toml: Path) -> None:
    toml.write_text("deadlines = 3\n")
    with pytest.raises(ConfigurationError, match=r"deadlines is 3 \(file .*toml\)"):
        TamiyoConfig.load(toml, deadlines={"inference_ms": 1.0})


def test_a_variable_for_a_whole_section_or_below_a_setting_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("TAMIYO__DEADLINES", "TAMIYO__DEADLINES__INFERENCE_MS__MORE", "TAMIYO__"):
        monkeypatch.setenv(name, "{}")
        with pytest.raises(ConfigurationError, match=f"variable {name}"):
            TamiyoConfig.load()
        monkeypatch.delenv(name)


def test_resolving_names_the_origin_of_every_setting(
    toml: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TAMIYO__DEADLINES__METADATA_MS", "21")
    config, origins = resolve(toml, deadlines={"execution_ms": 32}, guard=GuardConfig(brake=0.5))
    assert config == TamiyoConfig.load(toml, deadlines={"execution_ms": 32}, guard={"brake": 0.5})
    assert list(origins) == [f"{section}.{field}" for section, field in every_setting()]
    assert origins["deadlines.inference_ms"] == Origin("file", str(toml))
    assert origins["deadlines.metadata_ms"] == Origin("variable", "TAMIYO__DEADLINES__METADATA_MS")
    assert origins["deadlines.execution_ms"] == Origin("argument", "deadlines")
    assert origins["guard.brake"] == Origin("argument", "guard")
    assert origins["guard.cooldown_steps"] == Origin("default")


def every_setting() -> Iterator[tuple[str, str]]:
    for section, fields in TamiyoConfig().model_dump().items():
        for field in fields:
            yield section, field


def test_every_setting_says_what_it_means() -> None:
    for section, field in every_setting():
        info = type(getattr(TamiyoConfig(), section)).model_fields[field]
        assert info.description, f"{section}.{field}"


def test_every_setting_is_read_by_something_in_the_package() -> None:
    read: set[str] = set()
    package = Path(tamiyo_jax.__file__).parent
    for path in package.rglob("*.py"):
        room = path.relative_to(package).parts[0]
        for node in [] if room == "config" else ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute):
                read.add(node.attr)
            elif room == "risk" and isinstance(node, ast.Constant):
                read.add(str(node.value))  # the rule table names its limits
    assert [setting for setting in every_setting() if setting[1] not in read] == []


def test_the_documented_settings_are_those_that_there_are() -> None:
    page = Path(__file__).parents[1] / "docs" / "settings.md"
    assert page.read_text(encoding="utf-8") == settings_markdown()
    rows = [line for line in settings_markdown().splitlines() if line.startswith("| `")]
    assert len(rows) == len(list(every_setting()))


@pytest.mark.parametrize("mode", ["act", "guard"])
def test_after_open_no_variable_changes_a_decision_or_a_signature(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: Literal["act", "guard"]
) -> None:
    monkeypatch.setenv("TAMIYO_SECRET", SECRET.decode())
    with open_tamiyo(tmp_path / "calm", secret=None, mode=mode) as tamiyo:
        expected = [summarise(tamiyo.step(packet)) for packet in story(20)]
    with open_tamiyo(tmp_path / "stormy", secret=None, mode=mode) as tamiyo:
        config = tamiyo.config
        monkeypatch.setenv("TAMIYO_SECRET", "another secret, just as long")
        for section, field in every_setting():
            monkeypatch.setenv(f"TAMIYO__{section}__{field}".upper(), "1")
        with pytest.raises(ConfigurationError):
            TamiyoConfig.load()  # so these variables would have been noticed
        decisions = [tamiyo.step(packet) for packet in story(20)]
        assert tamiyo.config is config
    assert [summarise(decision) for decision in decisions] == expected
    commands = [decision.command for decision in decisions if decision.command is not None]
    assert commands
    for command in commands:
        assert command.annotations["signature"] == signature_of(command, Secret(SECRET))


def summarise(decision: Decision) -> tuple[object, ...]:
    """All of a decision but ids, times and the signature over them."""
    command = decision.command
    said = None
    if command is not None:
        annotations = {k: v for k, v in command.annotations.items() if k != "signature"}
        said = (command.command_type, command.target_seed_id, command.payload, annotations)
    events = [(event.name, event.level) for event in decision.events]
    return decision.action, decision.reason, decision.value, said, events


def test_a_configuration_cannot_be_changed() -> None:
    config = TamiyoConfig()
    with pytest.raises(ValidationError, match="frozen"):
        config.policy = PolicyConfig.small()
    with pytest.raises(ValidationError, match="frozen"):
        config.policy.heads = 1


def test_equal_configurations_have_one_hash_and_serve_as_keys() -> None:
    one, other = TamiyoConfig(), TamiyoConfig(policy=PolicyConfig.reference())
    assert {one: "compiled"}[other] == "compiled"
    assert hash(TamiyoConfig(policy=PolicyConfig.small())) != hash(one)
