"""How a table of fields turns a dataclass into a protobuf message and back.

Nothing here knows a message: `tamiyo_jax.contracts.wire` holds the tables.
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
    """A value that the wire cannot carry, or carries wrongly; it never leaves this room."""

    def __init__(self, where: str, value: object, remedy: str) -> None:
        super().__init__(where, value, remedy)
        self.where, self.value, self.remedy = where, value, remedy

    def within(self, outer: str) -> WireError:
        """The same fault as seen from the message around."""
        joint = "" if not self.where or self.where.startswith("[") else "."
        return WireError(f"{outer}{joint}{self.where}", self.value, self.remedy)


@dataclass(frozen=True, slots=True)
class Field:
    """One row of a table.

    Attributes:
      attribute: name in the dataclass.
      wire: name in the message.
      put: writes a value into the message's field of that name.
      get: reads it; None is absent.
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
        """Fill `message`; `WireError` where a value does not fit its field."""
        for one in self.fields:
            inner = getattr(value, one.attribute)
            try:
                one.put(message, one.wire, inner)
            except WireError as fault:
                raise fault.within(one.attribute) from fault
            except (TypeError, ValueError, OverflowError, AttributeError) as error:
                raise WireError(one.attribute, inner, str(error)) from error

    def read(self, message: Message) -> T:
        """The dataclass of `message`; `WireError` where a field holds what it must not."""
        values: dict[str, Any] = {}
        for one in self.fields:
            try:
                values[one.attribute] = one.get(message, one.wire)
            except WireError as fault:
                raise fault.within(one.attribute) from fault
        return self.kind(**values)


def plain(attribute: str, wire: str = "") -> Field:
    """A scalar without presence."""
    return Field(attribute, wire or attribute, setattr, getattr)


def optional(attribute: str, wire: str = "") -> Field:
    """A scalar that is None where it is absent."""

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
    """A member of `kind`; a number that it does not list is a fault."""

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
    """A message within, None where it is absent."""

    def put(message: Message, name: str, value: object) -> None:
        if value is not None:
            inner = getattr(message, name)
            inner.SetInParent()  # an empty message is a message
            codec.write(value, inner)

    def get(message: Message, name: str) -> object:
        return codec.read(getattr(message, name)) if message.HasField(name) else None

    return Field(attribute, wire or attribute, put, get)


def parts(attribute: str, codec: Codec[Any], wire: str = "") -> Field:
    """A tuple of messages within."""

    def put(message: Message, name: str, value: tuple[object, ...]) -> None:
        for index, one in enumerate(value):
            try:
                codec.write(one, getattr(message, name).add())
            except WireError as fault:
                raise fault.within(f"[{index}]") from fault

    def get(message: Message, name: str) -> tuple[object, ...]:
        read: list[object] = []
        for index, one in enumerate(getattr(message, name)):
            try:
                read.append(codec.read(one))
            except WireError as fault:
                raise fault.within(f"[{index}]") from fault
        return tuple(read)

    return Field(attribute, wire or attribute, put, get)


def one_of(attribute: str, *members: tuple[str, Codec[Any]]) -> Field:
    """A message of one of several classes, each in a field of its own, or None."""
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
            (one.get(message, one.wire) for one in rows.values() if one.wire == present), None
        )

    return Field(attribute, attribute, put, get)


def required(field: Field) -> Field:
    """The same field, where None is a fault."""

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
