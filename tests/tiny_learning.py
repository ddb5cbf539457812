"""A task and an environment small enough to compile and play in a test."""

from __future__ import annotations

from functools import cache

import jax
import numpy as np

from tamiyo_jax.learn import Architecture, EnvAction, Family, HostEnv, draw
from tamiyo_jax.policy import Action

TINY = Architecture("tiny", 4, (3, 3), 2, examples=32, batch_size=8, epochs=12)


def _signs(generator: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
    inputs = generator.normal(size=(count, 4))
    return inputs, (inputs[:, 0] * inputs[:, 1] > 0).astype(np.int64)


FAMILY = Family("signs", TINY, _signs, 0.0, (5e-3, 2e-2))


@cache
def tiny_env():
    """The environment, a task, its compiled step, and a run before its first epoch."""
    env, task = HostEnv(TINY), draw(FAMILY, 0)
    step = jax.jit(lambda state, action: env.step(jax.random.key(0), state, action, task))
    return env, task, step, jax.jit(env.initial)(jax.random.PRNGKey(1), task)


def action_of(action: Action, seed: int = -1, blueprint: int = -1, lr_delta: float = 0.0):
    return EnvAction(np.int32(action), np.int32(seed), np.int32(blueprint), np.float32(lr_delta))
