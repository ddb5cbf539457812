"""Checks of single values, shared by everything that is validated at the boundary."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from math import isfinite
from operator import attrgetter
from types import UnionType
from typing import Union, cast, get_args, get_origin, get_type_hints

from tamiyo_jax.errors import TamiyoError

__all__ = ["MAX_ID_BYTES", "Checks"]

MAX_ID_BYTES = 256


@dataclass(frozen=True, slots=True)
class Checks:
    """Checks that raise `error`, with the attributes `field` and `value`.

    Every check takes `where`, the path of the field, such as ``seeds[3].stage``.
    """

    error: type[TamiyoError]

    def failure(self, where: str, value: object, remedy: str, **context: object) -> TamiyoError:
        """The error that names the field, its value and what to do, with further context."""
        try:
            shown = repr(value)
        except ValueError:  # a whole number of more digits than Python prints
            shown = f"a {type(value).__name__} too long to show"
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
        for identifier in ids:
            if identifier in seen:
                raise self.failure(where, identifier, "ids must not repeat")
            seen.add(identifier)

    def integer(self, where: str, value: object) -> None:
        """A whole number of any size and sign."""
        if not isinstance(value, int) or isinstance(value, bool):
            raise self.failure(where, value, "give a whole number")

    def whole(self, where: str, value: object, limit: int) -> None:
        """A whole number from 0 to `limit`."""
        self.integer(where, value)
        if not 0 <= cast(int, value) <= limit:
            raise self.failure(where, value, f"give a whole number from 0 to {limit}")

    def number(self, where: str, value: object) -> None:
        """A number, which may be NaN or infinite but not whole and beyond every float."""
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise self.failure(where, value, "give a number")
        if isinstance(value, int) and abs(value) > sys.float_info.max:
            raise self.failure(where, value, "give a number that a float can hold")

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

    def instance(self, where: str, value: object, kind: type) -> None:
        """An instance of a class, such as a member of an enumeration."""
        if not isinstance(value, kind):
            raise self.failure(where, value, f"give a {kind.__name__}")

    def kind(self, where: str, value: object, annotation: object) -> None:
        """A value of the annotated type, and so for every part within it.

        Annotations name scalars, enumerations, dataclasses, tuples and mappings, or any of
        these as ``T | None``. The path of the outermost dataclass is empty.
        """
        if not conforms_to(annotation)(value):
            self._kind(where, value, annotation)

    def _kind(self, where: str, value: object, annotation: object) -> None:
        """Check every part, and name the first that is not of its type."""
        if annotation in _SCALARS:
            _SCALARS[annotation](self, where, value)
            return
        origin, arguments = get_origin(annotation), get_args(annotation)
        if origin in (Union, UnionType):
            if value is not None:
                self._kind(where, value, arguments[0])
            return
        self.instance(where, value, cast(type, origin or annotation))
        if origin is tuple and Ellipsis not in arguments:
            count = len(cast(tuple[object, ...], value))
            if count != len(arguments):
                raise self.failure(where, value, f"give {len(arguments)} entries, not {count}")
        for name, part, inner in _annotated_parts(value, annotation):
            self._kind(_path(where, name), part, inner)

    def all_finite(self, value: object, where: str = "") -> None:
        """No NaN and no infinity anywhere within dataclasses, mappings and tuples."""
        if isinstance(value, float):
            self.finite(where, value)
        for name, part in _parts(value):
            self.all_finite(part, _path(where, name))


_SCALARS: dict[object, Callable[[Checks, str, object], object]] = {
    str: Checks.string,
    int: Checks.integer,
    float: Checks.number,
}


Conforms = Callable[[object], bool]


@cache
def conforms_to(annotation: object) -> Conforms:
    """Build a quick test whether a value and all its parts are of the annotated type.

    The test never accepts what `Checks.kind` refuses. It may refuse rare values that
    `Checks.kind` accepts, such as a subclass of a scalar.
    """
    origin, arguments = get_origin(annotation), get_args(annotation)
    if annotation in _QUICK:
        return _QUICK[annotation]
    if origin in (Union, UnionType):
        inner = conforms_to(arguments[0])
        return lambda value: value is None or inner(value)
    if is_dataclass(annotation):
        return _test_parts(cast(type, annotation))
    if origin is tuple and arguments[-1] is Ellipsis:
        entry = conforms_to(arguments[0])
        return lambda value: type(value) is tuple and all(map(entry, cast(Iterable[object], value)))
    if origin is Mapping:
        key, part = map(conforms_to, arguments)
        return lambda value: (
            type(value) is dict
            and all(map(key, cast(dict[object, object], value)))
            and all(map(part, cast(dict[object, object], value).values()))
        )
    kind = cast(type, annotation)
    return lambda value: type(value) is kind


def _test_parts(kind: type) -> Conforms:
    tests = [(attrgetter(name), conforms_to(inner)) for name, inner in _annotations(kind)]

    def conforms(value: object) -> bool:
        return type(value) is kind and all([test(read(value)) for read, test in tests])

    return conforms


def _quick_string(value: object) -> bool:
    return type(value) is str and value.isascii()


def _quick_integer(value: object) -> bool:
    return type(value) is int


def _quick_number(value: object) -> bool:
    return type(value) is float or (type(value) is int and -_SAFE < value < _SAFE)


_SAFE = 2**64
_QUICK: dict[object, Conforms] = {str: _quick_string, int: _quick_integer, float: _quick_number}


def _path(where: str, name: str) -> str:
    return f"{where}{name}" if where else name.removeprefix(".")


@cache
def _annotations(kind: type) -> tuple[tuple[str, object], ...]:
    hints = get_type_hints(kind)
    return tuple((field.name, hints[field.name]) for field in fields(kind))


def _annotated_parts(value: object, annotation: object) -> Iterator[tuple[str, object, object]]:
    if is_dataclass(annotation):
        for name, inner in _annotations(cast(type, annotation)):
            yield f".{name}", getattr(value, name), inner
    elif isinstance(value, Mapping):
        of_keys, of_values = get_args(annotation)
        for key, part in cast(Mapping[object, object], value).items():
            yield "", key, of_keys  # before its name is shown
            yield f"[{key!r}]", part, of_values
    elif isinstance(value, tuple):
        kinds = get_args(annotation)
        for index, part in enumerate(cast(tuple[object, ...], value)):
            yield f"[{index}]", part, kinds[0 if kinds[-1] is Ellipsis else index]


def _parts(value: object) -> Iterable[tuple[str, object]]:
    if is_dataclass(value):
        return [(f".{field.name}", getattr(value, field.name)) for field in fields(value)]
    if isinstance(value, Mapping):
        items = cast(Mapping[object, object], value).items()
        return [(f"[{key!r}]", part) for key, part in items]
    if isinstance(value, tuple):
        entries = cast(tuple[object, ...], value)
        return [(f"[{index}]", part) for index, part in enumerate(entries)]
    return ()
