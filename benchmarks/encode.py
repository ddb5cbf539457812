"""What a step does in Python before inference: checking, encoding and observing a packet.

    .venv/bin/python benchmarks/encode.py [--rounds 1000] [--json]

The blueprint is in the cache, as it is in a run; every call gets the next packet of a run whose
loss falls. Rows are milliseconds of CPU time of this process, so that other processes on the
machine count as little as they can. The targets are 0.15 ms for *encode, toy* and 1 ms for
*encode, network*, at the median.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import time
from collections.abc import Callable, Mapping
from dataclasses import replace

from harness import Timing, report
from sizes import SIZES, Size

from tamiyo_jax.config import TamiyoConfig
from tamiyo_jax.contracts import SystemStatePacket, validate_packet
from tamiyo_jax.controller import initial_state, observe_encoded
from tamiyo_jax.graph import Registries, completeness, encode_blueprint, encode_packet
from tamiyo_jax.policy import legality

PACKETS = 64


def calls(size: Size) -> Mapping[str, Callable[[SystemStatePacket], object]]:
    """What is timed, by name; each is given a packet."""
    config = TamiyoConfig(graph=size.config)
    blueprint, arrays, graph = size.blueprint, size.arrays, size.config
    raw, registries = encode_packet(size.packet, arrays, (), Registries.empty(), config=graph)
    state = replace(
        initial_state({}),
        registries=registries,
        missing_features=completeness(size.layout, raw).missing,
    )
    return {
        "validate": validate_packet,
        "encode": lambda packet: encode_packet(packet, arrays, (), registries, config=graph),
        "completeness": lambda _: completeness(size.layout, raw),
        "legality": lambda packet: legality(
            packet,
            (blueprint,),
            max_seeds=graph.max_seeds,
            max_blueprints=graph.max_blueprints,
            seedless=False,
            host_breaker=state.host_breaker,
        ),
        "observe": lambda packet: observe_encoded(config, state, packet, arrays, ()),
        "encode the blueprint": lambda _: encode_blueprint(blueprint, size.layout, config=graph),
    }


def cpu_in_turns(
    timed: Mapping[str, Callable[[SystemStatePacket], object]], size: Size, rounds: int
) -> dict[str, Timing]:
    """As `harness.in_turns`, but of CPU time, and with the packets of a run."""
    packets = itertools.cycle(size.packets(PACKETS))
    taken: dict[str, list[float]] = {name: [] for name in timed}
    gc.collect()
    for number in range(rounds + PACKETS):
        packet = next(packets)
        for name, call in timed.items():
            started = time.process_time_ns()
            call(packet)
            if number >= PACKETS:
                taken[name].append((time.process_time_ns() - started) / 1e6)
    return {f"{name}, {size.name}": Timing.of(sample) for name, sample in taken.items()}


def main() -> None:
    """Measure and print."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--rounds", type=int, default=1000)
    arguments.add_argument("--json", action="store_true")
    rounds = arguments.parse_args().rounds
    rows: dict[str, Timing] = {}
    for make in SIZES.values():
        size = make()
        timed = calls(size)
        once = {"encode the blueprint": timed["encode the blueprint"]}
        often = {name: call for name, call in timed.items() if name not in once}
        rows |= cpu_in_turns(often, size, rounds) | cpu_in_turns(once, size, max(rounds // 50, 1))
    report("encode", rows, {"clock": "CPU time of the process"})


if __name__ == "__main__":
    main()
