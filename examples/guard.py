"""A plain Optax loop with Tamiyo on guard: no policy, no seeds, only the risk rules.

    python examples/guard.py

Trains a linear classifier on real digits. At step 200 a batch is broken and the
parameters turn NaN; the guard asks for a rollback, and the applier verifies that the command is
the controller's and restores the last good state.
"""

from __future__ import annotations

import os
import tempfile
import time

import jax
import jax.numpy as jnp
import optax
from sklearn.datasets import load_digits

import tamiyo_jax as tj
from tamiyo_jax import host
from tamiyo_jax.clock import steady_time_ns
from tamiyo_jax.contracts import LayerSpec, NonceLedger, Secret, Verifier
from tamiyo_jax.library import SqliteBlueprintLibrary

BLUEPRINT = tj.Blueprint(
    "linear", risk=0.1, layers=(LayerSpec("readout", "dense", 0, parameter_count=650),), chain=True
)
CONFIG = tj.TamiyoConfig(packet={"seedless": True})
inputs, labels = load_digits(return_X_y=True)
x, y = jnp.asarray(inputs / 16, jnp.float32), jnp.asarray(labels)
optimizer = optax.chain(optax.sgd(0.5), host.tamiyo_scale())


def loss_of(params: jax.Array, x: jax.Array) -> jax.Array:
    """Mean cross entropy of the linear classifier."""
    return optax.softmax_cross_entropy_with_integer_labels(x @ params, y).mean()


@jax.jit
def train_step(
    params: jax.Array, opt_state: optax.OptState, x: jax.Array
) -> tuple[jax.Array, optax.OptState, jax.Array, jax.Array]:
    """One step of gradient descent; also gives the loss and the gradient's norm."""
    loss, gradient = jax.value_and_grad(loss_of)(params, x)
    updates, opt_state = optimizer.update(gradient, opt_state, params)
    return optax.apply_updates(params, updates), opt_state, loss, optax.tree.norm(gradient)


def main() -> None:
    """Train for 300 steps and say what Tamiyo did."""
    params = jnp.zeros((64, 10), jnp.float32)
    opt_state = optimizer.init(params)
    secret, checkpoints = os.urandom(32), host.MemoryCheckpoints()
    applier = host.CommandApplier(
        Verifier((Secret(secret),), NonceLedger(steady_time_ns()), CONFIG.security),
        clock=steady_time_ns,
        optimizer_id="sgd",
        checkpointer=checkpoints,
    )
    checkpoints.save("last-good", (params, opt_state))
    with tempfile.TemporaryDirectory() as run:
        library = SqliteBlueprintLibrary(f"{run}/blueprints.db")
        library.put(BLUEPRINT)
        with tj.Tamiyo.open(
            CONFIG, directory=f"{run}/tamiyo", library=library, mode="guard", secret=secret
        ) as tamiyo:
            for step in range(300):
                batch = x * (jnp.nan if step == 200 else 1.0)
                params, opt_state, loss, norm = train_step(params, opt_state, batch)
                packet = tj.SystemStatePacket(
                    packet_id=f"step-{step}",
                    training_run_id="guarded",
                    blueprint_id=BLUEPRINT.blueprint_id,
                    global_step=step,
                    validation_loss=float(loss),
                    training_metrics={"loss": float(loss), "gradient_norm": float(norm)},
                    optimizer_id="sgd",
                    restorable_checkpoint="last-good",
                    timestamp_ns=time.time_ns(),
                )
                try:
                    decision = tamiyo.step(packet)
                    params, opt_state = applier((params, opt_state), decision)
                except tj.TamiyoError as error:
                    print(f"step {step}: {error}")  # train on without Tamiyo for this step
                    continue
                if decision.command is None:
                    checkpoints.save("last-good", (params, opt_state))
                    continue
                print(f"step {step}: loss {loss:.3g}, {decision.action} ({decision.reason})")
    accuracy = jnp.mean(jnp.argmax(x @ params, axis=-1) == y)
    print(f"accuracy {accuracy:.3f}, learning rate {0.5 * host.scale_of(opt_state):.3f}")


if __name__ == "__main__":
    main()
