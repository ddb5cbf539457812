"""Blueprints as JSON, the format that libraries store; its schema is in ``docs/``."""

from __future__ import annotations

import json
from typing import Any

from pydantic import TypeAdapter, ValidationError

from tamiyo_jax.contracts._blueprint import Blueprint
from tamiyo_jax.contracts._checks import Checks
from tamiyo_jax.errors import InvalidBlueprintError

__all__ = ["blueprint_from_json", "blueprint_json_schema", "blueprint_to_json"]

_ADAPTER = TypeAdapter(Blueprint)
_check = Checks(InvalidBlueprintError)


def blueprint_to_json(blueprint: Blueprint) -> str:
    """Serialise a blueprint; equal blueprints give equal texts.

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
    """Parse a blueprint and check its types; `validate_blueprint` checks the rest.

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
    """Return the JSON Schema (2020-12) of blueprints, as in ``docs/blueprint.schema.json``."""
    schema = _ADAPTER.json_schema()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}
