"""What `Plug` on guard costs in a loop whose step takes about five milliseconds.

    .venv/bin/python benchmarks/plug_costs.py [--rounds 12]

A perceptron, Adam, donated state, three ways that take turns: plain, and with a guarded
optimiser and `Plug` at every step and at every 50th. The ratio is the median over rounds of a
turn over its neighbour *plain*.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from tamiyo_jax import Plug, host

WIDTH, BATCH, STEPS, WARMUP = 512, 256, 50, 2
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


def turn_of(tx: optax.GradientTransformationExtraArgs, tamiyo: Plug | None) -> Callable[[], float]:
    """A function that trains some steps, and returns milliseconds per step."""
    params = start()
    state = params, tx.init(params)

    @partial(jax.jit, donate_argnums=0)
    def step(state: Tree, x: jax.Array) -> tuple[Tree, jax.Array]:
        params, opt_state = state
        loss, gradient = jax.value_and_grad(loss_of)(params, x)
        updates, opt_state = tx.update(gradient, opt_state, params, loss=loss)
        return (optax.apply_updates(params, updates), opt_state), loss

    def turn() -> float:
        nonlocal state
        started = time.perf_counter()
        for _ in range(STEPS):
            state, loss = step(state, X)
            if tamiyo is not None:
                state = tamiyo(state, loss)
        jax.block_until_ready(state)
        return 1e3 * (time.perf_counter() - started) / STEPS

    return turn


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="The cost of Plug in a step of 5 ms.")
    parser.add_argument("--rounds", type=int, default=12)
    arguments = parser.parse_args()
    chain = optax.chain(optax.adam(1e-3), host.tamiyo_scale())
    for every in (1, 50):
        measure(every, chain, arguments.rounds)


def measure(every: int, chain: optax.GradientTransformationExtraArgs, rounds: int) -> None:
    """Print the ratio at one interval."""
    settings: Any = {"mode": "guard", "every": every, "log": print}
    with (
        tempfile.TemporaryDirectory() as directory,
        Plug.open(directory, start(), loss_of, X, **settings) as tamiyo,
    ):
        plain = turn_of(optax.with_extra_args_support(chain), None)
        turn = turn_of(host.guarded(chain), tamiyo)
        pairs = [(turn(), plain()) for _ in range(WARMUP + rounds)][WARMUP:]
    ratio = np.percentile([ours / theirs for ours, theirs in pairs], [25, 50, 75])
    step = float(np.median([theirs for _, theirs in pairs]))
    print(f"every {every}: plain step {step:.2f} ms, ratio {ratio.round(2)} (quartiles)")


if __name__ == "__main__":
    main()
