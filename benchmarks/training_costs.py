"""What Tamiyo takes of the training: the calls of a loop, and seed slots in the train step.

    .venv/bin/python benchmarks/training_costs.py [loop] [growth] [--json]

The network is the decoder of `benchmarks/monitor.py`, of ten million parameters.

- *loop*: a call of `Plug` that only adds up, and one that decides, until the copy of the state
  that it keeps is there; and the parts of one.
- *growth*: a train step with seed slots after the blocks, against one without, and one with a
  grown seed, against the network that has the seed's module built in; also by the arithmetic that
  XLA counts. And what measuring the contributions of seeds adds to a validation batch.

What is compared takes turns.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from harness import Found, in_turns, report_parts
from monitor import DEPTH, LENGTH, VOCABULARY, WIDTH, Block, Training, loss

from tamiyo_jax import growth, host
from tamiyo_jax.contracts import SeedOperation, SeedStage, SystemStatePacket
from tamiyo_jax.training import Plug

SEQUENCES = 4
SLOTS = 3
WIDE = f"wide-mlp-{WIDTH}"
MB = 1e6
Mode = Literal["guard", "act"]


def tokens() -> jax.Array:
    """A batch of i32[B, T + 1]."""
    shape = (SEQUENCES, LENGTH + 1)
    return jnp.asarray(np.random.default_rng(0).integers(0, VOCABULARY, shape, dtype=np.int32))


def optimizer() -> optax.GradientTransformationExtraArgs:
    """That of `benchmarks/monitor.py`, measured."""
    adamw = optax.adamw(3e-4, weight_decay=0.1)
    chain = optax.chain(optax.clip_by_global_norm(1.0), adamw, host.tamiyo_scale())
    return host.monitor(chain)


def megabytes(tree: object) -> float:
    """Of a pytree of arrays."""
    return round(sum(leaf.nbytes for leaf in jax.tree.leaves(tree)) / MB, 1)


def loop(root: Path) -> Found:
    """Calls of `Plug`, and the parts of one."""
    training, batch = Training(optimizer(), monitored=True), tokens()
    value, measured = jax.block_until_ready(training.step(batch))
    state, meter = training.state, host.HardwareMeter(jax.local_devices()[0])
    lines: list[str] = []
    calls: dict[str, Callable[[], object]] = {}
    with ExitStack() as stack:
        for mode in get_args(Mode):
            plug = stack.enter_context(
                Plug.open(
                    root / mode, state.params, loss, batch, mode=mode, every=2, log=lines.append
                )
            )

            def decide(plug: Plug = plug) -> None:
                plug(state, value)
                jax.block_until_ready(jax.live_arrays())

            # Every second call decides, and there is an even number of them to warm up.
            calls[f"{mode}: a call that adds up"] = partial(plug, state, value)
            calls[f"{mode}: a call that decides"] = decide
        rows = in_turns(calls, rounds=200, warmup=10)
    late = jax.device_get(measured)
    identity = SystemStatePacket("packet", "run", "decoder", timestamp_ns=1)
    kept = host.MemoryCheckpoints()

    def keep() -> None:
        kept.save("good", state)
        jax.block_until_ready(jax.live_arrays())

    rows |= in_turns({"in it: the copy of the state": keep}, rounds=100)
    rows |= in_turns(
        {
            "in it: hardware": meter.read,
            "in it: packet_from": lambda: host.packet_from(
                identity,
                layers=training.layers,
                statistics=late,
                training_loss=float(value),
                seeds=(),
                metrics={},
                hardware=meter.read(),
            ),
        },
        rounds=500,
    )
    rows |= in_turns({"once: blueprint_of": partial(describe, state.params, batch)}, rounds=5)
    return rows, {
        "layers": len(training.layers),
        "train state, MB, kept once more": megabytes(state),
        "lines that were logged": len(lines),
    }


def describe(params: object, batch: jax.Array) -> object:
    """A blueprint by a trace that no cache has."""
    forward = lambda params, batch: loss(params, batch)  # noqa: E731
    return host.blueprint_of(params, forward, batch, blueprint_id="decoder", risk=0.1)


class Grown(nn.Module):
    """The decoder of `benchmarks/monitor.py`, with a slot after each of its first blocks."""

    slots: int
    bank: growth.Bank

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Map i32[B, T] to logits f32[B, T, V]."""
        embed = nn.Embed(VOCABULARY, WIDTH, name="tokens")
        x = embed(tokens) + nn.Embed(LENGTH, WIDTH, name="places")(jnp.arange(tokens.shape[1]))
        for index in range(DEPTH):
            x = Block(name=f"block-{index}")(x)
            if index < self.slots:
                x = growth.SeedSlot(self.bank, name=f"seed-{index}")(x)
        return embed.attend(nn.LayerNorm(name="last")(x))


