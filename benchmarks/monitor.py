"""What measuring a training step costs, and what the whole loop with Tamiyo in it costs.

    .venv/bin/python benchmarks/monitor.py [--rounds 10] [--sequences 8] [--json]

A decoder transformer of ten million parameters (Linen, adamw behind clipping by the global
norm, donated state) trains on sequences of 256 tokens, four ways that take turns:

- *plain*: the optimiser as it is;
- *monitored*: the optimiser wrapped in `monitor`, the statistics an output of the step;
- *guarded*: wrapped in `guarded`, so that a ruinous step is refused;
- *with Tamiyo*: the same, and at every step the statistics of the step before are read, a
  packet is made and decided on by the heuristic in its worker process, journalled with group
  commit, and the decision is applied.

A turn dispatches `STEPS` steps and waits for the last one. Each of the others takes its turn
next to one of *plain*, in changing order, so every round gives one ratio of neighbours; an
overhead is the median of these ratios, with their quartiles. *Measuring alone* is the same
measurement without the training around it, which a busy machine disturbs less. Compiling is
timed first, once for each of the three steps; the first of them also loads what XLA needs once, so
another program goes before it.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from harness import Timing, in_turns, report

from tamiyo_jax import host
from tamiyo_jax.clock import steady_time_ns
from tamiyo_jax.config import PacketConfig, StorageConfig, TamiyoConfig
from tamiyo_jax.contracts import (
    ActivationSpec,
    Blueprint,
    BlueprintTier,
    LayerSpec,
    NonceLedger,
    ParameterSpec,
    Secret,
    SystemStatePacket,
    Verifier,
)
from tamiyo_jax.errors import TamiyoError
from tamiyo_jax.library import MemoryBlueprintLibrary
from tamiyo_jax.service import Tamiyo

WIDTH, DEPTH, HEADS, VOCABULARY, LENGTH = 384, 5, 6, 3072, 256
STEPS = 2
WARMUP = 2
SECRET = os.urandom(32)

Params = Any


class Block(nn.Module):
    """Pre-norm attention and perceptron, both residual."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map f32[B, T, D] to an array like it."""
        mask = nn.make_causal_mask(x[..., 0])
        attend = nn.MultiHeadDotProductAttention(HEADS, use_bias=False, name="attention")
        x = x + attend(nn.LayerNorm(name="before-attention")(x), mask=mask)
        hidden = nn.Dense(4 * WIDTH, name="widen")(nn.LayerNorm(name="before-widen")(x))
        return x + nn.Dense(WIDTH, name="narrow")(nn.gelu(hidden))


