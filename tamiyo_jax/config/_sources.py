"""Read settings from a file, the environment and arguments, and build the tree.

Every source is read into the same flat table, from section and field to value and origin. So
precedence is the union of such tables, and every error can name the origin of a value.
"""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Literal, NamedTuple, TypeVar, cast

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, EnvSettingsSource, SettingsError

from tamiyo_jax.config._section import Section
from tamiyo_jax.errors import ConfigurationError

__all__ = [
    "DEFAULT",
    "Origin",
    "Setting",
    "Settings",
    "build",
    "from_arguments",
    "from_environment",
    "from_file",
    "section_of",
]

_PREFIX = "TAMIYO__"
_DELIMITER = "__"
# A value that is no name of a variable is probably the secret itself.
_MAY_BE_A_SECRET = ("security", "secret_env")

Tree = TypeVar("Tree", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class Origin:
    """The origin of a value.

    Attributes:
      kind: the source.
      name: path of the file, name of the variable or of the argument; empty for a default.
    """

    kind: Literal["default", "file", "variable", "argument"]
    name: str = ""

    def __str__(self) -> str:
        return f"{self.kind} {self.name}".rstrip()


DEFAULT = Origin("default")


class Setting(NamedTuple):
    """A value as its source gives it, and its origin."""

    value: object
    origin: Origin


Settings = Mapping[tuple[str, str], Setting]
"""Settings by section and field."""


def from_file(tree: type[BaseModel], path: str | os.PathLike[str]) -> Settings:
    """Read the settings of a TOML file with a table per section.

    Raises:
      ConfigurationError: the file cannot be read, or names an unknown setting.
    """
    try:
        document = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigurationError(
            f"configuration file {path} does not exist", path=str(path)
        ) from error
    except OSError as error:
        raise ConfigurationError(
            f"configuration file {path} cannot be read: {error.strerror}", path=str(path)
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(
            f"configuration file {path} is not TOML: {error}", path=str(path)
        ) from error
    return _settings(
        tree, {name: (part, Origin("file", str(path))) for name, part in document.items()}
    )


def from_arguments(tree: type[BaseModel], arguments: Mapping[str, object]) -> Settings:
    """Read the settings of keyword arguments, each a dict or a section object.

    A section object counts with the fields that it was given, not with its defaults.

    Raises:
      ConfigurationError: an argument names an unknown setting.
    """
    return _settings(
        tree,
        {
            name: (
                part.model_dump(exclude_unset=True) if isinstance(part, Section) else part,
                Origin("argument", name),
            )
            for name, part in arguments.items()
        },
    )


def from_environment(tree: type[BaseModel]) -> Settings:
    """Read the variables ``TAMIYO__SECTION__FIELD``, in upper or lower case.

    A variable holds the plain value, or a list as JSON.

    Raises:
      ConfigurationError: a variable names an unknown setting, or is not JSON where a list is
        expected.
    """
    origins: dict[tuple[str, str], Origin] = {}
    for variable in os.environ:
        _check_underscores(tree, variable)
        if variable.upper().startswith(_PREFIX):
            section, _, field = variable.lower()[len(_PREFIX) :].partition(_DELIMITER)
            origins[section, field] = Origin("variable", variable)
            _check_known(tree, section, field, origins[section, field])
    # The source asks for settings, but reads no more of them than the fields of any model.
    settings = cast(type[BaseSettings], tree)
    source = EnvSettingsSource(settings, env_prefix=_PREFIX, env_nested_delimiter=_DELIMITER)
    try:
        values = cast(Mapping[str, Mapping[str, object]], source())
    except SettingsError as error:
        cause = error.__cause__
        text = cause.doc if isinstance(cause, json.JSONDecodeError) else None
        names = [origin.name for origin in origins.values() if os.environ[origin.name] == text]
        raise ConfigurationError(
            f"configuration: variable {' or '.join(names)} is {text!r}, which is not JSON; "
            'write a list as ["one", "two"]',
            variables=tuple(names),
            value=text,
        ) from error
    return {key: Setting(values[key[0]][key[1]], origin) for key, origin in origins.items()}


def build(tree: type[Tree], settings: Settings) -> Tree:
    """Build the tree of the settings and the defaults.

    Raises:
      ConfigurationError: a value is malformed, or impossible in combination; the error names
        every setting involved and where its value comes from.
    """
    nested: dict[str, dict[str, object]] = {}
    for (section, field), setting in settings.items():
        nested.setdefault(section, {})[field] = setting.value
    try:
        return tree.model_validate(nested)
    except ValidationError as error:
        refusal = _explain_error(tree, settings, error.errors(include_url=False)[0])
    raise refusal  # without Pydantic's error as its cause, which shows values that may be secret


def section_of(tree: type[BaseModel], name: str) -> type[Section]:
    """The class of a section."""
    return cast(type[Section], tree.model_fields[name].annotation)


def _check_underscores(tree: type[BaseModel], variable: str) -> None:
    """Refuse a variable that is a setting but for its number of underscores."""
    name = variable.upper()
    if not name.startswith("TAMIYO_"):
        return
    for section in tree.model_fields:
        for field in section_of(tree, section).model_fields:
            meant = f"{_PREFIX}{section}{_DELIMITER}{field}".upper()
            if name != meant and _collapse(name) == _collapse(meant):
                break
        else:
            if not name.startswith(f"TAMIYO_{section}{_DELIMITER}".upper()):
                continue
            meant = f"{_PREFIX}{section}{_DELIMITER}...".upper()
        raise ConfigurationError(
            f"configuration: variable {variable} is not read, which is probably a mistake: "
            f"settings have two underscores, {meant}",
            field=section,
            origins=(Origin("variable", variable),),
        )


def _collapse(name: str) -> str:
    return name.replace("_", "")


def _settings(tree: type[BaseModel], parts: Mapping[str, tuple[object, Origin]]) -> Settings:
    """Flatten sections, each with its origin, and check their names."""
    settings: dict[tuple[str, str], Setting] = {}
    for section, (part, origin) in parts.items():
        _check_known(tree, section, None, origin)
        if not isinstance(part, Mapping):
            raise ConfigurationError(
                f"configuration: {section} is {part!r} ({origin}); give it a table of settings",
                field=section,
                value=part,
                origins=(origin,),
            )
        for field, value in cast(Mapping[str, object], part).items():
            _check_known(tree, section, field, origin)
            settings[section, field] = Setting(value, origin)
    return settings


def _check_known(tree: type[BaseModel], section: str, field: str | None, origin: Origin) -> None:
    """Refuse a section or, unless it is None, a field that does not exist."""
    known: Iterable[str] = tree.model_fields
    where, shown, kind, name = section, section, "sections", section
    if section in tree.model_fields:
        if field is None:
            return
        known, kind = section_of(tree, section).model_fields, f"settings of {section}"
        if field in known:
            return
        where = f"{section}.{field}" if field else section
        shown, name = where if field else f"{section} alone", field
    likely = get_close_matches(name, known, 1)
    hint = f"; did you mean {likely[0]}?" if likely else ""
    raise ConfigurationError(
        f"configuration: {shown} ({origin}) is not among the {kind}: {', '.join(known)}{hint}",
        field=where,
        origins=(origin,),
    )


def _explain_error(
    tree: type[BaseModel], settings: Settings, first: ErrorDetails
) -> ConfigurationError:
    section, *rest = (str(part) for part in first["loc"])
    where = ".".join((section, *rest))
    # A single value is wrong, or a combination of several.
    involved = tuple(rest[:1]) or cast(tuple[str, ...], first.get("ctx", {})["fields"])
    defaults = section_of(tree, section)()
    facts: list[str] = []
    origins: list[Origin] = []
    for name in involved:
        value, origin = settings.get((section, name), (getattr(defaults, name), DEFAULT))
        hidden = (section, name) == _MAY_BE_A_SECRET
        facts.append(f"{name} is {'not shown' if hidden else repr(value)} ({origin})")
        origins.append(origin)
    return ConfigurationError(
        f"configuration: {where}: {first['msg']}; {', '.join(facts)}",
        field=where,
        value=None if (section, *rest) == _MAY_BE_A_SECRET else first["input"],
        origins=tuple(origins),
    )
