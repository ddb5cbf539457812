"""Training a host and its seeds: one step, and the contribution of each seed.

Host and seeds share a forward pass and nothing else. The host's optimiser sees the host's
gradient alone; each slot has an optimiser state, a step count and a gradient clipping of its
own, which rest while its seed does not learn. So a seed that is culled before it blends
leaves the host where it would have been without it, to rounding: XLA compiles the programs with it
and without it apart, and may add in another order.

A slot in which nothing grows has no parameters, and a grown one those of its seed alone. The
structure of the state's tree says so when a step is traced: what is not there is not computed,
and a `jax.jit` of the step has a program for every structure that it meets.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float32, Int32, PRNGKeyArray, UInt32

from tamiyo_jax.contracts import SeedStage
from tamiyo_jax.errors import ConfigurationError
from tamiyo_jax.growth import Gate, SlotState, Timing, dormant, is_live, tick
from tamiyo_jax.host._monitor import Statistics, statistics

__all__ = [
    "Host",
    "HostState",
    "Slot",
    "StepMetrics",
    "contribution",
    "gates_of",
    "init_host",
    "loss_of",
    "seeds_of",
    "train_step",
]

Params = Any
Batch = Any
Seeds = Mapping[str, Params]
Gates = Mapping[str, Gate]
Loss = Callable[[Params, Seeds, Gates, Batch], jax.Array]


@dataclass(frozen=True, slots=True)
class Host:
    """What a host is made of; static, while `HostState` is what training changes.

    Attributes:
      loss: ``(params, seeds, gates, batch) -> f32[]``; seeds and gates by slot id. The seeds
        of a slot are `Slot.params`.
      optimizer: updates the host's parameters; wrapped by `monitor`.
      seed_optimizer: updates one slot's seed; each slot has its own state of it.
      init_seeds: ``key -> seeds``: fresh parameters of every candidate of every slot. It is
        traced, and no more of it is computed than the candidate that is to grow.
      timing: what the host times itself.
      parameter_budget: most live parameters that growth may reach; None is no limit.
    """

    loss: Loss
    optimizer: optax.GradientTransformationExtraArgs
    seed_optimizer: optax.GradientTransformation
    init_seeds: Callable[[jax.Array], Seeds]
    timing: Timing
    parameter_budget: int | None = None


class Slot(NamedTuple):
    """One slot.

    Attributes:
      state: where its seed is in its life.
      params: the seed's parameters by its blueprint id; empty where nothing grows.
      opt_state: of the slot's own optimiser; ``()`` where nothing grows.
    """

    state: SlotState
    params: Mapping[str, Params]
    opt_state: optax.OptState


class HostState(NamedTuple):
    """All that training changes; a pytree of arrays, so any checkpointer can hold it.

    Attributes:
      params: the host's parameters.
      opt_state: the host's optimiser state.
      slots: `Slot` by slot id.
      rng: u32[2], key of the run (`jax.random.PRNGKey`, which checkpoints as any array does);
        never split, only folded with the step.
      step: i32[], optimiser steps done.
      paused: bool[], a PAUSE holds: alpha and seeds stand still, the host trains on.
      breaker_open: bool[], the host's adaptation breaker is open: the same, until it closes.
    """

    params: Params
    opt_state: optax.OptState
    slots: dict[str, Slot]
    rng: UInt32[Array, "2"]
    step: Int32[Array, ""]
    paused: Bool[Array, ""]
    breaker_open: Bool[Array, ""]


class StepMetrics(NamedTuple):
    """Outputs of a train step, to be read by the host one step late.

    Attributes:
      loss: f32[], before the update.
      seed_gradient_norms: f32[] by slot id; 0 where the seed does not learn.
      statistics: of the host's layers.
    """

    loss: Float32[Array, ""]
    seed_gradient_norms: dict[str, Float32[Array, ""]]
    statistics: Statistics


def init_host(host: Host, params: Params, key: PRNGKeyArray) -> HostState:
    """State before the first step, all slots dormant.

    Args:
      host: what to train.
      params: the host's initial parameters.
      key: key of the run, of either kind: `jax.random.key` or `jax.random.PRNGKey`. The state
        holds its data, and `host.init_seeds` is given that.

    Raises:
      ConfigurationError: a `jax.random.key` of another generator than JAX's default one, which
        its data alone could not bring back.
    """
    key = _key_data(key)
    slots = {name: Slot(dormant(), {}, ()) for name in jax.eval_shape(host.init_seeds, key)}
    return HostState(
        params=params,
        opt_state=host.optimizer.init(params),
        slots=slots,
        rng=key,
        step=jnp.int32(0),
        paused=jnp.bool_(False),
        breaker_open=jnp.bool_(False),
    )


def _key_data(key: jax.Array) -> jax.Array:
    """u32[2], a key as `jax.random.PRNGKey` makes it."""
    if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        return key
    made, default = jax.random.key_impl(key), jax.random.key_impl(jax.random.key(0))
    if made != default:
        raise ConfigurationError(
            f"key is of the generator {made}, and JAX's default is {default}; make it with "
            "jax.random.key(seed), or set jax_default_prng_impl",
            key=made,
        )
    return jax.random.key_data(key)


def gates_of(slots: Mapping[str, Slot]) -> dict[str, Gate]:
    """Each slot's gate, by slot id."""
    return {name: Gate(slot.state.alpha) for name, slot in slots.items()}


