"""The configuration tree, and its resolution from all sources."""

from __future__ import annotations

import inspect
import json
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple, Unpack

from tamiyo_jax.config._deciding import GraphConfig, HeuristicConfig, PacketConfig, PolicyConfig
from tamiyo_jax.config._dicts import Sections
from tamiyo_jax.config._intervening import BreakerConfig, GuardConfig, RiskConfig
from tamiyo_jax.config._operating import (
    DeadlineConfig,
    LibraryConfig,
    PublishingConfig,
    SecurityConfig,
    StorageConfig,
)
from tamiyo_jax.config._section import Section
from tamiyo_jax.config._sources import (
    DEFAULT,
    Origin,
    build,
    from_arguments,
    from_environment,
    from_file,
    section_of,
)

__all__ = ["Resolved", "TamiyoConfig", "resolve", "settings_markdown"]


class TamiyoConfig(Section, frozen=True):
    """All settings of a controller, frozen; each section takes a plain dict too."""

    packet: PacketConfig = PacketConfig()
    graph: GraphConfig = GraphConfig()
    policy: PolicyConfig = PolicyConfig()
    heuristic: HeuristicConfig = HeuristicConfig()
    risk: RiskConfig = RiskConfig()
    guard: GuardConfig = GuardConfig()
    breakers: BreakerConfig = BreakerConfig()
    deadlines: DeadlineConfig = DeadlineConfig()
    library: LibraryConfig = LibraryConfig()
    storage: StorageConfig = StorageConfig()
    publishing: PublishingConfig = PublishingConfig()
    security: SecurityConfig = SecurityConfig()

    if TYPE_CHECKING:

        def __init__(self, **sections: Unpack[Sections]) -> None: ...

    @classmethod
    def load(
        cls, path: str | os.PathLike[str] | None = None, **overrides: Unpack[Sections]
    ) -> TamiyoConfig:
        """Resolve a TOML file, ``TAMIYO__SECTION__FIELD`` variables and keyword overrides.

        Later sources win, field by field. Unknown sections and fields are errors. A variable
        holds the plain value, or a list as JSON.

        Args:
          path: a TOML file with a table per section; None reads no file.
          **overrides: sections, each a dict or a section object.

        Raises:
          ConfigurationError: a value is unknown, malformed or impossible in combination.
        """
        return resolve(path, **overrides).config


class Resolved(NamedTuple):
    """A configuration, and the origin of every value by ``"section.field"``."""

    config: TamiyoConfig
    origins: Mapping[str, Origin]


def resolve(path: str | os.PathLike[str] | None = None, **overrides: Unpack[Sections]) -> Resolved:
    """Resolve as `TamiyoConfig.load`, and return where every value comes from."""
    settings = {
        **({} if path is None else from_file(TamiyoConfig, path)),
        **from_environment(TamiyoConfig),
        **from_arguments(TamiyoConfig, overrides),
    }
    origins = {
        f"{section}.{field}": settings[section, field].origin
        if (section, field) in settings
        else DEFAULT
        for section in TamiyoConfig.model_fields
        for field in section_of(TamiyoConfig, section).model_fields
    }
    return Resolved(build(TamiyoConfig, settings), origins)


_PAGE = """# Settings

Every setting with its default and its meaning; `tamiyo_jax.config.settings_markdown` makes this
page. [Configuration](configuration.md) says how to set them.
"""


def settings_markdown() -> str:
    """Render all settings as a page of the documentation."""
    return _PAGE + "".join(_section(name) for name in TamiyoConfig.model_fields)


def _section(name: str) -> str:
    section = section_of(TamiyoConfig, name)
    about = inspect.cleandoc(section.__doc__ or "")
    rows = "".join(
        f"| `{field}` | {_text(info.default)} | {info.description} |\n"
        for field, info in section.model_fields.items()
    )
    return f"\n## {name}\n\n{about}\n\n| setting | default | meaning |\n|---|---|---|\n{rows}"


def _text(value: object) -> str:
    """Render a value as in TOML, which equals JSON for all types of settings."""
    return f"`{json.dumps(value)}`"
