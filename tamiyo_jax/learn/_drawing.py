"""Decisions drawn from the outputs of the policy's network, and how probable each is.

An action is drawn from the softmax of its legal logits, the seed and the blueprint that it takes
from those of their scores, and a change of the learning rate from a normal distribution around
the one that the network answers.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from tamiyo_jax.learn._environment import EnvAction
from tamiyo_jax.learn._fitting import mask
from tamiyo_jax.policy import Action, Legality, PolicyOutputs

__all__ = ["draw_action", "log_probability"]


def draw_action(
    key: jax.Array, outputs: PolicyOutputs, legality: Legality, spread: jax.typing.ArrayLike
) -> EnvAction:
    """A legal action; its change of the learning rate may lie outside [-1, 1].

    Args:
      key: consumed.
      outputs: of the network, for one graph.
      legality: of the state.
      spread: f32[], standard deviation of a change of the learning rate.
    """
    for_action, for_seed, for_blueprint, for_delta = jax.random.split(key, 4)
    logits = mask(outputs.policy_logits, legality.actions)
    action = jax.random.categorical(for_action, logits).astype(jnp.int32)
    seeds, blueprints = _taken(outputs, legality, action)
    seed = jax.random.categorical(for_seed, mask(outputs.seed_scores, seeds))
    blueprint = jax.random.categorical(for_blueprint, mask(outputs.blueprint_scores, blueprints))
    delta = outputs.param_delta + spread * jax.random.normal(for_delta, ())
    return EnvAction(
        action,
        jnp.where(jnp.any(seeds), seed, -1).astype(jnp.int32),
        jnp.where(jnp.any(blueprints), blueprint, -1).astype(jnp.int32),
        jnp.asarray(delta, jnp.float32),
    )


def log_probability(
    outputs: PolicyOutputs,
    legality: Legality,
    action: EnvAction,
    spread: jax.typing.ArrayLike,
) -> jax.Array:
    """f32[], of drawing the action; a normal density, up to a constant, for a change of the rate.

    Args:
      outputs: of the network, for one graph.
      legality: of the state.
      action: a legal action.
      spread: f32[], standard deviation of a change of the learning rate.
    """
    seeds, blueprints = _taken(outputs, legality, action.action)
    total = jax.nn.log_softmax(mask(outputs.policy_logits, legality.actions))[action.action]
    for scores, rows, row in (
        (outputs.seed_scores, seeds, action.seed),
        (outputs.blueprint_scores, blueprints, action.blueprint),
    ):
        log = jax.nn.log_softmax(mask(scores, rows))[jnp.maximum(row, 0)]
        total = total + jnp.where(jnp.any(rows), log, 0)
    away = (action.lr_delta - outputs.param_delta) / spread
    return total - jnp.where(action.action == Action.OPTIMIZER, away**2 / 2, 0)


def _taken(
    outputs: PolicyOutputs, legality: Legality, action: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Which seeds and which blueprints an action may take; none where it takes none."""
    seeds = jnp.asarray(legality.seeds)[action] & jnp.isfinite(outputs.seed_scores)
    grows = action == Action.GERMINATE
    offered = jnp.asarray(legality.blueprints) & jnp.isfinite(outputs.blueprint_scores)
    return seeds, offered & grows
