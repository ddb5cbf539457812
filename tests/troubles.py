"""Policies and libraries that go wrong in every way; importable, so that workers can."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp

from tamiyo_jax.config import TamiyoConfig
from tamiyo_jax.contracts import Blueprint
from tamiyo_jax.errors import NoLegalActionError
from tamiyo_jax.library import SqliteBlueprintLibrary
from tamiyo_jax.library._sqlite import connect
from tamiyo_jax.policy import HeuristicPolicy, Observation, PolicyOutputs


def sleep() -> None:
    time.sleep(3600)


def spin() -> None:
    while True:
        pass


@jax.jit
def _forever(x: jax.Array) -> jax.Array:
    return jax.lax.fori_loop(0, 2**30, lambda _, y: jnp.tanh(y @ y), x)


def compute() -> None:
    _forever(jnp.ones((256, 256), jnp.float32)).block_until_ready()


def crash() -> None:
    ctypes.string_at(0)


def eat() -> None:
    eaten = []
    while True:
        eaten.append(bytearray(os.urandom(1) * (1 << 24)))


def leave() -> None:
    os._exit(7)


def complain() -> None:
    raise ValueError("the policy does not like this packet")


TROUBLES: tuple[Callable[[], None], ...] = (sleep, spin, compute, crash, eat, leave, complain)


def trouble_metrics(trouble: Callable[[], None]) -> dict[str, float]:
    """Metrics of a packet that makes `Troubled` do this."""
    return {"loss": 0.8, "gradient_norm": 1.0, "trouble": float(TROUBLES.index(trouble))}


class Troubled(HeuristicPolicy):
    """The heuristic, until a packet says what trouble to make."""

    def __init__(self, config: TamiyoConfig) -> None:
        super().__init__(config.heuristic, config.policy)

    def decide(
        self, params: Any, policy_state: Any, observation: Observation
    ) -> tuple[Any, PolicyOutputs]:
        trouble = observation.packet.training_metrics.get("trouble")
        if trouble is not None:
            TROUBLES[int(trouble)]()
        return super().decide(params, policy_state, observation)


class HungLibrary(SqliteBlueprintLibrary):
    """Reads blueprints, but hangs on the one named ``grow-b``; only in other processes."""

    def connection(self) -> Any:
        return super().connection()._replace(factory=f"{__name__}:{hung_library.__name__}")


def hung_library(**arguments: Any) -> Any:
    library = connect(**arguments)
    read = library.get

    def get(blueprint_id: str) -> Blueprint | None:
        if blueprint_id == "grow-b":
            sleep()
        return read(blueprint_id)

    library.get = get  # type: ignore[method-assign]
    return library


# What the tests of the pool itself load.


def parent_of_two() -> Callable[[Any], Any]:
    """Starts a child as a policy's data loader might, and one in a session of its own."""

    def answer(message: str) -> list[int]:
        if message == "crash":
            os._exit(7)
        sleeper = ["sleep", "600"]
        return [subprocess.Popen(sleeper, start_new_session=apart).pid for apart in (False, True)]

    return answer


def quitter() -> Callable[[Any], Any]:
    def answer(status: object) -> None:
        print("I have had enough", flush=True)  # noqa: T201 - a policy of a user's may
        sys.exit(cast(int, status))

    return answer


def chatterbox() -> Callable[[Any], Any]:
    def answer(size: int) -> None:
        print("x" * size, flush=True)  # noqa: T201

    return answer


def echo() -> Callable[[Any], Any]:
    return lambda message: message


def environment() -> Callable[[Any], Any]:
    return lambda _: dict(os.environ)


@dataclass
class Scaler:
    """A dataclass whose constructor is no inverse of its fields."""

    scale: float

    def __post_init__(self) -> None:
        self.scale *= 2.0


def unreadable_at_home() -> Callable[[Any], Any]:
    """Its answers unpickle in its own process alone, but for the text ``"ready"``."""
    return lambda message: message if message == "ready" else _Homebound(os.getpid())


class _Homebound:
    def __init__(self, pid: int) -> None:
        if os.getpid() != pid:
            raise LookupError("far from home")
        self._pid = pid

    def __reduce__(self) -> tuple[type[_Homebound], tuple[int]]:
        return _Homebound, (self._pid,)


def naps() -> Callable[[float], float]:
    def nap(seconds: float) -> float:
        time.sleep(seconds)
        return seconds

    return nap


def unwilling() -> Callable[[Any], Any]:
    raise NoLegalActionError("this worker cannot begin", field="nothing")


def oom_score() -> Callable[[Any], Any]:
    return lambda _: Path("/proc/self/oom_score_adj").read_text().strip()


def allocate() -> Callable[[int], int]:
    return lambda size: len(bytearray(size))
