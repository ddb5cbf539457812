"""Commands and checkpoints leave a train state on the devices that it was placed on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from host.test_apply import SCHEDULE, Decision, applier, command, seed_command
from host.tiny_host import batch, make_host, make_state
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from tamiyo_jax import host
from tamiyo_jax.contracts import (
    AdaptationCommand,
    CircuitBreakerAdjustment,
    CircuitBreakerState,
    CommandType,
    OptimizerAdjustment,
    Rollback,
    SeedOperation,
)

DEVICES = 4
COMMANDS: dict[str, AdaptationCommand | None] = {
    "WAIT": None,
    "GERMINATE": seed_command(SeedOperation.GERMINATE, "steep", SCHEDULE, number=1),
    "START_TRAINING": seed_command(SeedOperation.START_TRAINING, number=2),
    "START_GRAFTING": seed_command(SeedOperation.START_GRAFTING, number=3),
    "PAUSE": command(CommandType.PAUSE, number=4),
    "CULL": seed_command(SeedOperation.CULL, number=5),
    "OPTIMIZER": command(
        CommandType.OPTIMIZER, OptimizerAdjustment("sgd", {"lr_delta": -0.5}), number=6
    ),
    "CIRCUIT_BREAKER": command(
        CommandType.CIRCUIT_BREAKER, CircuitBreakerAdjustment(CircuitBreakerState.OPEN), number=7
    ),
    "ROLLBACK": command(CommandType.ROLLBACK, Rollback("good"), number=8),
}


def train_on_a_mesh(directory: str) -> dict[str, Any]:
    """What a run over several devices compiles for each command, and where the state is then."""
    mesh = Mesh(np.array(jax.devices()), ("data",))
    everywhere = NamedSharding(mesh, PartitionSpec())

    def is_placed(state: host.HostState) -> bool:
        return all(leaf.sharding == everywhere for leaf in jax.tree.leaves(state))

    made = make_host()
    checkpoints = host.HostCheckpoints(directory, made)
    state = jax.device_put(make_state(made), everywhere)
    data = jax.device_put(batch(0), NamedSharding(mesh, PartitionSpec("data")))
    checkpoints.save("good", state)
    step = jax.jit(partial(host.train_step, made))
    for _ in range(2):
        state, _ = step(state, data)
    compiled, placed = {}, {}
    apply = applier(checkpointer=checkpoints)
    for name, sent in COMMANDS.items():
        before = step._cache_size()
        state = apply(state, Decision(sent))
        placed[name] = is_placed(state)
        for _ in range(2):
            state, _ = step(state, data)
        compiled[name] = step._cache_size() - before
    restored = is_placed(checkpoints.restore("good", state))
    devices = len(jax.devices())
    return {"devices": devices, "compiled": compiled, "placed": placed, "restored": restored}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={DEVICES}",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    child = subprocess.run(
        [sys.executable, __file__, str(tmp_path_factory.mktemp("host"))],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert child.returncode == 0, child.stderr
    return json.loads(child.stdout)


@pytest.mark.slow
def test_of_all_commands_growth_alone_compiles_the_step_of_a_placed_state_anew(run):
    assert run["devices"] == DEVICES
    assert run["compiled"] == {**dict.fromkeys(COMMANDS, 0), "GERMINATE": 1}


def test_every_array_of_a_placed_state_stays_where_it_is(run):
    assert run["placed"] == dict.fromkeys(COMMANDS, True)


def test_a_checkpoint_comes_back_to_where_the_state_is(run):
    assert run["restored"]


@pytest.mark.parametrize("name", COMMANDS)
def test_a_state_that_was_not_placed_stays_free(name, tmp_path):
    state = make_state(make_host())
    checkpoints = host.HostCheckpoints(tmp_path, make_host())
    checkpoints.save("good", state)
    apply = applier(checkpointer=checkpoints)
    for sent in COMMANDS.values():
        state = apply(state, Decision(sent))
        if sent is COMMANDS[name]:
            break
    assert not any(leaf.committed for leaf in jax.tree.leaves(state))


def test_a_tree_of_texts_and_arrays_is_loaded_to_where_its_counterpart_is(tmp_path):
    device = jax.devices()[0]
    tree = {"text": "said", "placed": jnp.ones(2), "free": jnp.ones(2)}
    host.save_tree(tmp_path / "tree", tree)
    like = {**tree, "text": str, "placed": jax.device_put(jnp.ones(2), device)}
    loaded = host.load_tree(tmp_path / "tree", like)
    assert loaded["text"] == "said"
    assert loaded["placed"].committed
    assert not loaded["free"].committed


if __name__ == "__main__":
    sys.stdout.write(json.dumps(train_on_a_mesh(sys.argv[1])))
