"""Two JAX processes train one model, with one Tamiyo on guard for both.

    python examples/two_processes.py

Starts itself twice; each process holds half of the digits. At step 200 the half of process 1 is
broken, and the parameters turn NaN. Process 0 decides on a rollback; both verify it and restore
their last good state. On two hosts, start the script on each, with one TAMIYO_SECRET.
"""

from __future__ import annotations

import os
import secrets
import socket
import subprocess
import sys
import tempfile
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from sklearn.datasets import load_digits

import tamiyo_jax as tj
from tamiyo_jax.clock import steady_time_ns
from tamiyo_jax.contracts import LayerSpec, NonceLedger, Secret, Verifier
from tamiyo_jax.library import MemoryBlueprintLibrary
from tamiyo_jax.service._multihost import MultihostTamiyo

BLUEPRINT = tj.Blueprint(
    "linear", risk=0.1, layers=(LayerSpec("readout", "dense", 0, parameter_count=640),), chain=True
)
CONFIG = tj.TamiyoConfig(packet={"seedless": True})
optimizer = optax.sgd(0.5)


def loss_of(params: jax.Array, x: jax.Array, y: jax.Array) -> jax.Array:
    """Mean cross entropy over the digits of both processes."""
    return optax.softmax_cross_entropy_with_integer_labels(x @ params, y).mean()


@jax.jit
def train_step(params: jax.Array, opt_state: optax.OptState, x: jax.Array, y: jax.Array):  # noqa: ANN201
    """One step of gradient descent; also gives the loss and the gradient's norm."""
    loss, gradient = jax.value_and_grad(loss_of)(params, x, y)
    updates, opt_state = optimizer.update(gradient, opt_state, params)
    return optax.apply_updates(params, updates), opt_state, loss, optax.tree.norm(gradient)


def open_tamiyo(run: str) -> MultihostTamiyo:
    """One controller for both; only process 0 opens it."""
    library = MemoryBlueprintLibrary()
    library.put(BLUEPRINT)
    return MultihostTamiyo.open(
        lambda: tj.Tamiyo.open(CONFIG, directory=run, library=library, mode="guard")
    )


def train(address: str, process: int) -> None:
    """What each process does; nothing below depends on which one it is but its data."""
    secret = os.environ.get("TAMIYO_SECRET") or sys.exit("set the same TAMIYO_SECRET on both hosts")
    jax.distributed.initialize(address, num_processes=2, process_id=process)
    mesh = Mesh(np.array(jax.devices()[:: jax.local_device_count()]), ("data",))
    everywhere, divided = (NamedSharding(mesh, PartitionSpec(*axis)) for axis in ((), ("data",)))
    inputs, labels = load_digits(return_X_y=True)
    local = (inputs[process:1796:2] / 16).astype(np.float32)
    x = jax.make_array_from_process_local_data(divided, local)
    y = jax.make_array_from_process_local_data(divided, labels[process:1796:2].astype(np.int32))
    broken = jax.make_array_from_process_local_data(divided, local * (np.nan if process else 1))
    params = jax.jit(lambda: jnp.zeros((64, 10), jnp.float32), out_shardings=everywhere)()
    good = params, opt_state = params, optimizer.init(params)
    verifier = Verifier((Secret(secret),), NonceLedger(steady_time_ns()), CONFIG.security)
    with tempfile.TemporaryDirectory() as run, open_tamiyo(run) as tamiyo:
        for step in range(300):
            batch = broken if step == 200 else x
            params, opt_state, loss, norm = train_step(params, opt_state, batch, y)
            packet = tj.SystemStatePacket(
                packet_id=f"step-{step}",
                training_run_id="two-processes",
                blueprint_id=BLUEPRINT.blueprint_id,
                global_step=step,
                validation_loss=float(loss),
                training_metrics={"loss": float(loss), "gradient_norm": float(norm)},
                restorable_checkpoint="last-good",
                timestamp_ns=time.time_ns(),
            )
            try:
                command = tamiyo.step(packet).command
            except tj.TamiyoError as error:  # the same on both: they train on without Tamiyo
                print(f"process {process}, step {step}: {error}")
                continue
            if command is None:
                good = (params, opt_state)
                continue
            verifier = verifier.verify(command, now_ns=steady_time_ns())
            print(f"process {process}, step {step}: {command.command_type.name}")
            if command.command_type is tj.CommandType.ROLLBACK:
                params, opt_state = good
    accuracy = jnp.mean(jnp.argmax(inputs.astype(np.float32) @ np.asarray(params), -1) == labels)
    print(f"process {process}: accuracy {accuracy:.3f}")


def main() -> None:
    """Be one of the processes, or start both of them here."""
    if len(sys.argv) == 3:
        return train(sys.argv[1], int(sys.argv[2]))
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    environment = {"TAMIYO_SECRET": secrets.token_hex(32), **os.environ, "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, __file__, address]
    both = [subprocess.Popen([*command, str(index)], env=environment) for index in range(2)]
    sys.exit(any([process.wait() for process in both]))


if __name__ == "__main__":
    main()
