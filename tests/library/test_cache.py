"""The cache: as a value, transition by transition."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from making import make_blueprint

from tamiyo_jax.config import GraphConfig
from tamiyo_jax.contracts import Blueprint, TelemetryLevel
from tamiyo_jax.errors import StaleCacheError
from tamiyo_jax.graph import encode_blueprint, layout_for
from tamiyo_jax.library import Change, ChangeKind, MemoryBlueprintLibrary
from tamiyo_jax.library._cache import ABSENCE_SECONDS, BlueprintCache

LIMIT = 5.0


def make_cache(capacity: int = 8, revision: int = 0) -> BlueprintCache:
    return BlueprintCache(capacity, LIMIT, polled_at=0.0).reread(revision, 0.0)


def at(revision: int, name: str = "a") -> Blueprint:
    return make_blueprint(name, revision=revision)


def put(revision: int, name: str = "a") -> Change:
    return Change(revision, name, ChangeKind.PUT)


def delete(revision: int, name: str = "a") -> Change:
    return Change(revision, name, ChangeKind.DELETE)


def fetched(
    cache: BlueprintCache, answers: dict[str, Blueprint | None], now: float = 0.0
) -> BlueprintCache:
    cache, found = cache.look(answers, now)
    cache, _ = cache.store(found.ticket, answers, now)
    return cache


def full(*names: str, capacity: int = 8) -> BlueprintCache:
    """Blueprints that were put in this order, all received and fetched."""
    cache = make_cache(capacity, revision=len(names))
    return fetched(cache, {name: at(i + 1, name) for i, name in enumerate(names)})


def test_a_change_drops_its_own_entry_and_no_other() -> None:
    cache = full("a", "b", "c").apply(put(4, "b"))
    assert list(cache.entries) == ["a", "c"]
    assert cache.apply(delete(5, "c")).entries == {"a": cache.entries["a"]}
    assert cache.apply(put(5, "unheard of")).entries == cache.entries


def test_a_change_clears_an_absence_that_was_remembered() -> None:
    cache = fetched(make_cache(), {"a": None, "b": None})
    assert cache.look(("a", "b"), 0.5)[1].absent == ("a", "b")
    _, found = cache.apply(put(1, "a")).look(("a", "b"), 0.5)
    assert (found.missing, found.absent) == (("a",), ("b",))


def test_an_absence_is_remembered_for_a_second_and_not_for_longer() -> None:
    cache = fetched(make_cache(), {"a": None}, now=1.0)
    assert cache.look(("a",), 0.99 + ABSENCE_SECONDS)[1].absent == ("a",)
    assert cache.look(("a",), 1.0 + ABSENCE_SECONDS)[1].missing == ("a",)


@pytest.mark.parametrize(
    "revision", [5, 3, 2, 1, 0], ids=lambda revision: f"change {revision} after 3"
)
def test_a_change_that_is_not_the_next_drops_everything_until_all_is_read_anew(
    revision: int,
) -> None:
    cache = fetched(full("a", "b", "c"), {"d": None})
    cache, _ = cache.look(("e",), 0.0)
    lost = cache.apply(put(revision, "a"))
    assert (lost.entries, lost.absences, lost.fetching) == ({}, {}, {})
    assert lost.reread_due
    assert lost.apply(put(4)).reread_due
    again = lost.reread(9, 1.0)
    assert (again.watermark, again.polled_at, again.reread_due) == (9, 1.0, False)
    assert not again.apply(put(10)).reread_due


def test_a_poll_with_a_gap_does_not_count_as_hearing() -> None:
    cache = full("a").apply_poll([put(3)], 2.0)
    assert cache.polled_at == 0.0
    assert full("a").apply_poll([put(2), put(3)], 2.0).polled_at == 2.0


def test_a_fetch_that_is_older_than_a_change_heard_meanwhile_is_thrown_away() -> None:
    cache, found = make_cache(revision=1).look(("a", "b", "c"), 0.0)
    assert found.missing == ("a", "b", "c")
    cache = cache.apply(put(2, "a")).apply(delete(3, "b"))
    answers = {"a": at(1, "a"), "b": at(1, "b"), "c": at(1, "c")}
    cache, stored = cache.store(found.ticket, answers, 0.0)
    assert list(cache.entries) == list(stored.entries) == ["c"]
    assert stored.missing == ("a", "b")
    assert fetched(cache, {"a": at(2, "a")}).entries["a"].blueprint.revision == 2


def test_an_absence_that_a_change_overtook_is_not_remembered() -> None:
    cache, found = make_cache().look(("a",), 0.0)
    cache, stored = cache.apply(put(1)).store(found.ticket, {"a": None}, 0.0)
    assert stored.missing == ("a",)
    assert cache.absences == {}


def test_a_fetch_that_is_ahead_of_the_changes_heard_stays_when_they_come() -> None:
    cache = fetched(make_cache(revision=1), {"a": at(3)})
    cache = cache.apply(put(2)).apply(put(3))
    assert cache.entries["a"].blueprint.revision == 3
    assert cache.apply(delete(4)).entries == {}


def test_a_fetch_across_a_full_reread_is_thrown_away() -> None:
    cache, found = make_cache().look(("a", "b"), 0.0)
    cache, _ = cache.reread(0, 0.0).look(("a", "b"), 0.0)
    cache, stored = cache.store(found.ticket, {"a": at(7), "b": None}, 0.0)
    assert (stored.entries, stored.absent) == ({}, ())
    assert (cache.entries, cache.absences) == ({}, {})


def test_ids_that_were_not_answered_are_missing_and_leave_nothing_behind() -> None:
    cache, found = make_cache().look(("a", "b"), 0.0)
    cache, stored = cache.store(found.ticket, {"a": at(1)}, 0.0)
    assert stored.missing == ("b",)
    assert cache.fetching == {}


def test_the_least_recently_used_entry_gives_way() -> None:
    cache = full("a", "b", "c", capacity=3)
    cache, _ = cache.look(("a",), 0.0)
    cache = fetched(cache, {"d": at(3, "d")})
    assert list(cache.entries) == ["c", "a", "d"]
    for i in range(10):
        cache = fetched(cache, {f"unknown {i}": None})
    assert len(cache.absences) == 3


def test_past_the_limit_look_ups_raise_and_an_event_is_emitted_once() -> None:
    cache = full("a").apply_poll([], 1.0)
    cache, events = cache.check_age(1.0 + LIMIT)
    assert events == ()
    assert cache.look(("a",), 1.0 + LIMIT)[1].entries
    cache, (event,) = cache.check_age(1.1 + LIMIT)
    assert (event.name, event.level) == ("blueprint_cache_stale", TelemetryLevel.CRITICAL)
    assert event.attributes == {"age_ms": "5100"}
    assert cache.check_age(9.0 + LIMIT)[1] == ()
    with pytest.raises(StaleCacheError, match=r"5\.1 s, the limit is 5 s.*max_staleness_ms"):
        cache.look(("a",), 1.1 + LIMIT)
    healed = cache.apply_poll([], 20.0)
    assert healed.look(("a",), 20.0)[1].entries
    assert len(healed.check_age(21.0 + LIMIT)[1]) == 1


def test_an_interruption_keeps_what_is_there_until_it_is_stale() -> None:
    cache = full("a").mark_unanswered()
    assert cache.look(("a",), LIMIT)[1].entries
    assert cache.reread(1, 1.0).entries == {}


def test_arrays_are_kept_with_the_revision_that_they_were_made_of() -> None:
    cache = full("a")
    blueprint = cache.entries["a"].blueprint
    arrays = encode_blueprint(blueprint, layout_for(blueprint, GraphConfig()))
    cache = cache.keep(arrays)
    assert cache.entries["a"].arrays is arrays
    cache = fetched(cache.apply(put(2)), {"a": at(2)})
    assert cache.entries["a"].arrays is None
    assert cache.keep(arrays).entries["a"].arrays is None
    assert cache.apply(delete(3)).keep(arrays).entries == {}


def test_no_transition_changes_the_cache_that_it_began_from() -> None:
    cache = fetched(full("a", "b"), {"gone": None})
    cache, found = cache.look(("c",), 0.0)
    before = replace(
        cache,
        entries=dict(cache.entries),
        absences=dict(cache.absences),
        fetching=dict(cache.fetching),
    )
    cache.apply(put(3, "a"))
    cache.apply(put(9, "a"))
    cache.look(("a", "d"), 0.0)
    cache.store(found.ticket, {"c": at(2, "c")}, 0.0)
    cache.mark_unanswered().reread(5, 1.0)
    assert cache == before


def test_the_metrics_count_hits_misses_entries_and_the_revision() -> None:
    cache, _ = full("a", "b").look(("a", "b", "c"), 0.0)
    values = {metric.name: metric.value for metric in cache.metrics()}
    assert values == {
        "tamiyo.blueprint_cache.hits": 2.0,
        "tamiyo.blueprint_cache.misses": 3.0,
        "tamiyo.blueprint_cache.entries": 2.0,
        "tamiyo.blueprint_cache.revision": 2.0,
    }


IDS = st.sampled_from("abc")
STEPS = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(["put", "put", "delete", "begin", "begin"]), IDS),
        st.sampled_from(["read", "read", "end", "end"]).map(lambda kind: (kind, "")),
        st.sampled_from(["poll", "poll", "miss", "swap", "repeat"]).map(lambda kind: (kind, "")),
        st.sampled_from(["interrupt", "reread"]).map(lambda kind: (kind, "")),
    ),
    max_size=60,
)


class World:
    """A library, all that it ever held, its cache, and fetches that overlap."""

    def __init__(self, capacity: int) -> None:
        self.library = MemoryBlueprintLibrary()
        self.history: list[dict[str, int]] = [{}]
        self.cache = make_cache(capacity)
        self.begun: list[tuple[int, str]] = []
        self.read: list[tuple[int, dict[str, Blueprint | None]]] = []

    def change(self, kind: str, name: str) -> None:
        now = dict(self.history[-1])
        if kind == "put":
            now[name] = self.library.put(make_blueprint(name))
        else:
            self.library.delete(name)
            now.pop(name, None)
        self.history.append(now)

    def fetch(self, kind: str, name: str) -> None:
        if kind == "begin":
            self.cache, found = self.cache.look((name,), 0.0)
            self.begun += [(found.ticket, name) for name in found.missing]
        elif kind == "read" and self.begun:
            ticket, name = self.begun.pop(0)
            self.read.append((ticket, {name: self.library.get(name)}))
        elif kind == "end" and self.read:
            self.cache, _ = self.cache.store(*self.read.pop(0), 0.0)

    def listen(self, kind: str, _: str) -> None:
        if kind == "interrupt":
            self.cache = self.cache.mark_unanswered()
            return
        if kind == "reread" or self.cache.reread_due:
            self.cache = self.cache.reread(self.library.revision(), 0.0)
            return
        after = max(0, self.cache.watermark - (kind == "repeat"))
        waiting = self.library.changes(after, 0.0)
        changes = {"poll": waiting[:2], "miss": waiting[1:], "swap": waiting[::-1]}
        self.cache = self.cache.apply_poll(changes.get(kind, waiting), 0.0)


@given(steps=STEPS, capacity=st.integers(1, 3))
def test_whatever_is_lost_late_or_reordered_no_answer_is_older_than_the_watermark(
    steps: list[tuple[str, str]], capacity: int
) -> None:
    """Every entry and absence is what the library held at the watermark, or later."""
    world = World(capacity)
    acts = {
        **dict.fromkeys(("put", "delete"), world.change),
        **dict.fromkeys(("begin", "read", "end"), world.fetch),
    }
    for kind, name in steps:
        acts.get(kind, world.listen)(kind, name)
        cache = world.cache
        held = {name: entry.blueprint.revision for name, entry in cache.entries.items()}
        for name in {**held, **cache.absences}:
            assert held.get(name) in [state.get(name) for state in world.history[cache.watermark :]]
        assert len(held) <= capacity
