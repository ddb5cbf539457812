"""The forward pass against the same network in PyTorch Geometric, and against the machine.

    pip install -e ".[bench]" && python benchmarks/forward_peer.py

Both networks have the same weights, by the importer, and their outputs are compared before
anything is timed. All calls on a graph run in turns, with those that measure the machine among
them, so that what else runs slows all of them. `decide` is `GraphPolicy`: normalising and
building too. PyTorch runs on one thread and on two, and the faster counts; its threads sleep
while they wait, because on a busy machine threads that spin make it tens of times slower and
take a core from the next process. The limit of a row is the larger of two times: to read the
folded weights once, from wherever a repeated call finds them, and to do the operations that XLA
counts at the rate of one large matrix product.

    python benchmarks/forward_peer.py [toy/reference ... batches growth] [--compile] [--json]
                                      [--plot PATH]

measures all parts or those that are named. ``--compile`` lets `torch.compile` compete on the
named graphs: it compiles for each number of threads, a minute or two each time, so it has a
command of its own. What it builds stays in PyTorch's cache.
"""

from __future__ import annotations

import argparse
import json
import os
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from forward_plot import plot
from forward_tables import Row, show
from harness import Timing, in_turns
from limits import MATMUL_FLOPS, matmul, streaming, working_memory_mb
from sizes import SIZES, Size, exactly, explicit, sparse

from tamiyo_jax.config import PolicyConfig
from tamiyo_jax.graph import GraphLayout, GraphsTuple
from tamiyo_jax.policy import (
    FoldedParams,
    GraphPolicy,
    Legality,
    Observation,
    Params,
    PolicyOutputs,
    apply_folded,
    fold,
    init_params,
)

os.environ["OMP_WAIT_POLICY"] = "PASSIVE"  # read when PyTorch is imported
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of libraries, about their own libraries
    import torch
    from peer import Inputs, PeerNetwork, batched, differences, hetero_data, inputs, our_params

WIDTHS = {"reference": PolicyConfig.reference(), "small": PolicyConfig.small()}
ROUNDS = {"toy": 60, "network": 12, "large": 8}
BATCHES = {1: 40, 16: 20, 256: 5}
GROWTH = {100: 30, 1_000: 20, 10_000: 7, 100_000: 3}
THREADS = 2
RELATIVE, ABSOLUTE = 1e-4, 1e-5
MEMORY_BYTES = 256 << 20  # far more than a core's own caches


Outputs = dict[str, torch.Tensor]
"""The peer's, by the names of `PolicyOutputs`."""


def forward(layout: GraphLayout, folded: FoldedParams, graph: GraphsTuple) -> PolicyOutputs:
    """Our network on one graph."""
    return apply_folded(folded, layout, graph)


def peer_network(config: PolicyConfig) -> PeerNetwork:
    """The peer with weights of its own initialisation."""
    torch.manual_seed(0)
    return PeerNetwork(config).eval()


