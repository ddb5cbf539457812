"""A slot: the place in a network where one of several candidate seeds may grow.

A slot's parameters are those of what has grown in it: none while it is dormant, and then it is
its input, without any arithmetic; those of one candidate afterwards. The rest of the bank is a
specification. `slot_init` and `slot_apply` know no framework; `SeedSlot` is the Linen module
made of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, cast

import flax.linen as nn
import jax
import jax.numpy as jnp

from tamiyo_jax.errors import ConfigurationError
from tamiyo_jax.growth._blending import Blend, BlendMode, apply_gated, mix

__all__ = [
    "Bank",
    "Gate",
    "Seed",
    "SeedSlot",
    "blueprint_ids",
    "linen_seed",
    "slot_apply",
    "slot_init",
    "slot_variables",
]

Params = Any
"""A pytree of arrays."""


class Seed(NamedTuple):
    """A candidate module, from x to something of the same shape and dtype.

    Attributes:
      init: ``(key, x) -> params``.
      apply: ``(params, x) -> y``.
    """

    init: Callable[[jax.Array, jax.Array], Params]
    apply: Callable[[Params, jax.Array], jax.Array]


Bank = Mapping[str, Seed]
"""The candidates of a slot, by blueprint id."""


class Gate(NamedTuple):
    """What a slot must know to compute its output, besides parameters.

    Attributes:
      alpha: f32[], the seed's share; at 0 the slot is an exact identity.
    """

    alpha: jax.Array


def linen_seed(module: nn.Module) -> Seed:
    """A Linen module with parameters only, as a candidate."""
    return Seed(
        init=lambda key, x: module.init(key, x)["params"],
        apply=lambda params, x: cast(jax.Array, module.apply({"params": params}, x)),
    )


def blueprint_ids(bank: Bank) -> tuple[str, ...]:
    """The bank's blueprint ids, sorted; `SlotState.blueprint` counts in this order."""
    return tuple(sorted(bank))


def slot_init(bank: Bank, key: jax.Array, x: jax.Array) -> dict[str, Params]:
    """Allocate every candidate of a bank.

    Args:
      bank: the candidates.
      key: consumed; candidate i draws from ``fold_in(key, i)``.
      x: an example of the slot's input; shape and dtype matter, values do not.

    Returns:
      Parameters by blueprint id.

    Raises:
      ConfigurationError: the bank is empty, or a candidate changes shape or dtype.
    """
    if not bank:
        raise ConfigurationError("the slot's bank is empty; give it at least one seed blueprint")
    params: dict[str, Params] = {}
    for index, blueprint_id in enumerate(blueprint_ids(bank)):
        seed = bank[blueprint_id]
        params[blueprint_id] = seed.init(jax.random.fold_in(key, index), x)
        y = jax.eval_shape(seed.apply, params[blueprint_id], x)
        if (y.shape, y.dtype) != (x.shape, x.dtype):
            raise ConfigurationError(
                f"seed blueprint {blueprint_id!r} maps {x.dtype}{x.shape} to {y.dtype}{y.shape}; "
                "a seed must keep shape and dtype",
                blueprint_id=blueprint_id,
                expected=x.shape,
                actual=y.shape,
            )
    return params


def slot_apply(
    bank: Bank,
    params: Mapping[str, Params],
    gate: Gate,
    x: jax.Array,
    *,
    mode: Blend = BlendMode.RESIDUAL,
) -> jax.Array:
    """The slot's output: x, with the seed that grows in it mixed in by `gate.alpha`.

    Args:
      bank: the candidates.
      params: by blueprint id: of none, of the one that grows, or of all of them, as `slot_init`
        makes them. All are compared: the output is x, and each candidate's gradient what it
        would be if the candidate added nothing yet, and its output were added to x.
      gate: how much of the seed.
      x: the slot's input, any shape.
      mode: how the seed joins.

    Returns:
      An array like x; bit-identical to x at alpha 0, and x itself without parameters.
    """
    if not params:
        return x
    if len(params) > 1:
        # What is compared has no share of the output, so the host's gradient passes it by.
        held = jax.lax.stop_gradient(x)
        outputs = [bank[name].apply(own, held) for name, own in params.items()]
        return sum(map(_silent, outputs), x)
    ((name, _),) = params.items()

    def branch(
        params: Mapping[str, Params], selector: None, alpha: jax.Array, x: jax.Array
    ) -> jax.Array:
        return mix(mode, x, bank[name].apply(params[name], x), alpha)

    return apply_gated(branch, params, None, jnp.asarray(gate.alpha), x)


def _silent(y: jax.Array) -> jax.Array:
    """Zeros that pass y's gradient on."""
    return y - jax.lax.stop_gradient(y)


class SeedSlot(nn.Module):
    """A slot inside a Linen model; reach it from NNX with ``nnx.bridge.ToNNX``.

    The bank's parameters live in the collection ``seeds`` and the gate in ``gates``, both
    read-only in the forward pass, apart from the host's ``params``: nothing that happens to
    a seed can reach the host's optimiser. The slot's id is its path in the model.

    Attributes:
      bank: the candidates.
      mode: how the seed joins.
    """

    bank: Bank
    mode: Blend = BlendMode.RESIDUAL

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map x to an array like it."""
        if not self.is_initializing() and not self.has_variable("seeds", "bank"):
            return x  # NNX leaves out a collection that holds no array
        seeds = self.variable(
            "seeds", "bank", lambda: slot_init(self.bank, self.make_rng("seeds"), x)
        )
        gate = self.variable("gates", "gate", lambda: Gate(jnp.float32(0)))
        return slot_apply(self.bank, seeds.value, gate.value, x, mode=self.mode)


def slot_variables(
    params: Params, seeds: Mapping[str, Params], gates: Mapping[str, Gate]
) -> dict[str, Any]:
    """Variables for ``model.apply`` of a Linen model with a `SeedSlot` under each id.

    Args:
      params: the host's parameters.
      seeds: each slot's bank parameters, by slot id.
      gates: each slot's gate, by slot id.
    """
    return {
        "params": params,
        "seeds": {name: {"bank": bank} for name, bank in seeds.items()},
        "gates": {name: {"gate": gate} for name, gate in gates.items()},
    }
