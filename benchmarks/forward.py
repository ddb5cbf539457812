"""The forward pass by folded parameters against the same pass by parameters as they are.

    python benchmarks/forward.py [--json] [toy network large]

All calls on a graph run in turns, with one that reads as many bytes as the folded weights have
among them: the least that a decision costs, since it needs each of them once.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import jax
import numpy as np
from harness import in_turns, report
from limits import streaming
from sizes import SIZES

from tamiyo_jax.config import PolicyConfig
from tamiyo_jax.policy import PolicyOutputs, apply, apply_folded, fold, init_params

ROUNDS = {"toy": 200, "network": 50, "large": 10}


def measure(name: str) -> None:
    """Report on one size."""
    size = SIZES[name]()
    layout, (graph,) = size.layout, size.graphs(1)
    params = init_params(PolicyConfig.reference(), jax.random.key(0))
    folded = fold(params, layout)
    plain = jax.jit(apply, static_argnames="layout")
    fast = jax.jit(apply_folded, static_argnames="layout")
    weights = sum(leaf.nbytes for leaf in jax.tree.leaves(folded))
    calls: dict[str, Callable[[], PolicyOutputs | object]] = {
        "as they are": lambda: jax.block_until_ready(plain(params, layout, graph)),
        "folded": lambda: jax.block_until_ready(fast(folded, layout, graph)),
        "reading the folded weights": streaming(weights),
    }
    difference = jax.tree.map(_difference, calls["as they are"](), calls["folded"]())
    rows = in_turns(calls, rounds=ROUNDS[name], warmup=3)
    before, after, reading = (timing.median for timing in rows.values())
    facts = {
        "megabytes as they are": sum(leaf.nbytes for leaf in jax.tree.leaves(params)) / 1e6,
        "megabytes folded": weights / 1e6,
        "largest difference": max(difference),
        "times faster": before / after,
        "times the reading": after / reading,
    }
    report(f"forward pass, {name}", rows, facts)


def _difference(one: jax.Array, other: jax.Array) -> float:
    pair = np.stack([np.asarray(one), np.asarray(other)])
    same = pair[0] == pair[1]  # scores of padding are -inf in both
    return float(np.max(np.abs(np.diff(np.where(same, 0.0, pair), axis=0))))


if __name__ == "__main__":
    for chosen in [name for name in SIZES if name in sys.argv] or SIZES:
        measure(chosen)
