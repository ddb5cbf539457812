"""What every test starts from: a strict JAX on the CPU, and fixtures for all rooms."""

from __future__ import annotations

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Tests compile many programs and run each a few times, so optimising them costs more than it
# gives. `XLA_FLAGS= pytest` has it, and so has everything outside the tests.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    " --xla_cpu_use_fusion_emitters=false",
)

import contextlib
import gc
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import jax
import pytest
from redis_server import RedisServer

# Silent broadcasting and silent widening hide mistakes; both are errors in tests.
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")

# Traces are many small objects that live; looking through them again and again takes a tenth of
# the suite's time.
gc.set_threshold(100_000, 50, 50)

hypothesis.settings.register_profile("ci", derandomize=True, deadline=None, print_blob=True)
hypothesis.settings.register_profile("explore", deadline=None, max_examples=1000)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))

_BACKEND_COMPILE = "/jax/core/compile/backend_compile_duration"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests first, so that no worker begins the longest file when others end."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


MOST_MAPS = 25_000
"""Mappings of memory that a test process may have between two files.

Each compiled program takes dozens, and XLA crashes at the limit of the kernel, which is 65,530
(vm.max_map_count).
"""


@pytest.fixture(autouse=True, scope="module")
def few_programs() -> Iterator[None]:
    """Forget the compiled programs of the files before, once there are many."""
    yield
    maps = Path("/proc/self/maps")
    if maps.exists() and maps.read_bytes().count(b"\n") > MOST_MAPS:
        jax.clear_caches()
        gc.collect()


class Compilations:
    """The compilations seen so far, by the name of the compiled function."""

    def __init__(self) -> None:
        self.names: list[str] = []

    @property
    def count(self) -> int:
        """How many programs XLA has compiled, or loaded from the persistent cache."""
        return len(self.names)

    def __call__(self, event: str, duration: float, **attributes: str | int) -> None:
        if event == _BACKEND_COMPILE:
            self.names.append(str(attributes.get("fun_name", "unknown")))


@contextlib.contextmanager
def _counting() -> Iterator[Compilations]:
    seen = Compilations()
    jax.monitoring.register_event_duration_secs_listener(seen)
    try:
        yield seen
    finally:
        jax.monitoring.unregister_event_duration_listener(seen)


@pytest.fixture
def count_compilations() -> Callable[[], contextlib.AbstractContextManager[Compilations]]:
    """A context manager that counts what XLA compiles inside it, in this process.

    `with count_compilations() as compiled: ...`, then `compiled.count` and `compiled.names`.
    """
    return _counting


@pytest.fixture
def golden() -> Path:
    """The directory of golden data."""
    return Path(__file__).parent / "golden"


@pytest.fixture
def standard_promotion() -> Iterator[None]:
    """JAX's ordinary dtype promotion, for tests that run Optax's optimisers and schedules.

    Optax itself multiplies an int32 step count by Python floats, which strict promotion refuses.
    """
    # For all threads: some compile while this one trains.
    jax.config.update("jax_numpy_dtype_promotion", "standard")
    yield
    jax.config.update("jax_numpy_dtype_promotion", "strict")


@pytest.fixture(scope="session")
def redis_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with RedisServer(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def redis_server(redis_process: RedisServer) -> RedisServer:
    """The server of all tests, emptied."""
    from redis import Redis

    with Redis.from_url(redis_process.url) as client:
        client.flushall()
    return redis_process


@pytest.fixture
def own_redis_server(tmp_path: Path) -> Iterator[RedisServer]:
    """A server that the test may kill, freeze and start again."""
    directory = tmp_path / "redis"
    directory.mkdir()
    with RedisServer(directory) as server:
        yield server
