"""Faults in five small loops, with no protection, with others' and with `host.guarded` alone.

Every run is one `lax.scan`; the runs of a loop, all faults and seeds, go side by side. What is
measured here is the protection inside the step, without a controller; `guard_matrix.py` sets it
beside runs with `Plug`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from guard_loops import LOOPS, Batch, Loop

from tamiyo_jax import host
from tamiyo_jax.config import RiskConfig

Tree = Any

WINDOW, SIGMAS = 128, 6.0


class Fault(NamedTuple):
    """What is done to each step of a run; f32[T] each.

    Attributes:
      gain: factor on the inputs.
      garbage: share of the inputs that is noise.
      shuffle: 1 where targets belong to other inputs.
      rate: factor on the learning rate.
      infinite: 1 where a number of the gradient is infinite.
      corrupt: 1 where the optimiser's averages are multiplied by -1,000 first.
    """

    gain: jax.Array
    garbage: jax.Array
    shuffle: jax.Array
    rate: jax.Array
    infinite: jax.Array
    corrupt: jax.Array


def faults(steps: int, at: int) -> dict[str, Fault]:
    """By name; each begins at step `at`."""
    step = np.arange(steps)
    once, lasting = step == at, step >= at
    twenty = lasting & (step < at + 20)
    none = {name: np.zeros(steps) for name in Fault._fields}
    none |= {"gain": np.ones(steps), "rate": np.ones(steps)}
    changes: dict[str, dict[str, np.ndarray]] = {
        "none": {},
        "NaN batch": {"gain": np.where(once, np.nan, 1.0)},
        "infinite gradient": {"infinite": once},
        "20 garbage batches": {"garbage": twenty},
        "20 batches of shuffled labels": {"shuffle": twenty},
        "learning rate x 30": {"rate": np.where(lasting, 30.0, 1.0)},
        "learning rate x 100": {"rate": np.where(lasting, 100.0, 1.0)},
        "corrupted optimiser state": {"corrupt": once},
        "slow drift": {"gain": np.where(lasting, 1 + 0.01 * (step - at), 1.0)},
    }
    return {
        name: Fault(
            **{key: jnp.asarray(array, jnp.float32) for key, array in (none | made).items()}
        )
        for name, made in changes.items()
    }


def scale_by_given() -> optax.GradientTransformationExtraArgs:
    """Multiply updates by the extra argument ``rate``."""

    def update(updates: Tree, state: Tree, params: Tree = None, *, rate: Tree, **_: Tree) -> Tree:
        return jax.tree.map(lambda u: u * rate, updates), state

    return optax.GradientTransformationExtraArgs(
        lambda params: optax.EmptyState(), cast(optax.TransformUpdateExtraArgsFn, update)
    )


class Figures(NamedTuple):
    """What came of a run.

    Attributes:
      interventions: the steps at which something was refused or commanded, ascending.
      loss: held-out, at the end.
    """

    interventions: list[int]
    loss: float


class SkipState(NamedTuple):
    """State of `skip_step`."""

    inner: Tree
    values: jax.Array
    seen: jax.Array
    refused: jax.Array


def skip_step(tx: optax.GradientTransformationExtraArgs) -> optax.GradientTransformationExtraArgs:
    """No update where loss or gradient norm is above 6 sigma of the last 128 (OLMo-core).

    From 64 values on; all values go into the window, as published.
    """

    def init(params: Tree) -> SkipState:
        return SkipState(tx.init(params), jnp.zeros((2, WINDOW)), jnp.int32(0), jnp.bool_(False))

    def update(
        gradient: Tree, state: SkipState, params: Tree, *, loss: Tree, **extra: Tree
    ) -> Tree:
        new = jnp.stack([loss, optax.tree.norm(gradient)])
        held = jnp.minimum(state.seen, WINDOW)
        valid = jnp.arange(WINDOW) < held
        mean = jnp.sum(jnp.where(valid, state.values, 0), 1) / jnp.maximum(held, 1)
        spread = jnp.where(valid, state.values - mean[:, None], 0)
        sigma = jnp.sqrt(jnp.sum(spread**2, 1) / jnp.maximum(held - 1, 1))
        usual = (new <= mean + SIGMAS * sigma).all() | (held < WINDOW // 2)
        updates, inner = tx.update(gradient, state.inner, params, **extra)
        values = state.values.at[:, state.seen % WINDOW].set(new)
        keep = partial(jax.tree.map, lambda a, b: jnp.where(usual, a, b))
        return (
            jax.tree.map(lambda u: jnp.where(usual, u, 0), updates),
            SkipState(keep(inner, state.inner), values, state.seen + 1, ~usual),
        )

    return optax.GradientTransformationExtraArgs(
        init, cast(optax.TransformUpdateExtraArgsFn, update)
    )


def refused_by(state: Tree) -> jax.Array:
    """bool[]: the newest step was not applied."""
    if isinstance(state, SkipState):
        return state.refused
    if isinstance(state, optax.ApplyIfFiniteState):
        return ~state.last_finite
    is_watched = hasattr(state, "detector")
    return host.statistics(state).refusals.refused if is_watched else jnp.bool_(False)


Wrap = Callable[[optax.GradientTransformationExtraArgs], optax.GradientTransformation]
RIVALS: Mapping[str, Wrap] = {
    "plain": lambda tx: tx,
    "apply_if_finite, clip(1)": lambda tx: optax.apply_if_finite(
        optax.chain(optax.clip_by_global_norm(1.0), tx), 1_000_000
    ),
    "skip-step": skip_step,
}


def broken(batch: Batch, fault: Fault) -> Batch:
    """The batch with what the fault does to it."""
    noise = 3 * jax.random.normal(batch.key, batch.x.shape)
    x = jnp.where(fault.garbage > 0, noise, batch.x) * fault.gain
    y = jnp.where(fault.shuffle > 0, jnp.roll(batch.y, len(batch.y) // 2 + 1, 0), batch.y)
    return Batch(x, y, batch.key)


def corrupted(state: Tree, fault: Fault) -> Tree:
    """The optimiser state with Adam's first moments multiplied."""

    def change(node: Tree) -> Tree:
        if not isinstance(node, optax.ScaleByAdamState):
            return node
        factor = jnp.where(fault.corrupt > 0, -1000.0, 1.0)
        return node._replace(mu=jax.tree.map(lambda m: m * factor, node.mu))

    is_adam = lambda node: isinstance(node, optax.ScaleByAdamState)  # noqa: E731
    return jax.tree.map(change, state, is_leaf=is_adam)