def seeds_of(slots: Mapping[str, Slot]) -> dict[str, Params]:
    """Each slot's seed, by slot id."""
    return {name: slot.params for name, slot in slots.items()}


def loss_of(host: Host, state: HostState, batch: Batch) -> Float32[Array, ""]:
    """f32[]: the loss of the network as it is now."""
    return host.loss(state.params, seeds_of(state.slots), gates_of(state.slots), batch)


def train_step(host: Host, state: HostState, batch: Batch) -> tuple[HostState, StepMetrics]:
    """One optimiser step of the host and of every seed that learns.

    A seed in TRAINING learns on a second loss, computed with its alpha at 1 and everything
    else held constant; from BLENDING on it learns on the host's loss.

    Args:
      host: what to train.
      state: where it is.
      batch: what `host.loss` takes.

    Returns:
      The next state, and the step's metrics.
    """
    seeds = seeds_of(state.slots)
    gates = gates_of(state.slots)
    loss, (gradient, seed_gradients) = jax.value_and_grad(host.loss, argnums=(0, 1))(
        state.params, seeds, gates, batch
    )
    updates, opt_state = host.optimizer.update(gradient, state.opt_state, state.params, loss=loss)
    own = _seed_gradients(host.loss, state, seed_gradients, batch)
    moving = ~(state.paused | state.breaker_open)
    slots: dict[str, Slot] = {}
    norms: dict[str, jax.Array] = {}
    for name, slot in state.slots.items():
        learns = is_live(slot.state.stage) & moving
        norms[name] = jnp.where(learns, optax.tree.norm(own[name]), jnp.float32(0))
        ticked = _where(moving, tick(slot.state, host.timing), slot.state)
        slots[name] = _learn(host.seed_optimizer, slot, own[name], learns)._replace(state=ticked)
    following = state._replace(
        params=optax.apply_updates(state.params, updates),
        opt_state=opt_state,
        slots=slots,
        step=state.step + 1,
    )
    return following, StepMetrics(loss, norms, statistics(opt_state))


def _seed_gradients(loss: Loss, state: HostState, joint: Seeds, batch: Batch) -> Seeds:
    """Each seed's gradient: of its second loss where it is TRAINING, else its share of `joint`.

    A scan, so that the second loss is compiled once however many seeds there are.
    """
    names = _list_grown(state.slots)
    if not names:
        return joint
    seeds = seeds_of(state.slots)
    gates = gates_of(state.slots)
    stages = jnp.stack([state.slots[name].state.stage for name in names])

    def one(gradients: Seeds, index: jax.Array) -> tuple[Seeds, None]:
        def second() -> Seeds:
            opened = dict(gates)
            for i, name in enumerate(names):
                alpha = jnp.where(index == i, 1, gates[name].alpha)
                opened[name] = gates[name]._replace(alpha=alpha)
            found = jax.grad(loss, argnums=1)(state.params, seeds, opened, batch)
            chosen = dict(gradients)
            for i, name in enumerate(names):
                chosen[name] = _where(index == i, found[name], gradients[name])
            return chosen

        training = stages[index] == SeedStage.TRAINING
        return jax.lax.cond(training, second, lambda: gradients), None

    return jax.lax.scan(one, dict(joint), jnp.arange(len(names)))[0]


def _learn(
    optimizer: optax.GradientTransformation, slot: Slot, gradient: Params, learns: jax.Array
) -> Slot:
    """Update the slot's seed where `learns`; the gradient is zero where not, weight decay is."""
    if not slot.params:
        return slot
    updates, opt_state = optimizer.update(gradient, slot.opt_state, slot.params)
    updated: Any = optax.apply_updates(slot.params, updates)
    return Slot(
        slot.state,
        _where(learns, updated, slot.params),
        _where(learns, opt_state, slot.opt_state),
    )


def _list_grown(slots: Mapping[str, Slot]) -> list[str]:
    return sorted(name for name, slot in slots.items() if slot.params)


def _where(condition: jax.Array, new: Params, old: Params) -> Params:
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), new, old)


def contribution(
    loss: Loss, params: Params, slots: Mapping[str, Slot], batch: Batch
) -> dict[str, Float32[Array, ""]]:
    """The contribution of each slot's seed: the loss with it off (α = 0) minus on (α = 1).

    The other slots stay as they are, so one of the two is the network's own loss, computed once
    for all, except while the seed blends in.

    Args:
      loss: as in `Host`.
      params: the host's parameters.
      slots: the slots by id.
      batch: usually the validation set.

    Returns:
      f32[] by slot id; positive where the seed helps, 0 where nothing grows.
    """
    nothing = {name: jnp.float32(0) for name in slots}
    names = _list_grown(slots)
    if not names:
        return nothing
    seeds = seeds_of(slots)
    gates = gates_of(slots)
    as_is = jnp.stack([gates[name].alpha for name in names])

    def measured(alphas: jax.Array) -> jax.Array:
        varied = {name: gates[name]._replace(alpha=alphas[i]) for i, name in enumerate(names)}
        return loss(params, seeds, {**gates, **varied}, batch)

    own = loss(params, seeds, gates, batch)

    def one(index: jax.Array) -> jax.Array:
        def at(alpha: int) -> jax.Array:
            there = as_is[index] == alpha
            return jax.lax.cond(there, lambda: own, lambda: measured(as_is.at[index].set(alpha)))

        return at(0) - at(1)

    found = jax.lax.map(one, jnp.arange(len(names)))
    return nothing | {name: found[i] for i, name in enumerate(names)}
