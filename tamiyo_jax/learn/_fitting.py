"""Fitting the policy's network to targets: what cloning, weighted regression and branching share.

A target is a distribution over actions, and over the rows that the chosen action takes. The loss
is the cross-entropy of the legal logits, of the seed and blueprint scores where they decide
something, and of the risk classes; the squared error of the value and of the learning-rate
change; and keeps the blend at the whole linear one, the only one that the targets were made with.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax

from tamiyo_jax.graph import GraphLayout, GraphsTuple
from tamiyo_jax.policy import Legality, Params, PolicyOutputs, apply

__all__ = [
    "CLIP",
    "Examples",
    "FitSettings",
    "Loss",
    "Targets",
    "fit",
    "fit_loss",
    "mask",
    "outputs_of",
    "side_losses",
]

BLEND_WEIGHT = 0.05
VALUE_WEIGHT = 0.1
RISK_WEIGHT = 0.1
LINEAR = 0
WHOLE_BLEND = (-1.0, 1.0)  # the schedule from 0 to 1, in the units of the head
CLIP = 1.0


class Targets(NamedTuple):
    """What the network is to answer to T graphs.

    Attributes:
      action: f32[T, 32], a distribution over legal actions.
      seed: f32[T, S], a distribution over seeds; zeros where no seed is taken.
      blueprint: f32[T, B], likewise.
      lr_delta: f32[T] in [-1, 1].
      turns: f32[T], weight of `lr_delta`; 0 where the learning rate is not changed.
      value: f32[T], the return from here on.
      risk: i32[T], class of what the loss did next, 0 to 4; see `risk_class`.
      weight: f32[T], of the example.
    """

    action: jax.Array
    seed: jax.Array
    blueprint: jax.Array
    lr_delta: jax.Array
    turns: jax.Array
    value: jax.Array
    risk: jax.Array
    weight: jax.Array


class FitSettings(NamedTuple):
    """How to fit.

    Attributes:
      updates: optimiser steps.
      batch_size: graphs in each.
      learning_rate: at the start; it falls to zero with a cosine.
      weight_decay: of AdamW.
    """

    updates: int = 1500
    batch_size: int = 128
    learning_rate: float = 3e-3
    weight_decay: float = 1e-3


Examples = tuple[GraphsTuple, Legality, Any]
"""Graphs, their legality and their targets, T of each."""

Loss = Callable[[Params, GraphLayout, Any], jax.Array]


def outputs_of(params: Params, layout: GraphLayout, graphs: GraphsTuple) -> PolicyOutputs:
    """The network's outputs for T graphs."""
    return jax.vmap(partial(apply, params, layout))(graphs)


def mask(scores: jax.typing.ArrayLike, legal: jax.typing.ArrayLike) -> jax.Array:
    """The scores, so low where they are not legal that the softmax is 0 there."""
    return jnp.where(legal, scores, jnp.float32(-1e9))


def _masked_cross_entropy(
    logits: jax.typing.ArrayLike, legal: jax.typing.ArrayLike, target: jax.Array
) -> jax.Array:
    """f32[T]: −Σ target · log softmax of the legal logits; 0 where the target is zero."""
    logs = jax.nn.log_softmax(mask(logits, legal), axis=-1)
    return -jnp.sum(jnp.where(target > 0, target * logs, 0), axis=-1)


def fit_loss(params: Params, layout: GraphLayout, examples: Examples) -> jax.Array:
    """f32[], the weighted mean of the loss over T examples."""
    graphs, legality, targets = examples
    outputs = outputs_of(params, layout, graphs)
    seeds_exist = jnp.isfinite(outputs.seed_scores)
    blueprints_exist = jnp.isfinite(outputs.blueprint_scores)
    losses = _masked_cross_entropy(outputs.policy_logits, legality.actions, targets.action)
    taken = jnp.any(legality.seeds & (targets.action > 0)[:, :, None], axis=1) & seeds_exist
    losses += _masked_cross_entropy(_real(outputs.seed_scores), taken, targets.seed)
    offered = legality.blueprints & blueprints_exist
    losses += _masked_cross_entropy(_real(outputs.blueprint_scores), offered, targets.blueprint)
    losses += targets.turns * jnp.square(outputs.param_delta - targets.lr_delta)
    losses += VALUE_WEIGHT * jnp.square(outputs.value - targets.value)
    losses += side_losses(outputs, targets.risk)
    return jnp.sum(targets.weight * losses) / jnp.maximum(jnp.sum(targets.weight), 1e-6)