class Decoder(nn.Module):
    """A decoder whose embedding is also its readout."""

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Map i32[B, T] to logits f32[B, T, V]."""
        embed = nn.Embed(VOCABULARY, WIDTH, name="tokens")
        places = nn.Embed(LENGTH, WIDTH, name="places")
        x = embed(tokens) + places(jnp.arange(tokens.shape[1]))
        for index in range(DEPTH):
            x = Block(name=f"block-{index}")(x)
        return embed.attend(nn.LayerNorm(name="last")(x))


MODEL = Decoder()


def loss(params: Params, tokens: jax.Array) -> jax.Array:
    """Mean cross-entropy of the next token, f32[]."""
    logits: Any = MODEL.apply({"params": params}, tokens[:, :-1])
    return optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:]).mean()


class Training:
    """A run whose state stays on the device; it has no slots."""

    def __init__(self, tx: optax.GradientTransformationExtraArgs, *, monitored: bool) -> None:
        params = MODEL.init(jax.random.key(0), jnp.zeros((1, LENGTH), jnp.int32))["params"]
        self.layers = host.layer_names(params)
        self.size = sum(array.size for array in jax.tree.leaves(params))
        self.steps = 0
        self.state = host.HostState(
            params=params,
            opt_state=tx.init(params),
            slots={},
            rng=jax.random.PRNGKey(0),
            step=jnp.int32(0),
            paused=jnp.bool_(False),
            breaker_open=jnp.bool_(False),
        )

        @partial(jax.jit, donate_argnums=0)
        def train(state: host.HostState, tokens: jax.Array) -> tuple[host.HostState, Any]:
            value, gradient = jax.value_and_grad(loss)(state.params, tokens)
            updates, opt_state = tx.update(gradient, state.opt_state, state.params, loss=value)
            params = optax.apply_updates(state.params, updates)
            measured = host.statistics(opt_state) if monitored else None
            return state._replace(params=params, opt_state=opt_state), (value, measured)

        self._train = train

    def compile_seconds(self, sequences: int) -> float:
        """How long XLA compiles the step."""
        tokens = jax.ShapeDtypeStruct((sequences, LENGTH + 1), jnp.int32)
        lowered = self._train.lower(self.state, tokens)
        started = time.perf_counter()
        lowered.compile()
        return time.perf_counter() - started

    def step(self, tokens: jax.Array) -> Any:  # noqa: ANN401
        """Dispatch a step; its loss, and its statistics where they are measured."""
        self.state, outputs = self._train(self.state, tokens)
        self.steps += 1
        return outputs

    def megabytes(self) -> float:
        """Size of the state: parameters, optimiser and what is measured."""
        return sum(array.nbytes for array in jax.tree.leaves(self.state)) / 1e6


class Loop:
    """A run with Tamiyo in it: measured, decided on and obeyed at every step."""

    def __init__(self, training: Training, tamiyo: Tamiyo, applier: host.CommandApplier) -> None:
        self.training = training
        self.tamiyo = tamiyo
        self.applier = applier
        self.took: list[float] = []
        self.failed = 0
        self._read = host.LateReader[tuple[jax.Array, host.Statistics]]()
        self._meter = host.HardwareMeter(jax.local_devices()[0])

    def step(self, tokens: jax.Array) -> jax.Array:
        """Dispatch a step, and decide on the one before while it runs; the step's loss."""
        outputs = self.training.step(tokens)
        late = self._read(outputs)
        if late is not None:
            started = time.perf_counter()
            try:
                decision = self.tamiyo.step(self._packet(*late))
                self.training.state = self.applier(self.training.state, decision)
            except TamiyoError:
                self.failed += 1
            self.took.append(1e3 * (time.perf_counter() - started))
        return outputs[0]

    def _packet(self, value: jax.Array, statistics: host.Statistics) -> SystemStatePacket:
        step = self.training.steps - 1
        identity = SystemStatePacket(
            packet_id=f"step-{step}",
            training_run_id="benchmark",
            blueprint_id="decoder",
            current_epoch=step,
            global_step=step,
            optimizer_id="adamw",
            timestamp_ns=time.time_ns(),
        )
        return host.packet_from(
            identity,
            layers=self.training.layers,
            statistics=statistics,
            training_loss=float(value),
            seeds=(),
            metrics={},
            hardware=self._meter.read(),
        )


def blueprint_of(layers: tuple[str, ...]) -> Blueprint:
    """A blueprint of the measured layers, as if they followed one another."""
    return Blueprint(
        blueprint_id="decoder",
        tier=BlueprintTier.SAFE,
        risk=0.1,
        layers=tuple(
            LayerSpec(name, "dense", depth, activation="gelu") for depth, name in enumerate(layers)
        ),
        activations=(ActivationSpec("gelu", "gelu"),),
        parameters=(ParameterSpec("learning_rate", 0.0, 1.0),),
        chain=True,
    )


def turn(step: Callable[[jax.Array], object], batches: np.ndarray) -> float:
    """Milliseconds per step."""
    started = time.perf_counter()
    outputs = [step(jnp.asarray(tokens)) for tokens in batches]
    jax.block_until_ready(outputs[-1])
    return 1e3 * (time.perf_counter() - started) / len(batches)


def compare(
    plain: Callable[[jax.Array], object],
    others: Mapping[str, Callable[[jax.Array], object]],
    *,
    rounds: int,
    sequences: int,
) -> dict[str, list[tuple[float, float]]]:
    """Milliseconds per step of each of the others and of its neighbour *plain*, by round."""
    generator = np.random.default_rng(0)
    shape = (STEPS, sequences, LENGTH + 1)
    pairs: dict[str, list[tuple[float, float]]] = {name: [] for name in others}
    for index in range(WARMUP + rounds):
        batches = generator.integers(0, VOCABULARY, shape, dtype=np.int32)
        for name, step in others.items():
            if index % 2:
                ours, theirs = turn(step, batches), turn(plain, batches)
            else:
                theirs, ours = turn(plain, batches), turn(step, batches)
            pairs[name].append((ours, theirs))
    return {name: taken[WARMUP:] for name, taken in pairs.items()}


