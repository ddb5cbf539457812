"""How much a candidate would learn, before it is grown.

At the point where a candidate adds nothing yet, the gradient of its parameters says how fast it
would begin to lower the loss (GradMax, Evci et al. 2022, §3: of two growths take the one whose
new weights have the larger gradient). All candidates of all dormant slots are compared in one
forward and backward pass, which leaves the output as it is.

The norm is given as a multiple of that of the network's own gradient on the same batch: at 1 the
candidate would lower the loss as fast as the whole network does, whatever the scale of the loss
(compare the expansion score of Mitchell et al. 2023, §3). It is the norm of the whole gradient, so
a larger candidate has the advantage that it will have in training. Divided by the number of
parameters it would prefer the smallest: on MNIST-1D a normalisation of 16 parameters to a
perceptron of 552, which is what the network lacks.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import optax
from jaxtyping import Array, Float32

from tamiyo_jax.host._measuring import divide
from tamiyo_jax.host._training import Batch, Host, HostState, gates_of, seeds_of

__all__ = ["probe"]

Ratios = dict[str, dict[str, Float32[Array, ""]]]


def probe(host: Host, state: HostState, batch: Batch) -> Ratios:
    """The norm of each candidate's gradient, as a multiple of the network's own.

    Call it outside `jit`: it compiles a program that makes the candidates, once for a host, and
    one that compares them, for each structure of the state.

    Args:
      host: what is trained.
      state: where it is.
      batch: what `host.loss` takes.

    Returns:
      f32[] by slot id and blueprint id, for the slots in which nothing grows; 0 where the
      network's own gradient is 0.
    """
    if all(slot.params for slot in state.slots.values()):
        return {}
    return _compare(host, state, _make_candidates(host, state.rng, state.step), batch)


@partial(jax.jit, static_argnums=0)
def _make_candidates(host: Host, key: jax.Array, step: jax.Array) -> Any:  # noqa: ANN401
    return host.init_seeds(jax.random.fold_in(key, step))


@partial(jax.jit, static_argnums=0)
def _compare(host: Host, state: HostState, bank: Any, batch: Batch) -> Ratios:  # noqa: ANN401
    empty = [name for name, slot in state.slots.items() if not slot.params]
    seeds = seeds_of(state.slots) | {name: bank[name] for name in empty}
    own, new = jax.grad(host.loss, argnums=(0, 1))(
        state.params, seeds, gates_of(state.slots), batch
    )
    whole = optax.tree.norm(own)
    return {
        name: {one: divide(optax.tree.norm(tree), whole) for one, tree in new[name].items()}
        for name in empty
    }
