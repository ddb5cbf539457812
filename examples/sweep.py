"""A sweep of 16 learning rates; every run asks the same servers. See `many_runs.sh`.

Each run is a process of its own and gets its own key, never the servers' secret. Learning rates
at the upper end make a run diverge: the server rolls it back.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

RUNS = 16
AT_ONCE = 4
STEPS = 300


def train(run_id: str, learning_rate: float, directory: Path) -> None:
    """One run: fit a small network, and report to the server every 10 steps."""
    import jax
    import jax.numpy as jnp
    import optax

    from tamiyo_jax import Plug, host

    x = jax.random.normal(jax.random.key(0), (256, 8))
    y = jnp.sin(x.sum(axis=1, keepdims=True))
    keys = jax.random.split(jax.random.key(1))
    params = {
        "hidden": {"kernel": jax.random.normal(keys[0], (8, 32)) / 3, "bias": jnp.zeros(32)},
        "out": {"kernel": jax.random.normal(keys[1], (32, 1)) / 6, "bias": jnp.zeros(1)},
    }
    tx = host.monitor(optax.chain(optax.sgd(learning_rate), host.tamiyo_scale()))

    def loss_fn(params: dict, x: jax.Array) -> jax.Array:
        hidden = jnp.tanh(x @ params["hidden"]["kernel"] + params["hidden"]["bias"])
        return jnp.mean((hidden @ params["out"]["kernel"] + params["out"]["bias"] - y) ** 2)

    @jax.jit
    def step(state: tuple) -> tuple:
        params, opt_state = state
        loss, gradient = jax.value_and_grad(loss_fn)(params, x)
        updates, opt_state = tx.update(gradient, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), loss

    def log(line: str) -> None:
        print(f"{run_id}: {line}", flush=True)

    state = params, tx.init(params)
    with Plug.open(
        directory,
        params,
        loss_fn,
        x,
        mode="guard",
        every=10,
        log=log,
        server=os.environ["TAMIYO_REDIS_URL"],
        run_id=run_id,
    ) as tamiyo:
        for _ in range(STEPS):
            state, loss = step(state)
            state = tamiyo(state, loss)
    log(f"learning rate {learning_rate:g}, loss {float(loss):.4g}")


def sweep(directory: Path) -> int:
    """Train all runs, a few at once; the number of those that failed."""
    from tamiyo_jax.serving import run_key

    secret = os.environb[b"TAMIYO_SECRET"]
    waiting = [(f"sweep-{i}", 0.001 * 2.0**i) for i in range(RUNS)]
    running: list[subprocess.Popen[bytes]] = []
    failed = 0
    while waiting or running:
        while waiting and len(running) < AT_ONCE:
            run_id, learning_rate = waiting.pop(0)
            command = [sys.executable, __file__, "--directory", str(directory)]
            environment = {**os.environb, b"TAMIYO_SECRET": run_key(secret, run_id)}
            running.append(
                subprocess.Popen(
                    [*command, "--run", run_id, "--learning-rate", str(learning_rate)],
                    env=environment,
                )
            )
        failed += running.pop(0).wait() != 0
    return failed


def main() -> None:
    """Train the sweep, or one run of it."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--directory", type=Path, required=True)
    arguments.add_argument("--run")
    arguments.add_argument("--learning-rate", type=float)
    parsed = arguments.parse_args()
    if parsed.run:
        train(parsed.run, parsed.learning_rate, parsed.directory)
    else:
        raise SystemExit(sweep(parsed.directory))


if __name__ == "__main__":
    main()