def overhead(pairs: list[tuple[float, float]]) -> dict[str, float]:
    """Percent that the first of a pair takes longer than the second."""
    low, middle, high = np.percentile([100 * (a / b - 1) for a, b in pairs], [25, 50, 75]).tolist()
    return {"median": round(middle, 2), "from": round(low, 2), "to": round(high, 2)}


def alone(params: Params) -> Callable[[], object]:
    """Measuring without training: what `monitor` adds to an update."""
    tx = host.monitor(optax.scale(-1.0))

    gradient = jax.tree.map(jnp.cos, params)

    @partial(jax.jit, donate_argnums=0)
    def update(
        state: optax.OptState, gradient: Params, params: Params
    ) -> tuple[optax.OptState, host.Statistics]:
        _, state = tx.update(gradient, state, params)
        return state, host.statistics(state)

    state = tx.init(params)

    def call() -> None:
        nonlocal state
        state, _ = jax.block_until_ready(update(state, gradient, params))

    return call


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--sequences", type=int, default=8)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0), optax.adamw(3e-4, weight_decay=0.1), host.tamiyo_scale()
    )
    plain = Training(optax.with_extra_args_support(optimizer), monitored=False)
    monitored = Training(host.monitor(optimizer), monitored=True)
    guarded = Training(host.guarded(optimizer), monitored=True)
    watched = Training(host.monitor(optimizer), monitored=True)
    steps = {"plain": plain, "monitored": monitored, "guarded": guarded}
    jax.jit(jnp.tanh).lower(jnp.ones(8)).compile()
    compiled = {name: one.compile_seconds(arguments.sequences) for name, one in steps.items()}
    config = TamiyoConfig(
        packet=PacketConfig(seedless=True), storage=StorageConfig(durability="group")
    )
    library = MemoryBlueprintLibrary()
    library.put(blueprint_of(watched.layers))
    with (
        tempfile.TemporaryDirectory() as root,
        Tamiyo.open(
            config, directory=root, library=library, policy="heuristic", secret=SECRET
        ) as tamiyo,
    ):
        verifier = Verifier((Secret(SECRET),), NonceLedger(steady_time_ns()), config.security)
        applier = host.CommandApplier(verifier, clock=steady_time_ns, optimizer_id="adamw")
        loop = Loop(watched, tamiyo, applier)
        taken = compare(
            plain.step,
            {"monitored": monitored.step, "guarded": guarded.step, "with Tamiyo": loop.step},
            rounds=arguments.rounds,
            sequences=arguments.sequences,
        )
    measuring = in_turns({"measuring": alone(watched.state.params)}, rounds=30, warmup=3)
    neighbours = Timing.of([theirs for pairs in taken.values() for _, theirs in pairs])
    share = 100 * measuring["measuring"].median / neighbours.median
    report(
        "monitor",
        {
            "step, plain": neighbours,
            **{f"step, {name}": Timing.of([a for a, _ in pairs]) for name, pairs in taken.items()},
            "measuring alone": measuring["measuring"],
            "reading, deciding, applying": Timing.of(loop.took),
        },
        {
            **{f"overhead, {name}, percent": overhead(pairs) for name, pairs in taken.items()},
            "measuring alone, percent of a plain step": round(share, 2),
            **{f"compiling, {name}, s": round(took, 2) for name, took in compiled.items()},
            "steps without a decision": loop.failed,
            "parameters": plain.size,
            "layers": len(plain.layers),
            "tokens in a batch": arguments.sequences * LENGTH,
            "state, plain, MB": round(plain.megabytes(), 1),
            "state, monitored, MB": round(monitored.megabytes(), 1),
        },
    )


if __name__ == "__main__":
    main()