def measure_size(width: str, size: Size, *, compile_peer: bool) -> Row:
    """Everything about one graph at one width."""
    config = WIDTHS[width]
    peer = peer_network(config)
    params = our_params(peer, config)
    folded = jax.device_put(fold(params, size.layout))
    (graph,) = size.graphs(1)
    nodes, edges = explicit(size.layout, graph)
    theirs = inputs(hetero_data(nodes, edges))
    started = time.perf_counter()
    ours = jax.jit(partial(forward, size.layout)).lower(folded, graph).compile()
    row: Row = {
        "width": width,
        "size": size.name,
        "nodes": sum(map(len, nodes.values())),
        "edges": sum(len(attributes) for _, attributes in edges.values()),
        "our_compile_s": time.perf_counter() - started,
    }
    calls: dict[str, Callable[[], object]] = {**eager(peer, theirs)}
    difference = check(ours(folded, graph), peer(*theirs))
    if compile_peer:
        torch.compiler.reset()
        compiled = eager(torch.compile(peer, dynamic=False), theirs, "compiled")
        started = time.perf_counter()
        for call in compiled.values():
            difference = max(difference, check(ours(folded, graph), call()))
        row["their_compile_s"] = time.perf_counter() - started
        calls |= compiled
    weights = sum(leaf.nbytes for leaf in jax.tree.leaves(folded))
    # What measures the machine stands between, while the threads of one library go to sleep.
    calls |= {
        "memory": streaming(MEMORY_BYTES),
        "matmul": matmul(),
        "weights": streaming(weights),
        "ours": lambda: jax.block_until_ready(ours(folded, graph)),
        "decide": decide(size, params),
    }
    rivals = ("eager", "compiled") if compile_peer else ("eager",)
    timings = with_faster(in_turns(calls, rounds=ROUNDS[size.name], warmup=1), *rivals)
    row |= {
        "difference": difference,
        "timings": {name: asdict(timing) for name, timing in timings.items()},
        "our_weights_mb": weights / 2**20,
        "their_weights_mb": sum(tensor.nbytes for tensor in peer.state_dict().values()) / 2**20,
        "our_memory_mb": working_memory_mb(calls["ours"]),
        "their_memory_mb": working_memory_mb(lambda: peer(*theirs)),
    }
    return row | against(timings, float(ours.cost_analysis()["flops"]))


def eager(
    peer: Callable[..., Outputs], theirs: Inputs, name: str = "eager"
) -> dict[str, Callable[[], Outputs]]:
    """The peer on one thread and on `THREADS`."""

    def on_threads(count: int) -> Outputs:
        torch.set_num_threads(count)
        return peer(*theirs)

    return {f"{name}, {count} threads": partial(on_threads, count) for count in (1, THREADS)}


def with_faster(timings: dict[str, Timing], *names: str) -> dict[str, Timing]:
    """The timings, and under each name the faster of its numbers of threads."""
    faster = {
        name: min(
            (timings[f"{name}, {count} threads"] for count in (1, THREADS)),
            key=lambda timing: timing.median,
        )
        for name in names
    }
    return timings | faster


def check(ours: PolicyOutputs, theirs: Outputs) -> float:
    """The largest difference of any output; raises if one is too large."""
    found = differences(ours, theirs)
    for name, difference in found.items():
        allowed = ABSOLUTE + RELATIVE * float(theirs[name].abs().max())
        if not difference <= allowed:
            raise SystemExit(f"{name} differs from PyTorch Geometric's by {difference}")
    return max(found.values())


def decide(size: Size, params: Params) -> Callable[[], object]:
    """A call of the policy as the runtime calls it, on arrays of the encoder."""
    policy = GraphPolicy(size.config)
    state = policy.initial_state()
    # Legality matters only to what comes after the network.
    legality = Legality(np.zeros(0, np.bool_), np.zeros((0, 0), np.bool_), np.zeros(0, np.bool_))
    observation = Observation(size.packet, size.layout, size.encoded(size.packet), legality)
    return lambda: jax.block_until_ready(policy.decide(params, state, observation))


def against(timings: dict[str, Timing], flops: float) -> Row:
    """Ratios of medians, and how far the forward pass is from the nearer limit."""
    median = {name: timing.median for name, timing in timings.items()}
    limits = {"weights": median["weights"], "operations": flops / MATMUL_FLOPS * median["matmul"]}
    nearer = max(limits, key=lambda name: limits[name])
    return {
        "mflops": flops / 1e6,
        "memory_gb_s": MEMORY_BYTES / median["memory"] / 1e6,
        "matmul_gflop_s": MATMUL_FLOPS / median["matmul"] / 1e6,
        "weights_limit_ms": limits["weights"],
        "operations_limit_ms": limits["operations"],
        "nearer_limit": nearer,
        "times_the_limit": median["ours"] / limits[nearer],
        "eager_ratio": median["eager"] / median["ours"],
        "compiled_ratio": median["compiled"] / median["ours"] if "compiled" in median else None,
    }


