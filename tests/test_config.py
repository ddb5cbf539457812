"""The configuration: where values come from, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from tamiyo_jax.config import (
    BreakerConfig,
    DeadlineConfig,
    PolicyConfig,
    SecurityConfig,
    TamiyoConfig,
)
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
