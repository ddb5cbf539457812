"""Training a host and its seeds: one step, and what each seed is worth.

Host and seeds share a forward pass and nothing else. The host's optimiser sees the host's
gradient alone; each slot has an optimiser state, a step count and a gradient clipping of its
own, which rest while its seed does not learn. So a seed that is culled before it blends
leaves the host bit for bit where it would have been without it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from tamiyo_jax.contracts.packet import SeedStage
from tamiyo_jax.errors import ConfigurationError
from tamiyo_jax.host.monitor import Statistics, statistics
from tamiyo_jax.host.seeds import SlotState, Timing, dormant, is_live, tick
from tamiyo_jax.host.slot import Gate

__all__ = [
    "Host",
    "HostState",
    "Slot",
    "StepMetrics",
    "contribution",
    "gates_of",
    "init_host",
    "loss_of",
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
      loss: ``(params, seeds, gates, batch) -> f32[]``; seeds and gates by slot id.
      optimizer: updates the host's parameters; wrapped by `monitor`.
      seed_optimizer: updates one slot's bank; each slot has its own state of it.
      init_seeds: ``key -> seeds``: fresh bank parameters of every slot.
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
    """One slot: its state, every candidate's parameters, and its own optimiser's state."""

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
    rng: jax.Array
    step: jax.Array
    paused: jax.Array
    breaker_open: jax.Array


class StepMetrics(NamedTuple):
    """Outputs of a train step, to be read by the host one step late.

    Attributes:
      loss: f32[], before the update.
      seed_gradient_norms: f32[] by slot id; 0 where the seed does not learn.
      statistics: of the host's layers.
    """

    loss: jax.Array
    seed_gradient_norms: dict[str, jax.Array]
    statistics: Statistics


def init_host(host: Host, params: Params, key: jax.Array) -> HostState:
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
    seeds = host.init_seeds(key)
    slots = {
        name: Slot(dormant(), bank, host.seed_optimizer.init(bank)) for name, bank in seeds.items()
    }
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
    return {name: Gate(slot.state.alpha, slot.state.blueprint) for name, slot in slots.items()}


def loss_of(host: Host, state: HostState, batch: Batch) -> jax.Array:
    """f32[]: the loss of the network as it is now."""
    seeds = {name: slot.params for name, slot in state.slots.items()}
    return host.loss(state.params, seeds, gates_of(state.slots), batch)


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
    seeds = {name: slot.params for name, slot in state.slots.items()}
    gates = gates_of(state.slots)
    loss, (gradient, seed_gradients) = jax.value_and_grad(host.loss, argnums=(0, 1))(
        state.params, seeds, gates, batch
    )
    updates, opt_state = host.optimizer.update(gradient, state.opt_state, state.params)
    own = _seed_gradients(host.loss, state, seed_gradients, batch)
    moving = ~(state.paused | state.breaker_open)
    slots: dict[str, Slot] = {}
    norms: dict[str, jax.Array] = {}
    for name, slot in state.slots.items():
        learns = is_live(slot.state.stage) & moving
        norms[name] = jnp.where(learns, optax.tree.norm(own[name]), jnp.float32(0))
        slots[name] = _learn(host.seed_optimizer, slot, own[name], learns)
    following = state._replace(
        params=optax.apply_updates(state.params, updates),
        opt_state=opt_state,
        slots=_pass_time(host, slots, moving, jax.random.fold_in(state.rng, state.step)),
        step=state.step + 1,
    )
    return following, StepMetrics(loss, norms, statistics(opt_state))


def _seed_gradients(loss: Loss, state: HostState, joint: Seeds, batch: Batch) -> Seeds:
    """Each slot's gradient: of its second loss where it is TRAINING, else its share of `joint`.

    A scan, so that the second loss is compiled once however many slots there are.
    """
    names = sorted(state.slots)
    if not names:
        return joint
    seeds = {name: slot.params for name, slot in state.slots.items()}
    gates = gates_of(state.slots)
    stages = jnp.stack([state.slots[name].state.stage for name in names])

    def one(gradients: Seeds, index: jax.Array) -> tuple[Seeds, None]:
        def second() -> Seeds:
            opened = {
                name: gates[name]._replace(alpha=jnp.where(index == i, 1, gates[name].alpha))
                for i, name in enumerate(names)
            }
            found = jax.grad(loss, argnums=1)(state.params, seeds, opened, batch)
            return {
                name: _where(index == i, found[name], gradients[name])
                for i, name in enumerate(names)
            }

        training = stages[index] == SeedStage.TRAINING
        return jax.lax.cond(training, second, lambda: gradients), None

    return jax.lax.scan(one, dict(joint), jnp.arange(len(names)))[0]


def _learn(
    optimizer: optax.GradientTransformation, slot: Slot, gradient: Params, learns: jax.Array
) -> Slot:
    """Update the chosen candidate where `learns`; the rest of the bank never moves.

    The gradient of the others is zero, but weight decay would reach them.
    """
    updates, opt_state = optimizer.update(gradient, slot.opt_state, slot.params)
    updated: Any = optax.apply_updates(slot.params, updates)
    params = {
        name: _where(learns & (slot.state.blueprint == index), updated[name], slot.params[name])
        for index, name in enumerate(sorted(slot.params))
    }
    return Slot(slot.state, params, _where(learns, opt_state, slot.opt_state))


def _pass_time(
    host: Host, slots: Mapping[str, Slot], moving: jax.Array, key: jax.Array
) -> dict[str, Slot]:
    """Advance the slots' clocks; a seed that comes home from RESETTING is made anew."""
    states = {
        name: _where(moving, tick(slot.state, host.timing), slot.state)
        for name, slot in slots.items()
    }
    home = {
        name: (slot.state.stage == SeedStage.RESETTING) & (states[name].stage == SeedStage.DORMANT)
        for name, slot in slots.items()
    }
    current = {name: slot.params for name, slot in slots.items()}
    any_home = functools.reduce(jnp.logical_or, home.values(), jnp.bool_(False))
    fresh = jax.lax.cond(any_home, lambda: dict(host.init_seeds(key)), lambda: current)
    return {
        name: Slot(
            states[name],
            _where(home[name], fresh[name], slot.params),
            _where(home[name], host.seed_optimizer.init(fresh[name]), slot.opt_state),
        )
        for name, slot in slots.items()
    }


