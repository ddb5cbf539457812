"""What every section of the configuration is."""

from __future__ import annotations

from typing import LiteralString

from pydantic import BaseModel
from pydantic_core import PydanticCustomError

__all__ = ["Section", "make_impossible"]


class Section(BaseModel, frozen=True, extra="forbid", allow_inf_nan=False):
    """A frozen group of settings; unknown names are errors."""


def make_impossible(message: LiteralString, *fields: str) -> PydanticCustomError:
    """Make the error for an impossible combination; `fields` are the settings involved."""
    return PydanticCustomError("impossible_combination", message, {"fields": fields})
