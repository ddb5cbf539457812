"""A character-level GPT of 8 blocks: grown from 2, and large from the start.

    python benchmarks/growth_gpt.py --plot docs/growing_gpt.png

It reads what ships with Python, the help topics of `pydoc`. All networks have the optimiser, the
schedule (warm-up, constant, linear decay over the last quarter) and the learning rate that were
best for the large one. *grown* has as many steps as 60 % of the large one's arithmetic allow, and
copies of its blocks are added silent; *stacked* is the same with the copies as they are (G_stack).
*small* and *large, less* have the arithmetic of the grown one, and say what is owed to growing
and not to a shorter run or a smaller network.

Arithmetic is what XLA counts in the compiled train step, times the steps. Seconds, of the wall and
of the processor, are from the first trace to the last step, validation left out. A network's
programs are compiled in a thread while the last one trains.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache, partial
from itertools import pairwise
from pydoc_data.topics import topics
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from growth_gpt_report import plot, table

from tamiyo_jax.expansion import CompileAhead, compile_program, deepen, grow_opt_state, grow_params

Params = Any

WIDTH, HEADS, CONTEXT, BATCH = 32, 2, 64, 16
WARM_UP, DECAY = 100, 0.25
LEARNING_RATE = 6e-3  # the best for the large network of 3e-3, 6e-3 and 1.2e-2
MEASURE_EVERY = 100
VALIDATION = 256
SETTLED = 10  # steps of a stage before the next one's programs are compiled
OUTPUTS = ("attended", "projected")


class Stage(NamedTuple):
    """So many steps with so many blocks."""

    blocks: int
    steps: int


class Plan(NamedTuple):
    """How a network is trained.

    Attributes:
      stages: one after another.
      share: of the copies' outputs when blocks are added, as in `deepen`.
    """

    stages: tuple[Stage, ...]
    share: float = 0.0


PLANS = {
    "large": Plan((Stage(8, 1500),)),
    "grown": Plan((Stage(2, 2450), Stage(8, 240))),
    "stacked": Plan((Stage(2, 2450), Stage(8, 240)), share=1.0),
    "small": Plan((Stage(2, 3330),)),
    "large, less": Plan((Stage(8, 900),)),
}


@dataclass(frozen=True, slots=True)
class Outcome:
    """One network at its end.

    Attributes:
      loss: on the validation text, nats per character.
      flops: of all steps.
      seconds: of training and compiling.
      cpu_seconds: the same of the processor, which other work on the machine changes little.
      bytes: of parameters and optimiser state, the mean over the steps.
      curve: FLOPs so far and validation loss, every so many steps and at the end.
      jump: largest change of the validation loss by growing.
      stall: by how much a growth delayed the step after it, at most, in such steps.
    """

    seed: int
    plan: str
    loss: float
    flops: float
    seconds: float
    cpu_seconds: float
    bytes: float
    curve: tuple[tuple[float, float], ...]
    jump: float
    stall: float


@cache
def text() -> tuple[np.ndarray, np.ndarray, int]:
    """Characters by number, to train and to validate on, and how many different ones there are."""
    whole = np.array(list("\n".join(topics[name] for name in sorted(topics))))
    characters, numbers = np.unique(whole, return_inverse=True)
    cut = len(whole) * 9 // 10
    return numbers[:cut].astype(np.int32), numbers[cut:].astype(np.int32), len(characters)


def batch_of(draw: np.random.Generator, numbers: np.ndarray, size: int) -> np.ndarray:
    """i32[size, CONTEXT + 1]."""
    starts = draw.integers(0, len(numbers) - CONTEXT - 1, size)
    return numbers[starts[:, None] + np.arange(CONTEXT + 1)]


def init(key: jax.Array, blocks: int) -> Params:
    """Parameters; the blocks' arrays hold all of them along their first axis."""
    keys = jax.random.split(key, 7)
    characters = text()[2]
    deepest = 2 * max(stage.blocks for stage in PLANS["grown"].stages)

    def drawn(index: int, shape: tuple[int, ...], scale: float) -> jax.Array:
        return scale * jax.random.normal(keys[index], shape, jnp.float32)

    ones = jnp.ones((blocks, WIDTH), jnp.float32)
    out = (WIDTH * deepest) ** -0.5
    return {
        "embedding": drawn(0, (characters, WIDTH), 0.1),
        "positions": drawn(1, (CONTEXT, WIDTH), 0.05),
        "blocks": {
            "norm_0": ones,
            "queried": drawn(2, (blocks, WIDTH, 3 * WIDTH), WIDTH**-0.5),
            "attended": drawn(3, (blocks, WIDTH, WIDTH), out),
            "norm_1": ones,
            "expanded": drawn(4, (blocks, WIDTH, 4 * WIDTH), WIDTH**-0.5),
            "projected": drawn(5, (blocks, 4 * WIDTH, WIDTH), out / 2),
        },
        "norm": jnp.ones(WIDTH, jnp.float32),
        "head": drawn(6, (WIDTH, characters), 0.02),
    }


