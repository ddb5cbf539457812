"""What `Plug` on guard costs in a loop whose step takes about five milliseconds.

    .venv/bin/python benchmarks/plug_costs.py [--rounds 12]

A perceptron, Adam, donated state, five ways that take turns: plain, with a guarded optimiser alone,
and with `Plug` at every step, every 10th and every 50th. A ratio is that of a turn to the plain
turn of its round. On a busy machine the processor's time says more than the clock.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from tamiyo_jax import Plug, host

WIDTH, BATCH, STEPS, WARMUP = 512, 256, 50, 2
EVERY = (50, 10, 1)
X = jnp.ones((BATCH, WIDTH), jnp.float32)
Tree = Any


def loss_of(params: Tree, x: jax.Array) -> jax.Array:
    """Mean squared error of three layers, f32[]."""
    for name in ("a", "b", "c"):
        x = jnp.tanh(x @ params[name]["kernel"])
    return jnp.mean((x - 0.1) ** 2)


def start() -> Tree:
    """The parameters."""
    keys = jax.random.split(jax.random.key(0), 3)
    weights = [jax.random.normal(key, (WIDTH, WIDTH), jnp.float32) / WIDTH**0.5 for key in keys]
    return {name: {"kernel": w} for name, w in zip("abc", weights, strict=True)}


def turn_of(
    tx: optax.GradientTransformationExtraArgs, tamiyo: Plug | None
) -> Callable[[], tuple[float, float]]:
    """A function that trains some steps: milliseconds per step, and those of the processor."""
    params = start()
    state = params, tx.init(params)

    @partial(jax.jit, donate_argnums=0)
    def step(state: Tree, x: jax.Array) -> tuple[Tree, jax.Array]:
        params, opt_state = state
        loss, gradient = jax.value_and_grad(loss_of)(params, x)
        updates, opt_state = tx.update(gradient, opt_state, params, loss=loss)
        return (optax.apply_updates(params, updates), opt_state), loss

    def turn() -> tuple[float, float]:
        nonlocal state
        used, started = time.process_time(), time.perf_counter()
        for _ in range(STEPS):
            state, loss = step(state, X)
            if tamiyo is not None:
                state = tamiyo(state, loss)
        jax.block_until_ready(state)
        seconds = time.perf_counter() - started, time.process_time() - used
        return 1e3 * seconds[0] / STEPS, 1e3 * seconds[1] / STEPS

    return turn


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="The cost of Plug in a step of 5 ms.")
    parser.add_argument("--rounds", type=int, default=12)
    arguments = parser.parse_args()
    chain = optax.chain(optax.adam(1e-3), host.tamiyo_scale())
    settings: Any = {"mode": "guard", "log": print}
    with ExitStack() as stack:
        turns = {
            "plain": turn_of(optax.with_extra_args_support(chain), None),
            "guarded, no Plug": turn_of(host.guarded(chain), None),
        }
        for every in EVERY:
            directory = stack.enter_context(tempfile.TemporaryDirectory())
            opened = Plug.open(directory, start(), loss_of, X, every=every, **settings)
            tamiyo = stack.enter_context(opened)
            turns[f"Plug, every {every}"] = turn_of(host.guarded(chain), tamiyo)
        rounds = [[turn() for turn in turns.values()] for _ in range(WARMUP + arguments.rounds)]
    times = np.array(rounds)[WARMUP:]  # by round, by way, of the clock and of the processor
    plain = np.median(times[:, 0], axis=0).round(2)
    print(f"plain step: {plain[0]} ms, of the processor {plain[1]} ms")
    for index, way in enumerate(turns):
        clock, used = np.percentile(times[:, index] / times[:, 0], [25, 50, 75], axis=0).T.round(2)
        print(f"{way}: {clock} times, of the processor {used} (quartiles)")


if __name__ == "__main__":
    main()
