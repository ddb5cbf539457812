"""Conversion between dataclasses and protobuf messages, driven by tables of fields.

The tables are in `_tables.py`; nothing here depends on a particular message.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Any, Generic, TypeVar

from google.protobuf.message import Message

__all__ = [
    "Codec",
    "Field",
    "WireError",
    "enumeration",
    "mapping",
    "one_of",
    "optional",
    "part",
    "parts",
    "plain",
    "required",
    "strings",
    "time",
]

T = TypeVar("T")
NANOSECONDS = 1_000_000_000


class WireError(Exception):
    """A value that does not fit its wire field, or a malformed field; internal to this package."""

    def __init__(self, where: str, value: object, remedy: str) -> None:
        super().__init__(where, value, remedy)
        self.where, self.value, self.remedy = where, value, remedy

    def add_outer_path(self, outer: str) -> WireError:
        """Return the error with the path of the enclosing message."""
        joint = "" if not self.where or self.where.startswith("[") else "."
        return WireError(f"{outer}{joint}{self.where}", self.value, self.remedy)


@dataclass(frozen=True, slots=True)
class Field:
    """A row of a table.

    Attributes:
      attribute: name in the dataclass.
      wire: name in the message.
      put: writes a value into the message's field of that name.
      get: reads it; None means absent.
    """

    attribute: str
    wire: str
    put: Callable[[Message, str, Any], None]
    get: Callable[[Message, str], Any]


@dataclass(frozen=True, slots=True)
class Codec(Generic[T]):
    """A dataclass and the fields of its message."""

    kind: type[T]
    fields: tuple[Field, ...]

    def write(self, value: T, message: Message) -> None:
        """Fill `message`; raises `WireError` if a value does not fit its field."""
        for field in self.fields:
            inner = getattr(value, field.attribute)
            try:
                field.put(message, field.wire, inner)
            except WireError as fault:
                raise fault.add_outer_path(field.attribute) from fault
            except (TypeError, ValueError, OverflowError, AttributeError) as error:
                raise WireError(field.attribute, inner, str(error)) from error

    def read(self, message: Message) -> T:
        """Read a dataclass from `message`; raises `WireError` if a field is malformed."""
        values: dict[str, Any] = {}
        for field in self.fields:
            try:
                values[field.attribute] = field.get(message, field.wire)
            except WireError as fault:
                raise fault.add_outer_path(field.attribute) from fault
        return self.kind(**values)


def plain(attribute: str, wire: str = "") -> Field:
    """A scalar without presence."""
    return Field(attribute, wire or attribute, setattr, getattr)


def optional(attribute: str, wire: str = "") -> Field:
    """A scalar that is None if absent."""

    def put(message: Message, name: str, value: object) -> None:
        if value is not None:
            setattr(message, name, value)

    def get(message: Message, name: str) -> object:
        return getattr(message, name) if message.HasField(name) else None

    return Field(attribute, wire or attribute, put, get)


def strings(attribute: str, wire: str = "") -> Field:
    """A tuple of strings."""

    def put(message: Message, name: str, value: tuple[str, ...]) -> None:
        getattr(message, name).extend(value)

    def get(message: Message, name: str) -> tuple[str, ...]:
        return tuple(getattr(message, name))

    return Field(attribute, wire or attribute, put, get)


def mapping(attribute: str, wire: str = "") -> Field:
    """A map from strings to scalars, read in the order of its keys."""

    def put(message: Message, name: str, value: Mapping[str, object]) -> None:
        getattr(message, name).update(value)

    def get(message: Message, name: str) -> dict[str, object]:
        return dict(sorted(getattr(message, name).items()))

    return Field(attribute, wire or attribute, put, get)


def enumeration(attribute: str, kind: type[IntEnum], wire: str = "") -> Field:
    """A member of `kind`; a number that it does not list raises `WireError`."""

    def put(message: Message, name: str, value: IntEnum) -> None:
        setattr(message, name, kind(value).value)

    def get(message: Message, name: str) -> IntEnum:
        number = getattr(message, name)
        try:
            return kind(number)
        except ValueError as error:
            raise WireError("", number, f"{kind.__name__} lists no such number") from error

    return Field(attribute, wire or attribute, put, get)


def time(attribute: str, wire: str) -> Field:
    """Integer nanoseconds since the epoch, as a ``google.protobuf.Timestamp``."""

    def put(message: Message, name: str, value: int | None) -> None:
        if value is not None:
            stamp = getattr(message, name)
            stamp.seconds, stamp.nanos = divmod(value, NANOSECONDS)
            stamp.SetInParent()  # a time of zero is a time

    def get(message: Message, name: str) -> int | None:
        if not message.HasField(name):
            return None
        stamp = getattr(message, name)
        if not 0 <= stamp.nanos < NANOSECONDS:
            raise WireError("nanos", stamp.nanos, f"give a number from 0 to {NANOSECONDS - 1}")
        return stamp.seconds * NANOSECONDS + stamp.nanos

    return Field(attribute, wire, put, get)


def part(attribute: str, codec: Codec[Any], wire: str = "") -> Field:
    """A nested message, None if absent."""

    def put(message: Message, name: str, value: object) -> None:
        if value is not None:
            inner = getattr(message, name)
            inner.SetInParent()  # an empty message is a message
            codec.write(value, inner)

    def get(message: Message, name: str) -> object:
        return codec.read(getattr(message, name)) if message.HasField(name) else None

    return Field(attribute, wire or attribute, put, get)


def parts(attribute: str, codec: Codec[Any], wire: str = "") -> Field:
    """A tuple of nested messages."""

    def put(message: Message, name: str, value: tuple[object, ...]) -> None:
        for index, inner in enumerate(value):
            try:
                codec.write(inner, getattr(message, name).add())
            except WireError as fault:
                raise fault.add_outer_path(f"[{index}]") from fault

    def get(message: Message, name: str) -> tuple[object, ...]:
        read: list[object] = []
        for index, inner in enumerate(getattr(message, name)):
            try:
                read.append(codec.read(inner))
            except WireError as fault:
                raise fault.add_outer_path(f"[{index}]") from fault
        return tuple(read)

    return Field(attribute, wire or attribute, put, get)


def one_of(attribute: str, *members: tuple[str, Codec[Any]]) -> Field:
    """A message of any of several classes, each in a field of its own, or None."""
    rows = {codec.kind: part(attribute, codec, wire) for wire, codec in members}

    def put(message: Message, name: str, value: object) -> None:
        if value is None:
            return
        if type(value) not in rows:
            raise WireError("", value, f"give one of {[kind.__name__ for kind in rows]}")
        row = rows[type(value)]
        row.put(message, row.wire, value)

    def get(message: Message, name: str) -> object:
        present = message.WhichOneof(name)
        return next(
            (row.get(message, row.wire) for row in rows.values() if row.wire == present), None
        )

    return Field(attribute, attribute, put, get)


def required(field: Field) -> Field:
    """The same field, where None raises `WireError`."""

    def put(message: Message, name: str, value: object) -> None:
        if value is None:
            raise WireError("", value, "it is required")
        field.put(message, name, value)

    def get(message: Message, name: str) -> object:
        value = field.get(message, name)
        if value is None:
            raise WireError("", value, "it is required")
        return value

    return replace(field, put=put, get=get)
