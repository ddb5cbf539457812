"""Runs of the five loops with `Plug` on guard, step by step, with and without a fault.

`guard_matrix.py` makes tables of them. A fault befalls a step of the run, not a batch of the
data: read again after a rollback, a batch is sound. All runs take the same number of steps, so
what is rolled back or refused is lost.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from guard_faults import Fault, broken, corrupted, scale_by_given
from guard_loops import LOOPS

from tamiyo_jax import Plug, host

Tree = Any
LATE_S, LATE_BATCHES = 0.2, 10


class Run(NamedTuple):
    """A run at its end.

    Attributes:
      state: parameters, what else the model holds, and the optimiser's state.
      refused: bool[T], steps that were not applied.
      said: what Plug logged, by step.
      undone: steps that were rolled back.
      loss: held-out, at the end.
      early: the state after `early` steps.
    """

    state: Tree
    refused: np.ndarray
    said: list[tuple[int, str]]
    undone: int
    loss: float
    early: Tree

    def interventions(self) -> list[int]:
        """The steps at which something was refused or commanded; a released brake is none."""
        acts = [
            step
            for step, line in self.said
            if ("ROLLBACK" in line or "OPTIMIZER" in line) and "brake_released" not in line
        ]
        return sorted([*acts, *np.flatnonzero(self.refused).tolist()])


@cache
def step_of(
    loop_name: str, guarded: bool, clips: bool
) -> Callable[..., tuple[Tree, jax.Array, jax.Array]]:
    """The step of a loop, of two jitted programs that are compiled once: gradient and update.

    In one program XLA may compute the gradient itself otherwise where it is also measured: in
    the small GPT the last bits then differ, under `host.monitor` too.
    """
    loop = LOOPS[loop_name]
    tx = optimizer_of(loop_name, guarded, clips)

    @jax.jit
    def grade(params: Tree, extra: Tree, row: jax.Array, key: jax.Array) -> Tree:
        fault = Fault(*row)
        batch = broken(loop.draw(key, params), fault)
        found = jax.value_and_grad(loop.loss, has_aux=True)(params, extra, batch)
        (loss, new), gradient = found
        bad = jnp.where(fault.infinite > 0, jnp.inf, 0.0)
        return loss, new, jax.tree.map(lambda g: g + bad, gradient), loop.measure(params, batch)

    @partial(jax.jit, donate_argnums=0)
    def apply(
        state: Tree, new: Tree, gradient: Tree, loss: jax.Array, row: jax.Array, measured: Tree
    ) -> tuple[Tree, jax.Array]:
        params, extra, opt_state = state
        fault = Fault(*row)
        given = {"metrics": measured} if guarded else {}
        updates, opt_state = tx.update(
            gradient, corrupted(opt_state, fault), params, loss=loss, rate=fault.rate, **given
        )
        refused = jnp.bool_(False)
        if guarded:
            refused = host.statistics(opt_state).refusals.refused
            new = host.unless_refused(opt_state, new=new, old=extra)
        return (optax.apply_updates(params, updates), new, opt_state), refused

    def step(state: Tree, row: jax.Array, key: jax.Array) -> tuple[Tree, jax.Array, jax.Array]:
        loss, new, gradient, measured = grade(*state[:2], row, key)
        state, refused = apply(state, new, gradient, loss, row, measured)
        return state, loss, refused

    return step


def optimizer_of(
    loop_name: str, guarded: bool, clips: bool
) -> optax.GradientTransformationExtraArgs:
    """Adam, behind clipping to a norm of 1 or not, and what Tamiyo needs."""
    adam = optax.adam(LOOPS[loop_name].rate)
    clipped = optax.chain(optax.clip_by_global_norm(1.0), adam) if clips else adam
    chain = optax.chain(clipped, scale_by_given(), host.tamiyo_scale())
    if not guarded:
        return optax.with_extra_args_support(chain)
    return host.guarded(chain, metrics=LOOPS[loop_name].watched)


def train(
    loop_name: str,
    fault: Fault,
    seed: int,
    *,
    every: int | None,
    late_from: int | None = None,
    early: int | None = None,
    clips: bool = False,
) -> Run:
    """A run over the steps of the fault.

    Args:
      loop_name: one of `LOOPS`.
      fault: f32[T] each.
      seed: of the parameters and of the data.
      every: as for `Plug`; None trains plainly, without a guard.
      late_from: the step from which ten batches are late.
      early: also keep the state after so many steps.
      clips: whether the loop clips its gradients to a norm of 1, with or without a guard.
    """
    loop = LOOPS[loop_name]
    rows = np.stack([np.asarray(part, np.float32) for part in fault], 1)
    first, data = jax.random.split(jax.random.key(seed))
    params, extra = jax.jit(loop.init)(first)
    keys = list(jax.random.split(data, len(rows)))
    state = (params, extra, optimizer_of(loop_name, every is not None, clips).init(params))
    step = step_of(loop_name, every is not None, clips)
    said: list[tuple[int, str]] = []
    refused: list[jax.Array] = []
    kept, undone, taken = None, 0, 0
    with tempfile.TemporaryDirectory() as directory:
        tamiyo = None
        if every is not None:
            tamiyo = Plug.open(
                directory,
                params,
                lambda params, batch: loop.loss(params, extra, batch)[0],
                jax.eval_shape(loop.draw, keys[0], params),
                mode="guard",
                every=every,
                log=lambda line: said.append((taken, line)),
            )

        def read(position: int) -> Iterator[jax.Array]:
            for key in keys[position:]:
                if late_from is not None and late_from <= taken < late_from + LATE_BATCHES:
                    time.sleep(LATE_S)
                yield key

        batches = read(0) if tamiyo is None else tamiyo.batches(read)
        for row, key in zip(rows, batches, strict=False):
            state, loss, was_refused = step(state, row, key)
            refused.append(was_refused)
            if tamiyo is not None:
                state = tamiyo(state, loss)
                undone += tamiyo.undone_steps
            taken += 1
            if taken == early:
                kept = jax.device_get(state[:2])
        if tamiyo is not None:
            tamiyo.close()
    return Run(
        jax.device_get(state[:2]),
        np.array(jax.device_get(refused)),
        said,
        undone,
        float(loop.test(state[0], state[1])),
        kept,
    )
