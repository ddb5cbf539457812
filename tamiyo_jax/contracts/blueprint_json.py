"""Blueprints as JSON, which is what libraries store; the schema stands in ``docs/``."""

from __future__ import annotations

import json
from typing import Any

from pydantic import TypeAdapter, ValidationError

from tamiyo_jax.contracts.blueprint import Blueprint
from tamiyo_jax.contracts.checks import Checks
from tamiyo_jax.errors import InvalidBlueprintError

__all__ = ["blueprint_from_json", "blueprint_json_schema", "blueprint_to_json"]

_ADAPTER = TypeAdapter(Blueprint)
_check = Checks(InvalidBlueprintError)


def blueprint_to_json(blueprint: Blueprint) -> str:
    """Text of a blueprint; the same blueprint always gives the same text.

    Raises:
      InvalidBlueprintError: not a blueprint, a field that is not of its type, or a number that
        is not finite; the error names the field.
    """
    _check.instance("blueprint", blueprint, Blueprint)
    _check.kind("", blueprint, Blueprint)
    _check.all_finite(blueprint)
    document = _ADAPTER.dump_python(blueprint, mode="json")
    return json.dumps(document, sort_keys=True, separators=(",", ":"))


def blueprint_from_json(text: str) -> Blueprint:
    """The blueprint of a text, with types checked; `validate_blueprint` checks the rest.

    Raises:
      InvalidBlueprintError: not JSON, an unknown or missing field, a value of another type,
        or a number that is not finite; the error names the field.
    """
    try:
        return _ADAPTER.validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "blueprint"
        raise _check.failure(where, first["input"], first["msg"]) from error


def blueprint_json_schema() -> dict[str, Any]:
    """The JSON Schema (2020-12) of the texts, as published in ``docs/blueprint.schema.json``."""
    schema = _ADAPTER.json_schema()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}
