"""Blueprint libraries in memory, SQLite or Redis, and the cache that follows their changes."""

from tamiyo_jax.library._listener import CacheListener
from tamiyo_jax.library._memory import (
    BlueprintLibrary,
    Change,
    ChangeKind,
    MemoryBlueprintLibrary,
    check_blueprint,
)
from tamiyo_jax.library._redis import RedisBlueprintLibrary
from tamiyo_jax.library._resolver import (
    BlueprintResolver,
    fetch_inline,
    fetch_through,
    find_in,
    serve_library,
)
from tamiyo_jax.library._sqlite import SqliteBlueprintLibrary

__all__ = [
    "BlueprintLibrary",
    "BlueprintResolver",
    "CacheListener",
    "Change",
    "ChangeKind",
    "MemoryBlueprintLibrary",
    "RedisBlueprintLibrary",
    "SqliteBlueprintLibrary",
    "check_blueprint",
    "fetch_inline",
    "fetch_through",
    "find_in",
    "serve_library",
]