def normalised(x: jax.Array, scale: jax.Array) -> jax.Array:
    """Root-mean-square normalisation over the last axis."""
    return x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-6) * scale


def block(x: jax.Array, own: Params) -> jax.Array:
    """Causal attention and a perceptron, each behind a normalisation (pre-norm)."""
    heads = (*x.shape[:2], 3, HEADS, WIDTH // HEADS)
    q, k, v = jnp.moveaxis((normalised(x, own["norm_0"]) @ own["queried"]).reshape(heads), 2, 0)
    weights = jnp.einsum("bqhd,bkhd->bhqk", q, k) * (WIDTH // HEADS) ** -0.5
    causal = jnp.tril(jnp.ones((CONTEXT, CONTEXT), bool))
    weights = jax.nn.softmax(jnp.where(causal, weights, -1e9), axis=-1)
    x = x + jnp.einsum("bhqk,bkhd->bqhd", weights, v).reshape(x.shape) @ own["attended"]
    hidden = jax.nn.gelu(normalised(x, own["norm_1"]) @ own["expanded"])
    return x + hidden @ own["projected"]


def loss(params: Params, rows: jax.Array) -> jax.Array:
    """f32[], mean cross-entropy of the next character."""
    x = params["embedding"][rows[:, :-1]] + params["positions"]
    blocks = params["blocks"]
    # Unrolled, or XLA counts the arithmetic of one block.
    count = len(blocks["norm_0"])
    x, _ = jax.lax.scan(lambda x, own: (block(x, own), None), x, blocks, unroll=count)
    logits = normalised(x, params["norm"]) @ params["head"]
    return optax.softmax_cross_entropy_with_integer_labels(logits, rows[:, 1:]).mean()


@cache
def optimizer(steps: int) -> optax.GradientTransformation:
    """AdamW behind clipping; the learning rate decays over the last quarter of the steps."""
    decay = int(DECAY * steps)
    schedule = optax.join_schedules(
        [
            optax.linear_schedule(0, LEARNING_RATE, WARM_UP),
            optax.constant_schedule(LEARNING_RATE),
            optax.linear_schedule(LEARNING_RATE, 0, decay),
        ],
        [WARM_UP, steps - decay],
    )
    return optax.chain(
        optax.clip_by_global_norm(1.0), optax.adamw(schedule, b2=0.99, weight_decay=0.1)
    )


class Network(NamedTuple):
    """What is trained."""

    params: Params
    opt_state: optax.OptState


def train_step(
    tx: optax.GradientTransformation, state: Network, rows: jax.Array
) -> tuple[Network, jax.Array]:
    """One step, and the loss before it."""
    value, gradient = jax.value_and_grad(loss)(state.params, rows)
    updates, opt_state = tx.update(gradient, state.opt_state, state.params)
    return Network(optax.apply_updates(state.params, updates), opt_state), value


def start(tx: optax.GradientTransformation, key: jax.Array, blocks: int) -> Network:
    """A network before its first step."""
    params = init(key, blocks)
    return Network(params, tx.init(params))


def deeper(
    tx: optax.GradientTransformation, share: float, state: Network, key: jax.Array, blocks: int
) -> Network:
    """The network with its blocks stacked upon one another, as often as they fit."""
    before = len(state.params["blocks"]["norm_0"])
    fresh = init(key, blocks)
    growth = deepen(
        state.params,
        fresh,
        blocks="blocks",
        order=[index % before for index in range(blocks)],
        outputs=OUTPUTS,
        share=share,
    )
    params = grow_params(growth, state.params, fresh, key)
    return Network(params, grow_opt_state(growth, tx, state.opt_state, params))


class Programs(NamedTuple):
    """What a stage runs: `grow` is None in the first."""

    step: jax.stages.Compiled
    measure: jax.stages.Compiled
    grow: jax.stages.Compiled | None


def compile_stage(plan: Plan, index: int) -> Programs:
    """A stage's programs, each run once on zeros: a first run takes several steps' time."""
    tx = optimizer(sum(stage.steps for stage in plan.stages))
    key = jax.random.PRNGKey(0)
    blocks = plan.stages[index].blocks
    state = jax.eval_shape(lambda key: start(tx, key, blocks), key)
    rows = jax.ShapeDtypeStruct((BATCH, CONTEXT + 1), jnp.int32)
    many = jax.ShapeDtypeStruct((VALIDATION, CONTEXT + 1), jnp.int32)
    grow = None
    if index:
        before = plan.stages[index - 1].blocks
        smaller = jax.eval_shape(lambda key: start(tx, key, before), key)
        grow = compile_program(
            lambda state, key: deeper(tx, plan.share, state, key, blocks), smaller, key
        )
    step = compile_program(lambda state, rows: train_step(tx, state, rows), state, rows)
    measure = compile_program(loss, state.params, many)
    jax.block_until_ready((step(*zeros((state, rows))), measure(*zeros((state.params, many)))))
    return Programs(step, measure, grow)


def zeros(shapes: Any) -> Any:  # noqa: ANN401
    """Arrays of these shapes."""
    return jax.tree.map(lambda one: np.zeros(one.shape, one.dtype), shapes)


class Clock:
    """Time that passes, without that which is spent on measuring."""

    def __init__(self) -> None:
        self._aside = (0.0, 0.0)
        self._began = self._now()

    def _now(self) -> tuple[float, float]:
        return time.perf_counter(), time.process_time()

    def read(self) -> tuple[float, float]:
        """Seconds since the start, of the wall and of the processor."""
        now = zip(self._now(), self._began, self._aside, strict=True)
        wall, processor = (one - began - aside for one, began, aside in now)
        return wall, processor

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """What happens inside takes no time."""
        began = self._now()
        yield
        spans = zip(self._now(), began, self._aside, strict=True)
        wall, processor = (aside + now - before for now, before, aside in spans)
        self._aside = (wall, processor)


def train(seed: int, name: str) -> Outcome:
    """One network, from the first trace on."""
    plan, draw = PLANS[name], np.random.default_rng(seed)
    held_out = batch_of(np.random.default_rng(10_000), text()[1], VALIDATION)
    key, clock = jax.random.PRNGKey(seed), Clock()
    tx = optimizer(sum(stage.steps for stage in plan.stages))
    programs = compile_stage(plan, 0)
    state = jax.jit(lambda key: start(tx, key, plan.stages[0].blocks))(key)
    flops, held, jump, found, done = 0.0, 0.0, 0.0, 0.0, 0
    curve: list[tuple[float, float]] = []
    ends: list[list[float]] = []
    for index, stage in enumerate(plan.stages):
        if programs.grow is not None:
            state = jax.block_until_ready(programs.grow(state, key))
            with clock.stopped():
                jump = max(jump, float(programs.measure(state.params, held_out)) - found, key=abs)
        ahead: CompileAhead[Programs] | None = None
        flops_of_step = count(programs)
        size = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
        ends.append([])
        for step in range(stage.steps):
            if step == SETTLED and index + 1 < len(plan.stages):
                ahead = CompileAhead(partial(compile_stage, plan, index + 1))
            state, value = programs.step(state, batch_of(draw, text()[0], BATCH))
            value.block_until_ready()
            ends[-1].append(clock.read()[0])
            flops, held, done = flops + flops_of_step, held + size, done + 1
            if done % MEASURE_EVERY == 0:
                with clock.stopped():
                    curve.append((flops, float(programs.measure(state.params, held_out))))
        with clock.stopped():
            found = float(programs.measure(state.params, held_out))
        if ahead is not None:
            programs = ahead.result()
    seconds, cpu_seconds = clock.read()
    if done % MEASURE_EVERY:
        curve.append((flops, found))
    return Outcome(
        seed=seed,
        plan=name,
        loss=found,
        flops=flops,
        seconds=seconds,
        cpu_seconds=cpu_seconds,
        bytes=held / done,
        curve=tuple(curve),
        jump=jump,
        stall=max((stall(before, after) for before, after in pairwise(ends)), default=0.0),
    )


def count(programs: Programs) -> float:
    """FLOPs of a step, as XLA counts them."""
    counted = programs.step.cost_analysis()
    assert counted is not None
    return counted["flops"]


def stall(before: list[float], after: list[float]) -> float:
    """How much longer the first step after a growth took than a step does, in such steps."""
    return (after[0] - before[-1]) / float(np.median(np.diff(after))) - 1


def main() -> None:
    """Train every network on every seed and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(5)))
    parser.add_argument("--plans", nargs="+", choices=list(PLANS), default=list(PLANS))
    parser.add_argument("--plot", metavar="PATH")
    parser.add_argument("--json", metavar="PATH", help="keep every run here, as it ends")
    arguments = parser.parse_args()
    outcomes: list[Outcome] = []
    for seed in arguments.seeds:
        for name in np.roll(arguments.plans, seed).tolist():  # each is the first in its turn
            outcomes.append(train(seed, name))
            print(f"seed {seed}, {name}: {outcomes[-1].loss:.4f}", file=sys.stderr, flush=True)
            if arguments.json:
                with open(arguments.json, "w", encoding="utf-8") as file:
                    json.dump([asdict(one) for one in outcomes], file)
    print(table([asdict(one) for one in outcomes]))
    if arguments.plot:
        plot(arguments.plot, [asdict(one) for one in outcomes])


if __name__ == "__main__":
    main()
