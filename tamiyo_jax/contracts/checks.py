"""Checks of single values, shared by everything that is validated at the boundary."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from enum import Enum
from math import isfinite
from typing import cast

from tamiyo_jax.errors import TamiyoError

__all__ = ["MAX_ID_BYTES", "Checks"]

MAX_ID_BYTES = 256


@dataclass(frozen=True, slots=True)
class Checks:
    """Checks that raise `error`, with the attributes `field` and `value`.

    Each takes `where`, the path of the field, such as ``seeds[3].stage``.
    """

    error: type[TamiyoError]

    def failure(self, where: str, value: object, remedy: str, **context: object) -> TamiyoError:
        """The error that names the field, its value and what to do, with further context."""
        shown = repr(value)
        shown = shown if len(shown) <= 80 else shown[:77] + "..."
        message = f"{where} is {shown}; {remedy}"
        return self.error(message, field=where, value=value, **context)

    def string(self, where: str, value: object) -> int:
        """Text that UTF-8 can carry; returns its size in bytes."""
        if not isinstance(value, str):
            raise self.failure(where, value, "give a string")
        try:
            return len(value.encode())
        except UnicodeEncodeError as error:
            raise self.failure(where, value, "it must be encodable as UTF-8") from error

    def label(self, where: str, value: object) -> None:
        """Text of at most `MAX_ID_BYTES` bytes, possibly empty."""
        if self.string(where, value) > MAX_ID_BYTES:
            raise self.failure(where, value, f"it may have at most {MAX_ID_BYTES} bytes")

    def identifier(self, where: str, value: object) -> None:
        """A label that is not empty."""
        self.label(where, value)
        if not value:
            raise self.failure(where, value, "an id is a non-empty string")

    def unique(self, where: str, ids: Iterable[str]) -> None:
        """No id twice."""
        seen: set[str] = set()
        for one in ids:
            if one in seen:
                raise self.failure(where, one, "ids must not repeat")
            seen.add(one)

    def whole(self, where: str, value: object, limit: int) -> None:
        """A whole number from 0 to `limit`."""
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= limit:
            raise self.failure(where, value, f"give a whole number from 0 to {limit}")

    def number(self, where: str, value: object) -> None:
        """A number, which may be NaN or infinite."""
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise self.failure(where, value, "give a number")

    def finite(self, where: str, value: object) -> None:
        """A number that is neither NaN nor infinite."""
        self.number(where, value)
        if not isfinite(cast(float, value)):
            raise self.failure(where, value, "give a finite number, or leave it out")

    def ratio(self, where: str, value: object) -> None:
        """A number from 0 to 1."""
        self.number(where, value)
        if not 0 <= cast(float, value) <= 1:
            raise self.failure(where, value, "give a number from 0 to 1")

    def member(self, where: str, value: object, kind: type[Enum]) -> None:
        """A member of an enumeration."""
        if not isinstance(value, kind):
            raise self.failure(where, value, f"name a member of {kind.__name__}")

    def all_finite(self, value: object, where: str = "") -> None:
        """No NaN and no infinity anywhere within dataclasses, mappings and tuples."""
        if isinstance(value, float):
            self.finite(where, value)
        for name, part in _parts(value):
            self.all_finite(part, f"{where}{name}" if where else name.removeprefix("."))


def _parts(value: object) -> Iterable[tuple[str, object]]:
    if is_dataclass(value):
        return [(f".{one.name}", getattr(value, one.name)) for one in fields(value)]
    if isinstance(value, Mapping):
        items = cast(Mapping[object, object], value).items()
        return [(f"[{key!r}]", part) for key, part in items]
    if isinstance(value, tuple):
        entries = cast(tuple[object, ...], value)
        return [(f"[{index}]", part) for index, part in enumerate(entries)]
    return ()
