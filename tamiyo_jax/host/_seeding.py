"""What an operation does to a slot: the stage of its seed, and parameters that come and go."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp

from tamiyo_jax.contracts import SeedOperation
from tamiyo_jax.errors import ConfigurationError
from tamiyo_jax.growth import transition
from tamiyo_jax.host._training import Host, HostState, Slot

__all__ = ["banks_of", "operate", "seed_shapes"]

Params = Any


@lru_cache(maxsize=64)
def banks_of(host: Host) -> Mapping[str, Mapping[str, Params]]:
    """Shapes of every candidate's parameters, by slot id and blueprint id; nothing is computed."""
    return jax.eval_shape(host.init_seeds, jax.random.PRNGKey(0))


def operate(
    host: Host,
    state: HostState,
    name: str,
    operation: SeedOperation,
    *,
    blueprint_id: str | None = None,
) -> HostState:
    """The host after an operation on one of its slots.

    GERMINATE makes the seed's parameters and its optimiser's state, from the run's key and the
    step; CULL lets go of them. The other operations move the stage alone.

    Args:
      host: what is trained.
      state: where it is, concrete; call this outside `jit`.
      name: of the slot.
      operation: what to do.
      blueprint_id: of the candidate that GERMINATE grows.

    Raises:
      IllegalTransitionError: the seed's stage does not take the operation.
      ConfigurationError: the slot has no such candidate.
    """
    slot = state.slots[name]
    slot = slot._replace(state=transition(slot.state, operation))
    if operation is SeedOperation.GERMINATE:
        bank = banks_of(host)[name]
        if blueprint_id is None or blueprint_id not in bank:
            raise ConfigurationError(
                f"blueprint {blueprint_id!r} is not in the bank of slot {name!r}: {sorted(bank)}",
                blueprint_id=blueprint_id,
            )
        chosen = slot.state._replace(blueprint=jnp.int32(sorted(bank).index(blueprint_id)))
        params, opt_state = _fresh(host, name, blueprint_id, state.rng, state.step)
        slot = Slot(chosen, params, opt_state)
    elif operation is SeedOperation.CULL:
        slot = Slot(slot.state, {}, ())
    return state._replace(slots={**state.slots, name: slot})


def seed_shapes(host: Host, name: str, blueprint_id: str) -> tuple[Params, Params]:
    """Shapes of `Slot.params` and `Slot.opt_state` with that candidate in the slot."""
    key = jax.random.PRNGKey(0)
    return jax.eval_shape(partial(_fresh, host, name, blueprint_id), key, jnp.int32(0))


@partial(jax.jit, static_argnums=(0, 1, 2))
def _fresh(
    host: Host, name: str, blueprint_id: str, key: jax.Array, step: jax.Array
) -> tuple[Params, Params]:
    """A candidate's parameters and its optimiser's state; XLA drops the rest of the bank."""
    bank = host.init_seeds(jax.random.fold_in(key, step))[name]
    params = {blueprint_id: bank[blueprint_id]}
    return params, host.seed_optimizer.init(params)
