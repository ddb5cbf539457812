"""Decisions of many runs in one pass: how the time of a pass grows with the runs in it.

    python benchmarks/policy_batches.py [--json] [toy network]

The jitted step of the graph policy, each run with its own normaliser, as a server asks it. Where
JAX sees an accelerator it runs there; the facts name the device. Questions and answers stay on
the device, so the copies of a server are not part of the figures.
"""

from __future__ import annotations

import sys
from functools import partial

import jax
from harness import in_turns, report
from sizes import SIZES

from tamiyo_jax.config import PolicyConfig
from tamiyo_jax.graph import init_normalizer
from tamiyo_jax.policy import fold, init_params, policy_step

BATCHES = (1, 8, 64, 256)
ROUNDS = 20


def measure(name: str) -> None:
    """Report on one size."""
    size = SIZES[name]()
    rate = size.config.normalizer_rate
    step = partial(policy_step, layout=size.layout, rate=rate)
    many = jax.jit(jax.vmap(step, in_axes=(None, 0, 0)))
    params = jax.device_put(
        fold(init_params(PolicyConfig.reference(), jax.random.key(0)), size.layout)
    )
    raws = [size.encoded(packet) for packet in size.packets(max(BATCHES))]
    calls = {}
    for batch in BATCHES:
        priors = [init_normalizer()] * batch
        inputs = (
            jax.device_put(
                jax.tree.map(lambda *leaves: jax.numpy.stack(leaves), *priors),
            ),
            jax.device_put(jax.tree.map(lambda *leaves: jax.numpy.stack(leaves), *raws[:batch])),
        )
        calls[f"{batch} runs"] = lambda inputs=inputs: jax.block_until_ready(many(params, *inputs))
    rows = in_turns(calls, rounds=ROUNDS, warmup=2)
    per_run = {
        f"microseconds a run of {batch}": 1e3 * timing.median / batch
        for batch, timing in zip(BATCHES, rows.values(), strict=True)
    }
    report(f"policy step, {name}", rows, {"device": jax.devices()[0].device_kind, **per_run})


if __name__ == "__main__":
    for chosen in [name for name in ("toy", "network") if name in sys.argv] or ("toy", "network"):
        measure(chosen)
