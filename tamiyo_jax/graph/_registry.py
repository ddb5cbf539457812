"""Registries: immutable maps from names to small integers, given in order of arrival.

Index 0 is the empty key. A registry of a closed vocabulary that is full is an error; a
registry of ids that is full sends every further id to its last index, `unseen`, which
coverage reports. An index, once given, never changes, so a journal record need only carry
the keys that its step added.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property

from tamiyo_jax.errors import GraphCapacityError, GraphSchemaError

__all__ = ["Registries", "Registry"]


@dataclass(frozen=True)
class Registry:
    """An immutable map from keys to indices below `capacity`.

    Attributes:
      name: what the keys are.
      capacity: size of the vocabulary; features are index / capacity.
      closed: a full registry is an error; else further keys share the index `unseen`.
      keys: the keys in order of arrival; key ``keys[i]`` has index ``i + 1``.

    Raises:
      GraphCapacityError: more keys than a registry of this capacity holds.
      GraphSchemaError: a key that is empty or stands twice.
    """

    name: str
    capacity: int
    closed: bool = False
    keys: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if len(self._indices) != len(self.keys) or "" in self._indices:
            raise GraphSchemaError(
                f"registry {self.name} holds an empty or repeated key; each key has one index",
                name=self.name,
            )
        if len(self.keys) > self.room:
            raise GraphCapacityError(
                f"{self.name}: {len(self.keys)} names exceed the vocabulary of {self.room}; "
                "use fewer names, or start a run with registries of its own",
                name=self.name,
                count=len(self.keys),
                cap=self.room,
            )

    @cached_property
    def _indices(self) -> dict[str, int]:
        return {key: index for index, key in enumerate(self.keys, start=1)}

    @property
    def room(self) -> int:
        """How many keys fit: index 0 is the empty key, and ids reserve the last index."""
        return self.capacity - (1 if self.closed else 2)

    @property
    def unseen(self) -> int:
        """The index that ids share once the registry is full."""
        if self.closed:
            raise GraphSchemaError(
                f"registry {self.name} is a closed vocabulary and has no unseen index",
                name=self.name,
            )
        return self.capacity - 1

    def __contains__(self, key: object) -> bool:
        return key in self._indices

    def __len__(self) -> int:
        return len(self.keys)

    def index(self, key: str) -> int:
        """Index of `key`: 0 for the empty key, `unseen` for an id that is not held.

        Raises:
          GraphSchemaError: a closed vocabulary does not hold the key.
        """
        if not key:
            return 0
        held = self._indices.get(key)
        if held is not None:
            return held
        if self.closed:
            raise GraphSchemaError(
                f"{self.name} does not hold {key!r}; add it by with_keys first", name=self.name
            )
        return self.unseen

    @cached_property
    def digest(self) -> str:
        """SHA-256 over the sorted (key, index) pairs, hexadecimal."""
        pairs = json.dumps(sorted(self._indices.items()))
        return hashlib.sha256(pairs.encode()).hexdigest()

    def fractions(self, keys: Iterable[str]) -> list[float]:
        """Index / capacity of each key, in [0, 1)."""
        return [self.index(key) / self.capacity for key in keys]

    def count(self, keys: Iterable[str]) -> int:
        """How many of the keys have an index of their own."""
        return sum(map(self._indices.__contains__, keys))

    def with_keys(self, keys: Iterable[str]) -> Registry:
        """This registry with the keys it did not hold, in their order; itself if none is new.

        Raises:
          GraphCapacityError: a closed vocabulary is full.
        """
        keys, held = tuple(keys), self._indices
        if all(map(held.__contains__, keys)):
            return self
        new = [key for key in dict.fromkeys(keys) if key and key not in held]
        if not self.closed:
            new = new[: self.room - len(self.keys)]
        return replace(self, keys=(*self.keys, *new)) if new else self


@dataclass(frozen=True)
class Registries:
    """The seven registries of a controller, with capacities that checkpoints depend on."""

    seeds: Registry
    blueprints: Registry
    layer_types: Registry
    activation_types: Registry
    optimizer_families: Registry
    hazard_classes: Registry
    blending_methods: Registry

    @classmethod
    def empty(cls) -> Registries:
        """Registries that hold nothing."""
        return cls(
            seeds=Registry("seeds", 1024),
            blueprints=Registry("blueprints", 1024),
            layer_types=Registry("layer_types", 1024, closed=True),
            activation_types=Registry("activation_types", 1024, closed=True),
            optimizer_families=Registry("optimizer_families", 256),
            hazard_classes=Registry("hazard_classes", 256),
            blending_methods=Registry("blending_methods", 64),
        )

    def with_keys(self, **keys: Iterable[str]) -> Registries:
        """These registries with further keys, by registry; themselves if nothing is new.

        Raises:
          GraphSchemaError: no registry of that name.
          GraphCapacityError: a closed vocabulary is full.
        """
        held = {name: self[name] for name in keys}
        grown = {name: registry.with_keys(keys[name]) for name, registry in held.items()}
        changed = {name: registry for name, registry in grown.items() if registry is not held[name]}
        return replace(self, **changed) if changed else self

    def __getitem__(self, name: str) -> Registry:
        """The registry of that name."""
        if name not in _NAMES:
            raise GraphSchemaError(
                f"no registry {name!r}; there are {', '.join(_NAMES)}", name=name
            )
        return getattr(self, name)

    @cached_property
    def digest(self) -> str:
        """SHA-256 over the digests of all registries, hexadecimal."""
        digests = [(name, self[name].digest) for name in _NAMES]
        return hashlib.sha256(json.dumps(digests).encode()).hexdigest()

    def additions(self, since: Registries) -> dict[str, list[str]]:
        """The keys that were added after `since`, by registry: what a journal record carries.

        Raises:
          GraphSchemaError: these registries did not grow out of `since`.
        """
        added: dict[str, list[str]] = {}
        for name in _NAMES:
            old, new = since[name].keys, self[name].keys
            if new[: len(old)] != old:
                raise GraphSchemaError(
                    f"registry {name} did not grow out of the one it is compared with", name=name
                )
            if len(new) > len(old):
                added[name] = list(new[len(old) :])
        return added

    def apply_additions(self, additions: Mapping[str, Sequence[str]]) -> Registries:
        """The inverse of `additions`: exactly these keys, in this order, after the present ones.

        Raises:
          GraphSchemaError: no such registry, or a key that is already held.
          GraphCapacityError: more keys than fit.
        """
        grown = {
            name: replace(self[name], keys=(*self[name].keys, *keys))
            for name, keys in additions.items()
        }
        return replace(self, **grown) if grown else self

    def to_plain(self) -> dict[str, list[str]]:
        """All keys by registry, in order of arrival; JSON holds it."""
        return self.additions(Registries.empty())

    @classmethod
    def from_plain(cls, plain: Mapping[str, Sequence[str]]) -> Registries:
        """The inverse of `to_plain`.

        Raises:
          GraphSchemaError: no such registry, or a key that is empty or stands twice.
          GraphCapacityError: more keys than fit.
        """
        return cls.empty().apply_additions(plain)


_NAMES = tuple(field.name for field in fields(Registries))
