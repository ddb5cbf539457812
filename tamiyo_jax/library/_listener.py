"""The thread that polls a library, and the cache that it keeps current."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Mapping

from tamiyo_jax.config import LibraryConfig
from tamiyo_jax.contracts import Blueprint, Event, TelemetryLevel
from tamiyo_jax.errors import PersistenceError
from tamiyo_jax.graph import BlueprintArrays
from tamiyo_jax.library._cache import BlueprintCache, Found
from tamiyo_jax.library._memory import BlueprintLibrary, Change, ChangeKind

__all__ = ["CacheListener"]

_POLL_SECONDS = 0.25
_BACKOFF_SECONDS = 0.05
_MAX_BACKOFF_SECONDS = 1.0
_RESTART_SECONDS = 1.0


class CacheListener:
    """Holds the current cache of a library, and polls the library on a thread of its own.

    A step only reads: it never waits for I/O of this thread, at most for another transition of
    the cache. A library in this process's memory needs no thread: every `look` polls it,
    without waiting.

    A poll that fails emits `blueprint_library_failed` (WARNING, once per period of failures)
    and is repeated, first after 50 ms and at most every second. A thread that dies emits
    `blueprint_cache_listener_died` (CRITICAL), and the next look starts another, at most once
    a second. Until then the cache grows stale. Entries that other programs wrote into the
    library are skipped; the first emits `blueprint_library_foreign_entry` (WARNING).

    Args:
      library: the library to follow.
      config: capacity and staleness.
      emit: called with events, from the listener's thread and from the caller's.
      clock: returns seconds, monotonic.

    Raises:
      PersistenceError: the library cannot be read now.
    """

    def __init__(
        self,
        library: BlueprintLibrary,
        config: LibraryConfig,
        emit: Callable[[tuple[Event, ...]], None],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._library = library
        self._emit = emit
        self._clock = clock
        self._lock = threading.Lock()
        self._polling = threading.Lock()
        self._closing = threading.Event()
        self._failures = 0
        self._foreign_reported = False
        max_staleness = config.max_staleness_ms / 1e3
        self._poll_seconds = min(_POLL_SECONDS, max_staleness / 4)
        now = clock()
        self._cache = BlueprintCache(config.cache_blueprints, max_staleness, now)
        self._cache = self._cache.reread(library.revision(), now)
        self._thread = None if library.connection() is None else self._start_thread(now)

    @property
    def cache(self) -> BlueprintCache:
        """The cache as it is now."""
        return self._cache

    def look(self, ids: Collection[str]) -> Found:
        """Look up ids, as `BlueprintCache.look`; emits staleness, and restarts a dead thread."""
        now = self._clock()
        if self._thread is None:
            with self._polling:
                self._poll(0.0)
        elif not self._thread.is_alive() and now - self._started_at >= _RESTART_SECONDS:
            self._move(BlueprintCache.mark_unanswered)
            self._thread = self._start_thread(now)
        self._age(now)
        with self._lock:
            self._cache, found = self._cache.look(ids, now)
        return found

    def store(self, ticket: int, answers: Mapping[str, Blueprint | None]) -> Found:
        """End a fetch, as `BlueprintCache.store`."""
        with self._lock:
            self._cache, found = self._cache.store(ticket, answers, self._clock())
        return found

    def keep(self, arrays: BlueprintArrays) -> None:
        """Keep encoded arrays, as `BlueprintCache.keep`."""
        self._move(lambda cache: cache.keep(arrays))

    def close(self) -> None:
        """End the thread; waits for its current poll."""
        self._closing.set()
        if self._thread is not None:
            self._thread.join()

    def _start_thread(self, now: float) -> threading.Thread:
        self._started_at = now
        thread = threading.Thread(target=self._listen, name="blueprint-cache", daemon=True)
        thread.start()
        return thread

    def _listen(self) -> None:
        try:
            while not self._closing.is_set():
                with self._polling:
                    self._poll(self._poll_seconds)
                if self._failures:
                    doubled = _BACKOFF_SECONDS * 2.0 ** min(self._failures - 1, 10)
                    self._closing.wait(min(doubled, _MAX_BACKOFF_SECONDS))
        except BaseException as error:
            self._warn("blueprint_cache_listener_died", TelemetryLevel.CRITICAL, error)
            raise

    def _poll(self, timeout: float) -> None:
        """Poll the library once, and apply the changes or the failure to the cache."""
        at, cache = self._clock(), self._cache
        try:
            if cache.reread_due:
                revision = self._library.revision()
                self._move(lambda cache: cache.reread(revision, at))
            elif (changes := self._changes(cache.watermark, timeout)) is None:
                self._move(BlueprintCache.drop_all)
            else:
                self._report_foreign(changes)
                self._move(lambda cache: cache.apply_poll(changes, at))
        except PersistenceError as error:
            if self._failures == 0:
                self._warn("blueprint_library_failed", TelemetryLevel.WARNING, error)
            self._failures += 1
            self._move(BlueprintCache.mark_unanswered)
            self._age(self._clock())
        else:
            self._failures = 0

    def _changes(self, after: int, timeout: float) -> list[Change] | None:
        """Read the changes after a revision; None if the library's count does not match them."""
        changes = self._library.changes(after, timeout)
        if changes or self._library.revision() == after:
            return changes
        # A change may have come between the two calls. If not, it was missed, or the library
        # went back to an earlier revision.
        return self._library.changes(after, 0.0) or None

    def _report_foreign(self, changes: Collection[Change]) -> None:
        """Emit an event for the first entry that another program wrote."""
        foreign = [change for change in changes if change.kind is ChangeKind.FOREIGN]
        if foreign and not self._foreign_reported:
            self._foreign_reported = True
            attributes = {"revision": str(foreign[0].revision)}
            event = Event("blueprint_library_foreign_entry", TelemetryLevel.WARNING, attributes)
            self._emit((event,))

    def _move(self, transition: Callable[[BlueprintCache], BlueprintCache]) -> None:
        with self._lock:
            self._cache = transition(self._cache)

    def _age(self, now: float) -> None:
        with self._lock:
            self._cache, events = self._cache.check_age(now)
        if events:
            self._emit(events)

    def _warn(self, name: str, level: TelemetryLevel, error: BaseException) -> None:
        attributes = {"error": type(error).__name__, "message": str(error)}
        self._emit((Event(name, level, attributes),))
