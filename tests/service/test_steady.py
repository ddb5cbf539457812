"""After ten thousand decisions: nothing compiled, nothing kept, no way out of the jitted step."""

from __future__ import annotations

import gc
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from making import make_blueprint, make_config, open_tamiyo, story
from service.soak import running_packet

from tamiyo_jax.controller import initial_state, observe
from tamiyo_jax.policy import GraphPolicy, init_params, policy_step

WARM, STEPS = 1_100, 3_000  # ids of seeds, a new one each, fill their registry when warm
PARAMS = init_params(make_config().policy, jax.random.key(0))
CANDIDATES = (make_blueprint("grow-a"), make_blueprint("grow-b"))
# What a compiled program calls when it needs the host.
OUTWARDS = re.compile(r"custom_call @\S*callback|stablehlo\.(infeed|outfeed|send|recv)|pinned_host")
_PAGE = os.sysconf("SC_PAGE_SIZE")


class Held(NamedTuple):
    """Arrays of JAX, blocks of Python's allocator, bytes of the process."""

    arrays: int
    blocks: int
    resident: int


def held() -> Held:
    gc.collect()
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * _PAGE
    return Held(len(jax.live_arrays()), sys.getallocatedblocks(), resident)


def check_steady(decide: Callable[[int], object], count_compilations) -> None:
    """Decide ten thousand times after a warm-up; nothing is compiled or kept."""
    for number in range(WARM):
        decide(number)
    before = held()
    with count_compilations() as compiled:
        for number in range(WARM, WARM + STEPS):
            decide(number)
    after = held()
    assert compiled.names == []
    assert after.arrays == before.arrays
    assert after.blocks - before.blocks < STEPS / 4, "some steps leave an object behind"
    assert after.resident - before.resident < 8e6


@pytest.mark.slow
def test_thousands_of_steps_compile_nothing_and_leave_nothing(
    tmp_path: Path, count_compilations
) -> None:
    with open_tamiyo(tmp_path, policy="graph", params=PARAMS) as tamiyo:
        check_steady(lambda number: tamiyo.step(running_packet(2 * number)), count_compilations)


def test_what_a_step_compiles_never_calls_the_host(tmp_path: Path) -> None:
    def outwards(x: jax.Array) -> jax.Array:
        return jax.pure_callback(np.asarray, x, x)

    with programs(tmp_path / "control") as control:
        jax.jit(outwards)(jnp.ones(3, jnp.float32))
    assert any(map(OUTWARDS.search, control.values())), "a callback would not be found"
    config = make_config(graph={"max_seeds": 7})  # a layout that no test compiled
    with (
        programs(tmp_path / "programs") as compiled,
        open_tamiyo(tmp_path / "run", policy="graph", params=PARAMS, config=config) as tamiyo,
    ):
        tamiyo.step(story(1)[0])
    assert any("policy_step" in name for name in compiled)
    assert [name for name, text in compiled.items() if OUTWARDS.search(text)] == []


@pytest.mark.slow
def test_the_jitted_step_moves_nothing_between_host_and_device() -> None:
    config = make_config()
    policy = GraphPolicy(config.graph)
    state = initial_state(policy.initial_state())
    situation = observe(config, state, story(1)[0], make_blueprint(), CANDIDATES)
    layout, raw = situation.observation.layout, situation.observation.raw
    decide = jax.jit(policy_step, static_argnames=("layout", "rate"))
    arguments = jax.device_put((PARAMS, state.policy_state, raw))
    decide(*arguments, layout=layout, rate=0.1)
    with jax.transfer_guard("disallow"):
        for _ in range(3):
            _, outputs = decide(*arguments, layout=layout, rate=0.1)
        with pytest.raises(jax.errors.JaxRuntimeError, match="Disallowed host-to-device"):
            decide(*jax.device_get(arguments), layout=layout, rate=0.1)
    assert np.isfinite(jax.device_get(outputs.value))


@contextmanager
def programs(directory: Path) -> Iterator[dict[str, str]]:
    """The text of every program that is compiled inside, by its file's name, at the end."""
    found: dict[str, str] = {}
    before = jax.config.read("jax_dump_ir_to")
    jax.config.update("jax_dump_ir_to", str(directory))
    try:
        yield found
    finally:
        jax.config.update("jax_dump_ir_to", before)
        found.update({path.name: path.read_text() for path in directory.iterdir()})