@dataclass
class Growing:
    """A host with slots, and how to train it."""

    host: host.Host
    state: host.HostState
    step: jax.stages.Wrapped

    @classmethod
    def make(cls, slots: int, built_in: str | None = None) -> Growing:
        """All slots dormant, with the candidates of the library's family `decoder`.

        With `built_in` the first slot is no slot: it has that module, and the host its parameters.
        """
        example = jax.ShapeDtypeStruct((1, LENGTH, WIDTH), jnp.float32)
        bank = host.seed_bank("decoder", example).bank
        model = Grown(slots, bank)

        def loss_fn(params: Any, seeds: Any, gates: Any, batch: jax.Array) -> jax.Array:  # noqa: ANN401
            if built_in is not None:
                params, own = params["host"], params["module"]
                # A number of NumPy's is a constant to the compiler.
                seeds, gates = {"seed-0": own}, {"seed-0": growth.Gate(np.float32(1))}  # pyright: ignore[reportArgumentType]
            variables = growth.slot_variables(params, seeds, gates)
            logits: Any = model.apply(variables, batch[:, :-1])
            return optax.softmax_cross_entropy_with_integer_labels(logits, batch[:, 1:]).mean()

        keys = {"params": jax.random.key(0), "seeds": jax.random.key(1)}
        variables = jax.jit(model.init)(keys, jnp.zeros((1, LENGTH), jnp.int32))
        seeds = {name: one["bank"] for name, one in variables.get("seeds", {}).items()}
        params = variables["params"]
        if built_in is not None:
            own = {built_in: seeds["seed-0"][built_in]}
            params, seeds = {"host": params, "module": own}, {}
        made = host.Host(
            loss=loss_fn,
            optimizer=optimizer(),
            seed_optimizer=optax.adamw(3e-4),
            init_seeds=lambda key: seeds,
            timing=growth.Timing(100, 100),
        )
        state = host.init_host(made, params, jax.random.PRNGKey(0))
        return cls(made, state, jax.jit(partial(host.train_step, made), donate_argnums=0))

    def at(self, stage: SeedStage) -> Growing:
        """A copy in whose first slot a wide perceptron is at that stage."""
        copied = jax.tree.map(jnp.copy, self.state)
        operation = SeedOperation.GERMINATE
        state = host.operate(self.host, copied, "seed-0", operation, blueprint_id=WIDE)
        slot = state.slots["seed-0"]
        moved = slot._replace(state=growth.enter(slot.state, stage))
        return replace(self, state=state._replace(slots={**state.slots, "seed-0": moved}))

    def flops(self, batch: jax.Array) -> float:
        """Arithmetic of a step, as XLA counts it."""
        counted = self.step.lower(self.state, batch).compile().cost_analysis()
        return counted["flops"]

    def train(self, batch: jax.Array) -> None:
        """One step, waited for."""
        self.state, _ = jax.block_until_ready(self.step(self.state, batch))


def growing(root: Path) -> Found:
    """Time train steps by what is in the slots, and validation with and without contributions."""
    del root
    batch = tokens()
    without, all_ = (Growing.make(slots) for slots in (0, SLOTS))
    built_in, grown = Growing.make(1, WIDE), all_.at(SeedStage.FOSSILIZED)
    ways = {
        "without slots": without,
        f"{SLOTS} slots, dormant": all_,
        "module built in": built_in,
        f"{SLOTS} slots, one BLENDING": all_.at(SeedStage.BLENDING),
        f"{SLOTS} slots, one FOSSILIZED": grown,
        f"{SLOTS} slots, one TRAINING": all_.at(SeedStage.TRAINING),
    }
    counted = {name: way.flops(batch) for name, way in ways.items()}
    rows = in_turns(
        {f"train step, {name}": partial(way.train, batch) for name, way in ways.items()},
        rounds=15,
        warmup=2,
    )
    against = {name: built_in if "one" in name else without for name in ways}
    names = {id(way): name for name, way in ways.items()}
    shares = {
        f"{name}, against {names[id(other)]}": {
            "seconds": round(
                rows[f"train step, {name}"].median / rows[f"train step, {names[id(other)]}"].median,
                3,
            ),
            "arithmetic": round(counted[name] / counted[names[id(other)]], 3),
        }
        for name, other in against.items()
        if name != names[id(other)]
    }
    measure_contribution = jax.jit(
        lambda state: host.contribution(grown.host.loss, state.params, state.slots, batch)
    )
    alone = jax.jit(lambda state: host.loss_of(grown.host, state, batch))
    rows |= in_turns(
        {
            "validation batch, its loss": lambda: jax.block_until_ready(alone(grown.state)),
            "validation batch, contribution of a seed": lambda: jax.block_until_ready(
                measure_contribution(grown.state)
            ),
        },
        rounds=10,
        warmup=2,
    )
    held = {"dormant": all_, "grown": grown}
    slots = {name: way.state.slots["seed-0"] for name, way in held.items()}
    return rows, {
        "ratios": shares,
        "host, parameters and optimiser, MB": megabytes(without.state),
        "a slot, parameters and optimiser, MB": {
            name: megabytes((slot.params, slot.opt_state)) for name, slot in slots.items()
        },
        "parameters of a slot's candidates": {
            name: sum(leaf.size for leaf in jax.tree.leaves(params))
            for name, params in host.banks_of(all_.host)["seed-0"].items()
        },
    }


PARTS = {"loop": loop, "growth": growing}


if __name__ == "__main__":
    report_parts("training costs", PARTS, __doc__)
