"""The cache of blueprints as an immutable value, and its transitions.

Pure: every transition returns the next cache, and time is an argument, in seconds of a monotonic
clock. `CacheListener` holds the current cache.

Invariant: an answer is never older than the newest change received for its id. A change removes
the older entry. A change that arrives while its id is being fetched is remembered until the fetch
ends, and an older answer is thrown away. If changes may have been missed, everything is dropped,
fetches in flight included.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple, Self, TypeVar

from tamiyo_jax.contracts import Blueprint, Event, Metric, TelemetryLevel
from tamiyo_jax.errors import StaleCacheError
from tamiyo_jax.graph import BlueprintArrays
from tamiyo_jax.library._memory import Change

__all__ = ["ABSENCE_SECONDS", "BlueprintCache", "Entry", "Found"]

K = TypeVar("K")
V = TypeVar("V")

ABSENCE_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Entry:
    """A blueprint of the library, and its arrays once it has been encoded."""

    blueprint: Blueprint
    arrays: BlueprintArrays | None = None


class Found(NamedTuple):
    """The result of a look-up.

    Attributes:
      entries: entries by id, of the ids that exist.
      absent: ids that the library does not hold.
      missing: ids that are not known and have to be fetched.
      ticket: identifies the fetch of the missing ids.
    """

    entries: Mapping[str, Entry]
    absent: tuple[str, ...]
    missing: tuple[str, ...]
    ticket: int


@dataclass(frozen=True, slots=True)
class BlueprintCache:
    """Blueprints of a library, as of the changes received so far.

    Attributes:
      capacity: largest number of entries, and of absences.
      max_staleness: seconds without an answer of the library after which look-ups raise.
      polled_at: when the last successful poll began; at first, when the cache was created.
      watermark: all changes up to this revision were received.
      reread_due: changes may have been missed, so `reread` must come before `apply_poll`.
      entries: by id, the least recently used first.
      absences: time until which an id counts as unknown, by id, the oldest first.
      fetching: by ticket and id, the newest change since that fetch began, 0 for none.
      tickets: number of tickets issued.
      stale_emitted: the event for the current period of staleness was emitted.
      hits: number of ids looked up and found.
      misses: number of ids looked up and not known.
    """

    capacity: int
    max_staleness: float
    polled_at: float
    watermark: int = 0
    reread_due: bool = True
    entries: Mapping[str, Entry] = field(default_factory=dict[str, Entry])
    absences: Mapping[str, float] = field(default_factory=dict[str, float])
    fetching: Mapping[int, Mapping[str, int]] = field(default_factory=dict[int, Mapping[str, int]])
    tickets: int = 0
    stale_emitted: bool = False
    hits: int = 0
    misses: int = 0

    def apply_poll(self, changes: Iterable[Change], at: float) -> Self:
        """Apply the changes of a successful poll that began at `at`."""
        cache = self
        for change in changes:
            cache = cache.apply(change)
        return cache if cache.reread_due else replace(cache, polled_at=at, stale_emitted=False)

    def apply(self, change: Change) -> Self:
        """Apply a change: it drops its own entry or absence, and nothing else.

        A change that is not the next revision drops everything: changes were missed or
        reordered, or the library was replaced.
        """
        if self.reread_due or change.revision != self.watermark + 1:
            return self.drop_all()
        changed = change.blueprint_id
        entry = self.entries.get(changed)
        outdated = entry is not None and entry.blueprint.revision < change.revision
        return replace(
            self,
            watermark=change.revision,
            entries=_drop_keys(self.entries, (changed,)) if outdated else self.entries,
            absences=_drop_keys(self.absences, (changed,)),
            fetching={
                ticket: {**newest, changed: change.revision} if changed in newest else newest
                for ticket, newest in self.fetching.items()
            },
        )

    def drop_all(self) -> Self:
        """Drop everything because changes were missed; `reread` must come next."""
        return replace(self, reread_due=True, entries={}, absences={}, fetching={})

    def mark_unanswered(self) -> Self:
        """Note that the library does not answer; entries remain in use until they are stale."""
        return replace(self, reread_due=True)

    def reread(self, revision: int, at: float) -> Self:
        """Start again at the library's `revision`, which was requested at `at`."""
        fresh = replace(self.drop_all(), watermark=revision, reread_due=False)
        return fresh.apply_poll((), at)

    def check_age(self, now: float) -> tuple[Self, tuple[Event, ...]]:
        """Emit an event, once per period of staleness, if the cache is stale at `now`."""
        if self.stale_emitted or not self._stale(now):
            return self, ()
        age = f"{(now - self.polled_at) * 1e3:.0f}"
        event = Event("blueprint_cache_stale", TelemetryLevel.CRITICAL, {"age_ms": age})
        return replace(self, stale_emitted=True), (event,)

    def look(self, ids: Collection[str], now: float) -> tuple[Self, Found]:
        """Look up ids; a fetch of the missing ids begins here, and `store` ends it.

        Raises:
          StaleCacheError: the library has not answered for longer than `max_staleness`.
        """
        if self._stale(now):
            raise StaleCacheError(
                f"no answer from the blueprint library for {now - self.polled_at:.3g} s, the limit "
                f"is {self.max_staleness:g} s; check the library, or raise "
                "library.max_staleness_ms",
                age_s=now - self.polled_at,
                max_staleness_s=self.max_staleness,
            )
        entries = {key: self.entries[key] for key in ids if key in self.entries}
        absent = tuple(key for key in ids if self.absences.get(key, now) > now)
        missing = tuple(key for key in ids if key not in entries and key not in absent)
        ticket = self.tickets + bool(missing)
        new_fetch = {ticket: dict.fromkeys(missing, 0)} if missing else {}
        cache = replace(
            self,
            entries={**_drop_keys(self.entries, entries), **entries},
            fetching={**self.fetching, **new_fetch},
            tickets=ticket,
            hits=self.hits + len(entries),
            misses=self.misses + len(missing),
        )
        return cache, Found(entries, absent, missing, ticket)

    def store(
        self, ticket: int, answers: Mapping[str, Blueprint | None], now: float
    ) -> tuple[Self, Found]:
        """End a fetch; ids without an answer, or overtaken by a change, are still missing."""
        asked = self.fetching.get(ticket, {})
        entries = {
            key: Entry(blueprint)
            for key, blueprint in answers.items()
            if blueprint is not None and key in asked and blueprint.revision >= asked[key]
        }
        absent = tuple(
            key for key, newest in asked.items() if answers.get(key, ...) is None and newest == 0
        )
        missing = tuple(key for key in asked if key not in entries and key not in absent)
        until = dict.fromkeys(absent, now + ABSENCE_SECONDS)
        cache = replace(
            self,
            entries=_newest({**_drop_keys(self.entries, entries), **entries}, self.capacity),
            absences=_newest({**_drop_keys(self.absences, absent), **until}, self.capacity),
            fetching=_drop_keys(self.fetching, (ticket,)),
        )
        return cache, Found(entries, absent, missing, ticket)

    def keep(self, arrays: BlueprintArrays) -> Self:
        """Keep the arrays of a blueprint, if that revision is still cached."""
        blueprint_id = arrays.blueprint.blueprint_id
        entry = self.entries.get(blueprint_id)
        if entry is None or entry.blueprint.revision != arrays.blueprint.revision:
            return self
        return replace(self, entries={**self.entries, blueprint_id: replace(entry, arrays=arrays)})

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
        return now - self.polled_at > self.max_staleness


def _drop_keys(held: Mapping[K, V], ids: Collection[K]) -> Mapping[K, V]:
    if not any(key in held for key in ids):
        return held
    return {key: value for key, value in held.items() if key not in ids}


def _newest(held: Mapping[str, V], count: int) -> Mapping[str, V]:
    surplus = max(0, len(held) - count)
    return dict(list(held.items())[surplus:])