def measure_batch(count: int) -> Row:
    """Toy graphs at the reference width, `count` at once."""
    size, config = SIZES["toy"](), WIDTHS["reference"]
    peer = peer_network(config)
    folded = jax.device_put(fold(our_params(peer, config), size.layout))
    graphs = size.graphs(count)
    plain = [hetero_data(*explicit(size.layout, graph)) for graph in graphs]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *graphs)
    ours = jax.jit(jax.vmap(partial(forward, size.layout), in_axes=(None, 0)))
    theirs = inputs(batched(plain))
    check(ours(folded, stacked), peer(*theirs))
    calls: dict[str, Callable[[], object]] = {
        **eager(peer, theirs, "batch"),
        **eager(peer, inputs(plain[0]), "one"),
        "collation": lambda: inputs(batched(plain)),
        "machine": matmul(),
        "ours": lambda: jax.block_until_ready(ours(folded, stacked)),
    }
    timings = with_faster(in_turns(calls, rounds=BATCHES[count], warmup=1), "batch", "one")
    median = {name: timing.median for name, timing in timings.items()}
    taken = {
        "ours": median["ours"],
        "batched": median["batch"],
        "collated": median["batch"] + median["collation"],
        "one_by_one": median["one"] * count,
    }
    return {
        "batch": count,
        **{f"{name}_per_s": 1e3 * count / ms for name, ms in taken.items()},
        **{f"{name}_ratio": ms / taken["ours"] for name, ms in taken.items()},
        "timings": {name: asdict(timing) for name, timing in timings.items()},
    }


def measure_growth(nodes: int) -> Row:
    """A sparse graph without padding at the reference width, ours alone."""
    size, config = sparse(nodes, exactly), WIDTHS["reference"]
    folded = jax.device_put(fold(init_params(config, jax.random.key(0)), size.layout))
    (graph,) = size.graphs(1)
    edges = sum(len(attributes) for _, attributes in explicit(size.layout, graph)[1].values())
    ours = jax.jit(partial(forward, size.layout))
    timing = in_turns(
        {"ours": lambda: jax.block_until_ready(ours(folded, graph))},
        rounds=GROWTH[nodes],
        warmup=1,
    )["ours"]
    return {
        "nodes": nodes,
        "edges": edges,
        "ms": timing.median,
        "us_per_node_and_edge": 1e3 * timing.median / (nodes + edges),
        "memory_mb": working_memory_mb(lambda: jax.block_until_ready(ours(folded, graph))),
        "timing": asdict(timing),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    graphs = [f"{size}/{width}" for width in WIDTHS for size in SIZES]
    parts = [*graphs, "batches", "growth"]
    parser.add_argument("parts", nargs="*", choices=parts, metavar="PART", help=", ".join(parts))
    parser.add_argument("--compile", action="store_true", help="torch.compile competes")
    parser.add_argument("--json", action="store_true", help="print an object, not tables")
    parser.add_argument("--plot", metavar="PATH", help="write a plot, as PNG")
    arguments = parser.parse_args()
    chosen = arguments.parts or parts
    torch.set_num_threads(THREADS)
    load = os.getloadavg()[0]
    with torch.inference_mode():
        result = {
            "benchmark": "forward against PyTorch Geometric",
            "forward": [
                measure_size(width, SIZES[size](), compile_peer=arguments.compile)
                for size, width in (part.split("/") for part in graphs if part in chosen)
            ],
            "batches": [measure_batch(count) for count in BATCHES if "batches" in chosen],
            "growth": [measure_growth(nodes) for nodes in GROWTH if "growth" in chosen],
        }
    result["facts"] = {
        "load average before and after": [round(load, 2), round(os.getloadavg()[0], 2)],
        "cpus": os.cpu_count(),
        "torch": torch.__version__,
        "jax": jax.__version__,
    }
    if arguments.plot:
        plot(result, arguments.plot)
    if arguments.json:
        print(json.dumps(result, indent=1))
    else:
        show(result)


if __name__ == "__main__":
    main()