def side_losses(outputs: PolicyOutputs, risk: jax.Array) -> jax.Array:
    """f32[T]: what the risk (its class, i32[T]) and the blend add, whatever is learned."""
    risks = optax.softmax_cross_entropy_with_integer_labels(outputs.risk_logits, risk)
    schedule = jnp.square(outputs.schedule_params - jnp.array([WHOLE_BLEND], jnp.float32))
    method = jnp.full(len(risk), LINEAR, jnp.int32)
    blend = optax.softmax_cross_entropy_with_integer_labels(outputs.blending_logits, method)
    return RISK_WEIGHT * risks + BLEND_WEIGHT * (blend + jnp.sum(schedule, axis=-1))


def _real(scores: jax.typing.ArrayLike) -> jax.Array:
    return jnp.where(jnp.isfinite(scores), scores, 0)


def fit(
    params: Params,
    layout: GraphLayout,
    examples: Examples,
    key: jax.Array,
    settings: FitSettings,
    *,
    loss: Loss,
    on_update: Callable[[int, float], object] | None = None,
) -> Params:
    """Fit the network; the same examples, key and settings give the same parameters, bit for bit.

    Args:
      params: to start from.
      layout: of the graphs.
      examples: graphs, their legality and their targets, T of each.
      key: chooses the batches; consumed.
      settings: how to fit.
      loss: of a batch of examples, such as `fit_loss`.
      on_update: called with the number of updates done and the mean loss since the last call.
    """
    tx = _optimizer(settings)
    state = tx.init(params)
    total = len(jax.tree.leaves(examples)[0])
    some = min(50, settings.updates)
    for start in range(0, settings.updates, some):
        key, now = jax.random.split(key)
        count = min(some, settings.updates - start)
        keys = jax.random.split(now, count)
        rows = jax.vmap(lambda key: jax.random.randint(key, (settings.batch_size,), 0, total))(keys)
        batches = jax.tree.map(lambda x, rows=rows: x[rows], examples)
        params, state, mean = _updates(params, state, layout, batches, loss, tx)
        if on_update is not None:
            on_update(min(start + some, settings.updates), float(mean))
    return params


@lru_cache(maxsize=8)
def _optimizer(settings: FitSettings) -> optax.GradientTransformation:
    """The same object for equal settings, so that what was compiled for it is found."""
    schedule = optax.cosine_decay_schedule(settings.learning_rate, settings.updates)
    return optax.chain(
        optax.clip_by_global_norm(CLIP), optax.adamw(schedule, weight_decay=settings.weight_decay)
    )


@partial(jax.jit, static_argnums=(2, 4, 5))
def _updates(
    params: Params,
    state: Any,  # noqa: ANN401
    layout: GraphLayout,
    batches: Examples,
    loss: Loss,
    tx: optax.GradientTransformation,
) -> tuple[Params, Any, jax.Array]:
    """An optimiser step for each of the batches; one program for any number of examples."""

    def one(carry: tuple[Params, Any], batch: Examples) -> tuple[tuple[Params, Any], Any]:
        params, state = carry
        value, gradient = jax.value_and_grad(loss)(params, layout, batch)
        updates, state = tx.update(gradient, state, cast(Any, params))
        return (cast(Params, optax.apply_updates(cast(Any, params), updates)), state), value

    (params, state), losses = jax.lax.scan(one, (params, state), batches)
    return params, state, jnp.mean(losses)
