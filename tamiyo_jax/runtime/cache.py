"""The cache of blueprints, as a value: what it holds, and how that changes.

Pure: every transition returns the next cache, and time is an argument, in seconds of a clock
that never runs backwards. `tamiyo_jax.runtime.listener` holds the one that is current.

Why an answer is never older than what was heard: an entry stays only while no change above
its revision has been heard for its id. A change that is heard removes the older entry; one
that is heard while the id is being fetched is remembered until the fetch ends, and an answer
older than it is thrown away; and when changes may have gone unheard, everything is dropped,
fetches under way included.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple, Self, TypeVar

from tamiyo_jax.contracts import Blueprint, Event, Metric, TelemetryLevel
from tamiyo_jax.errors import StaleCacheError
from tamiyo_jax.graph import BlueprintArrays
from tamiyo_jax.runtime.library import Change

__all__ = ["ABSENCE_SECONDS", "BlueprintCache", "Entry", "Found"]

K = TypeVar("K")
V = TypeVar("V")

ABSENCE_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Entry:
    """A blueprint as the library gave it, and what was encoded of it once it was active."""

    blueprint: Blueprint
    arrays: BlueprintArrays | None = None


class Found(NamedTuple):
    """What is known of some ids.

    Attributes:
      entries: those that exist, by id.
      absent: those that do not.
      missing: those that are not known, and have to be fetched.
      ticket: names the fetch of the missing ones.
    """

    entries: Mapping[str, Entry]
    absent: tuple[str, ...]
    missing: tuple[str, ...]
    ticket: int


@dataclass(frozen=True, slots=True)
class BlueprintCache:
    """Blueprints of a library, as of the changes that were heard.

    Attributes:
      capacity: entries kept, and absences too.
      max_staleness: seconds without word from the library after which nothing is answered.
      heard_at: when the last successful poll began; at first, when the cache was made.
      watermark: all changes up to this revision were heard.
      reread_due: changes may have gone unheard, so `reread` must come before `hear`.
      entries: by id, the least recently used first.
      absences: until when an id is taken to be unknown, the oldest first.
      fetching: by ticket and id, the newest change heard of since that fetch began, 0 for none.
      tickets: tickets given so far.
      stale_told: this spell of staleness was told.
      hits: ids asked for that were there.
      misses: ids asked for that were not.
    """

    capacity: int
    max_staleness: float
    heard_at: float
    watermark: int = 0
    reread_due: bool = True
    entries: Mapping[str, Entry] = field(default_factory=dict[str, Entry])
    absences: Mapping[str, float] = field(default_factory=dict[str, float])
    fetching: Mapping[int, Mapping[str, int]] = field(default_factory=dict[int, Mapping[str, int]])
    tickets: int = 0
    stale_told: bool = False
    hits: int = 0
    misses: int = 0

    def hear(self, changes: Iterable[Change], at: float) -> Self:
        """A poll that began `at` succeeded and brought these changes."""
        cache = self
        for change in changes:
            cache = cache.apply(change)
        return cache if cache.reread_due else replace(cache, heard_at=at, stale_told=False)

    def apply(self, change: Change) -> Self:
        """One change: it drops its own entry or absence, and nothing else.

        One that is not the next drops everything: something was missed, or came in another
        order, or the library is not the one that it was.
        """
        if self.reread_due or change.revision != self.watermark + 1:
            return self.forget()
        changed = change.blueprint_id
        entry = self.entries.get(changed)
        outdated = entry is not None and entry.blueprint.revision < change.revision
        return replace(
            self,
            watermark=change.revision,
            entries=_without(self.entries, (changed,)) if outdated else self.entries,
            absences=_without(self.absences, (changed,)),
            fetching={
                ticket: {**newest, changed: change.revision} if changed in newest else newest
                for ticket, newest in self.fetching.items()
            },
        )

    def forget(self) -> Self:
        """Changes were missed: hold nothing, and hear nothing before `reread`."""
        return replace(self, reread_due=True, entries={}, absences={}, fetching={})

    def interrupted(self) -> Self:
        """The library does not answer: what is here serves until it is stale."""
        return replace(self, reread_due=True)

    def reread(self, revision: int, at: float) -> Self:
        """Begin anew at the library's `revision`, which was asked for `at`."""
        fresh = replace(self.forget(), watermark=revision, reread_due=False)
        return fresh.hear((), at)

    def aged(self, now: float) -> tuple[Self, tuple[Event, ...]]:
        """What operators are told at this age: once per spell, that the cache is stale."""
        if self.stale_told or not self._stale(now):
            return self, ()
        age = f"{(now - self.heard_at) * 1e3:.0f}"
        event = Event("blueprint_cache_stale", TelemetryLevel.CRITICAL, {"age_ms": age})
        return replace(self, stale_told=True), (event,)

    def look(self, ids: Collection[str], now: float) -> tuple[Self, Found]:
        """Look ids up; a fetch of those that are missing begins here, and `store` ends it.

        Raises:
          StaleCacheError: the library has not been heard for longer than `max_staleness`.
        """
        if self._stale(now):
            raise StaleCacheError(
                f"no word from the blueprint library for {now - self.heard_at:.3g} s, the limit "
                f"is {self.max_staleness:g} s; check the library, or raise "
                "library.max_staleness_ms",
                age_s=now - self.heard_at,
                max_staleness_s=self.max_staleness,
            )
        entries = {one: self.entries[one] for one in ids if one in self.entries}
        absent = tuple(one for one in ids if self.absences.get(one, now) > now)
        missing = tuple(one for one in ids if one not in entries and one not in absent)
        ticket = self.tickets + bool(missing)
        begun = {ticket: dict.fromkeys(missing, 0)} if missing else {}
        cache = replace(
            self,
            entries={**_without(self.entries, entries), **entries},
            fetching={**self.fetching, **begun},
            tickets=ticket,
            hits=self.hits + len(entries),
            misses=self.misses + len(missing),
        )
        return cache, Found(entries, absent, missing, ticket)

    def store(
        self, ticket: int, answers: Mapping[str, Blueprint | None], now: float
    ) -> tuple[Self, Found]:
        """End a fetch; what it did not answer, or was overtaken by a change, is still missing."""
        asked = self.fetching.get(ticket, {})
        entries = {
            one: Entry(blueprint)
            for one, blueprint in answers.items()
            if blueprint is not None and one in asked and blueprint.revision >= asked[one]
        }
        absent = tuple(
            one for one, newest in asked.items() if answers.get(one, ...) is None and newest == 0
        )
        missing = tuple(one for one in asked if one not in entries and one not in absent)
        until = dict.fromkeys(absent, now + ABSENCE_SECONDS)
        cache = replace(
            self,
            entries=_newest({**_without(self.entries, entries), **entries}, self.capacity),
            absences=_newest({**_without(self.absences, absent), **until}, self.capacity),
            fetching=_without(self.fetching, (ticket,)),
        )
        return cache, Found(entries, absent, missing, ticket)

    def keep(self, arrays: BlueprintArrays) -> Self:
        """Keep what was encoded of a blueprint, if that blueprint is still here."""
        one = arrays.blueprint.blueprint_id
        entry = self.entries.get(one)
        if entry is None or entry.blueprint.revision != arrays.blueprint.revision:
            return self
        return replace(self, entries={**self.entries, one: replace(entry, arrays=arrays)})

    def metrics(self) -> tuple[Metric, ...]:
        """Counters for telemetry."""
        prefix = "tamiyo.blueprint_cache"
        return (
            Metric(f"{prefix}.hits", float(self.hits), "blueprints"),
            Metric(f"{prefix}.misses", float(self.misses), "blueprints"),
            Metric(f"{prefix}.entries", float(len(self.entries)), "blueprints"),
            Metric(f"{prefix}.revision", float(self.watermark), "changes"),
        )

    def _stale(self, now: float) -> bool:
        return now - self.heard_at > self.max_staleness


def _without(held: Mapping[K, V], ids: Collection[K]) -> Mapping[K, V]:
    if not any(one in held for one in ids):
        return held
    return {one: value for one, value in held.items() if one not in ids}


def _newest(held: Mapping[str, V], count: int) -> Mapping[str, V]:
    surplus = max(0, len(held) - count)
    return dict(list(held.items())[surplus:])