def _where(condition: jax.Array, new: Params, old: Params) -> Params:
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), new, old)


def contribution(
    loss: Loss, params: Params, slots: Mapping[str, Slot], batch: Batch
) -> dict[str, jax.Array]:
    """What each slot's seed is worth: the loss with it off (α = 0) minus on (α = 1).

    The other slots stay as they are. All slots are measured in one vmapped pass.

    Args:
      loss: as in `Host`.
      params: the host's parameters.
      slots: the slots by id.
      batch: usually the validation set.

    Returns:
      f32[] by slot id; positive where the seed helps, meaningless for a dormant one.
    """
    names = sorted(slots)
    if not names:
        return {}
    seeds = {name: slot.params for name, slot in slots.items()}
    gates = gates_of(slots)
    alphas = jnp.stack([gates[name].alpha for name in names])
    here = jnp.eye(len(names), dtype=bool)
    as_is = jnp.tile(alphas[None, :], (len(names), 1))
    rows = jnp.concatenate([jnp.where(here, 0, as_is), jnp.where(here, 1, as_is)])

    def measured(row: jax.Array) -> jax.Array:
        varied = {name: gates[name]._replace(alpha=row[i]) for i, name in enumerate(names)}
        return loss(params, seeds, varied, batch)

    off, on = jnp.split(jax.vmap(measured)(rows), 2)
    return {name: off[i] - on[i] for i, name in enumerate(names)}
