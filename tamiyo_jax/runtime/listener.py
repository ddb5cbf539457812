"""The thread that hears of changes, and the cache that it keeps current."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Mapping

from tamiyo_jax.config import LibraryConfig
from tamiyo_jax.contracts import Blueprint, Event, TelemetryLevel
from tamiyo_jax.errors import PersistenceError
from tamiyo_jax.graph import BlueprintArrays
from tamiyo_jax.runtime.cache import BlueprintCache, Found
from tamiyo_jax.runtime.library import BlueprintLibrary, Change

__all__ = ["CacheListener"]

_POLL_SECONDS = 0.25
_BACKOFF_SECONDS = 0.05
_MAX_BACKOFF_SECONDS = 1.0
_REVIVAL_SECONDS = 1.0


class CacheListener:
    """Holds the current cache of a library, and polls the library on a thread of its own.

    A step only reads: it waits for no I/O of this thread, at most for another transition of
    the cache. A library that lives in this process's memory needs no thread: it is polled,
    without waiting, by whoever looks.

    A poll that fails is told (`blueprint_library_failed`, WARNING, once per spell) and tried
    again, at first after 50 ms and at last every second. A thread that dies is told
    (`blueprint_cache_listener_died`, CRITICAL), and the next look, one per second, starts
    another. Until either heals, the cache grows stale.

    Args:
      library: the library.
      config: capacity and staleness.
      tell: takes events, from the listener's thread and from the caller's.
      clock: seconds, never backwards.

    Raises:
      PersistenceError: the library cannot be read now.
    """

    def __init__(
        self,
        library: BlueprintLibrary,
        config: LibraryConfig,
        tell: Callable[[tuple[Event, ...]], None],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._library = library
        self._tell = tell
        self._clock = clock
        self._lock = threading.Lock()
        self._polling = threading.Lock()
        self._closing = threading.Event()
        self._failures = 0
        max_staleness = config.max_staleness_ms / 1e3
        self._poll_seconds = min(_POLL_SECONDS, max_staleness / 4)
        now = clock()
        self._cache = BlueprintCache(config.cache_blueprints, max_staleness, now)
        self._cache = self._cache.reread(library.revision(), now)
        self._thread = None if library.connection() is None else self._started(now)

    @property
    def cache(self) -> BlueprintCache:
        """The cache as it is now."""
        return self._cache

    def look(self, ids: Collection[str]) -> Found:
        """See `BlueprintCache.look`; tells of staleness, and revives a dead thread."""
        now = self._clock()
        if self._thread is None:
            with self._polling:
                self._poll(0.0)
        elif not self._thread.is_alive() and now - self._started_at >= _REVIVAL_SECONDS:
            self._move(BlueprintCache.interrupted)
            self._thread = self._started(now)
        self._age(now)
        with self._lock:
            self._cache, found = self._cache.look(ids, now)
        return found

    def store(self, ticket: int, answers: Mapping[str, Blueprint | None]) -> Found:
        """See `BlueprintCache.store`."""
        with self._lock:
            self._cache, found = self._cache.store(ticket, answers, self._clock())
        return found

    def keep(self, arrays: BlueprintArrays) -> None:
        """See `BlueprintCache.keep`."""
        self._move(lambda cache: cache.keep(arrays))

    def close(self) -> None:
        """End the thread; it may be waiting for the library, at most as long as one poll."""
        self._closing.set()
        if self._thread is not None:
            self._thread.join()

    def _started(self, now: float) -> threading.Thread:
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
        """Ask the library once; a change, or a failure, moves the cache."""
        at, cache = self._clock(), self._cache
        try:
            if cache.reread_due:
                revision = self._library.revision()
                self._move(lambda cache: cache.reread(revision, at))
            elif (changes := self._changes(cache.watermark, timeout)) is None:
                self._move(BlueprintCache.forget)
            else:
                self._move(lambda cache: cache.hear(changes, at))
        except PersistenceError as error:
            if self._failures == 0:
                self._warn("blueprint_library_failed", TelemetryLevel.WARNING, error)
            self._failures += 1
            self._move(BlueprintCache.interrupted)
            self._age(self._clock())
        else:
            self._failures = 0

    def _changes(self, after: int, timeout: float) -> list[Change] | None:
        """The changes after a revision; None if the library counts others than it tells."""
        changes = self._library.changes(after, timeout)
        if changes or self._library.revision() == after:
            return changes
        # One may have come between the two questions. If not, it was missed, or the library
        # ran backwards.
        return self._library.changes(after, 0.0) or None

    def _move(self, transition: Callable[[BlueprintCache], BlueprintCache]) -> None:
        with self._lock:
            self._cache = transition(self._cache)

    def _age(self, now: float) -> None:
        with self._lock:
            self._cache, events = self._cache.aged(now)
        if events:
            self._tell(events)

    def _warn(self, name: str, level: TelemetryLevel, error: BaseException) -> None:
        attributes = {"error": type(error).__name__, "message": str(error)}
        self._tell((Event(name, level, attributes),))