def rule_holds(state: Tree) -> jax.Array:
    """bool[]: a rule that brakes or rolls back holds for the newest step."""
    limits, signals = RiskConfig(detection="relative"), host.statistics(state).signals
    risen = signals.sustained_rise > limits.sustained_rise
    return (
        (signals.high_updates >= limits.high_updates)
        | (signals.high_gradients >= limits.high_gradients)
        | (risen & (signals.sustained_z > limits.sustained_z))
    )


@partial(jax.jit, static_argnums=(0, 1))
def run(loop_name: str, rival: str, fault: Fault, key: jax.Array) -> Tree:
    """A whole run: parameters, what else the model holds, refusals bool[T], held-out loss.

    Also bool[T], whether a rule held that brakes or rolls back.
    """
    loop: Loop = LOOPS[loop_name]
    guarded = rival == "guarded"
    chain = optax.chain(optax.adam(loop.rate), scale_by_given())
    wrapped = host.guarded(chain, metrics=loop.watched) if guarded else RIVALS[rival](chain)
    tx = optax.with_extra_args_support(wrapped)
    first, data = jax.random.split(key)
    params, extra = loop.init(first)

    def step(carry: Tree, given: tuple[Fault, jax.Array]) -> tuple[Tree, Tree]:
        params, extra, state = carry
        fault, key = given
        batch = broken(loop.draw(key, params), fault)
        (loss, new), gradient = jax.value_and_grad(loop.loss, has_aux=True)(params, extra, batch)
        bad = jnp.where(fault.infinite > 0, jnp.inf, 0.0)
        gradient = jax.tree.map(lambda g: g + bad, gradient)
        measured = {"metrics": loop.measure(params, batch)} if guarded else {}
        updates, state = tx.update(
            gradient, corrupted(state, fault), params, loss=loss, rate=fault.rate, **measured
        )
        refused, held = refused_by(state), jnp.bool_(False)
        if guarded:
            new, held = host.unless_refused(state, new=new, old=extra), rule_holds(state)
        return (optax.apply_updates(params, updates), new, state), (refused, held)

    steps = len(fault.gain)
    keys = jax.random.split(data, steps)
    (params, extra, _), (refused, held) = jax.lax.scan(
        step, (params, extra, tx.init(params)), (fault, keys)
    )
    return params, extra, refused, loop.test(params, extra), held


def run_rivals(loop: str, steps: int, at: int, seeds: int) -> dict[str, dict[str, list[Figures]]]:
    """Figures by fault and protection, for each seed."""
    cases = faults(steps, at)
    stacked = jax.tree.map(lambda *arrays: jnp.stack(arrays), *cases.values())
    keys = jnp.stack([jax.random.key(seed) for seed in range(seeds)])
    found: dict[str, dict[str, list[Figures]]] = {name: {} for name in cases}
    for rival in (*RIVALS, "guarded"):
        many = jax.vmap(jax.vmap(partial(run, loop, rival), (None, 0)), (0, None))
        _, _, refused, loss, _ = jax.device_get(many(stacked, keys))
        for index, name in enumerate(cases):
            found[name][rival] = [
                Figures(np.flatnonzero(refused[index, seed]).tolist(), float(loss[index, seed]))
                for seed in range(seeds)
            ]
    return found


def healthy_steps(loop: str, steps: int, seeds: int) -> dict[str, int]:
    """What `host.guarded` refuses in runs without a fault, and where a rule held; as one scan."""
    fault = faults(steps, steps)["none"]
    found = {"steps": steps * seeds, "refused": 0, "rules held": 0}
    for seed in range(200, 200 + seeds):
        run_at = run(loop, "guarded", fault, jax.random.key(seed))
        _, _, refused, _, held = jax.device_get(run_at)
        found["refused"] += int(refused.sum())
        found["rules held"] += int(held.sum())
    return found
