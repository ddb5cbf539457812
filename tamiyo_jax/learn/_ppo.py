"""Proximal policy optimisation of the policy's network, in the environment.

Runs are played to their end, and nothing is discounted, because growth costs at first and pays
late. Schulman et al. 2017, "Proximal policy optimization algorithms".
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax

from tamiyo_jax.graph import GraphLayout, GraphsTuple, init_normalizer
from tamiyo_jax.learn._branching import FLOOR, Prices
from tamiyo_jax.learn._drawing import draw_action, log_probability
from tamiyo_jax.learn._environment import EnvAction, EnvState, HostEnv
from tamiyo_jax.learn._fitting import CLIP, mask, outputs_of, side_losses
from tamiyo_jax.learn._imitation import RISK_HORIZON, rise_classes
from tamiyo_jax.learn._playing import look
from tamiyo_jax.learn._tasks import Family, TaskData, draw_many
from tamiyo_jax.policy import Action, Legality, Params, apply

__all__ = ["Decisions", "PpoSettings", "advantages_of", "improve", "roll_out"]


class PpoSettings(NamedTuple):
    """How to improve a policy.

    Attributes:
      iterations: of playing and learning.
      tasks: in each of them, all of one architecture.
      group: runs of each task, which differ in what is drawn alone. Their mean advantage at a
        decision is taken off, so that how hard a task is says nothing of how good a decision was.
      passes: over the decisions of an iteration.
      batch_size: decisions in an optimiser step.
      learning_rate: of Adam.
      clip: how far the ratio of probabilities may move an objective; epsilon of eq. 7.
      decay: lambda of `advantages_of`.
      spread: standard deviation of the changes of the learning rate that are tried.
      entropy: weight of the entropy of the actions.
      value: weight of the squared error of the value.
    """

    iterations: int = 40
    tasks: int = 16
    group: int = 8
    passes: int = 2
    batch_size: int = 184
    learning_rate: float = 2e-4
    clip: float = 0.2
    decay: float = 0.97
    spread: float = 0.15
    entropy: float = 0.002
    value: float = 0.5


class Decisions(NamedTuple):
    """Decisions of whole runs; T of each of B runs, with leading axes [T, B], or in a row.

    Attributes:
      graphs: what the network was shown.
      legality: what it could choose.
      actions: what it chose.
      log_probability: f32, of that.
      value: f32, what the network said of the return from here on.
      reward: f32.
      loss: f32, the validation loss before the decision.
      last_loss: f32, the validation loss after it and its epoch.
    """

    graphs: GraphsTuple
    legality: Legality
    actions: EnvAction
    log_probability: jax.Array
    value: jax.Array
    reward: jax.Array
    loss: jax.Array
    last_loss: jax.Array


class _Lesson(NamedTuple):
    """Decisions in a row, with what became of them."""

    graphs: GraphsTuple
    legality: Legality
    actions: EnvAction
    log_probability: jax.Array
    advantage: jax.Array
    value: jax.Array
    risk: jax.Array


def improve(
    grounds: Sequence[tuple[HostEnv, Sequence[Family]]],
    params: Params,
    generator: np.random.Generator,
    settings: PpoSettings,
    *,
    prices: Prices,
    on_iteration: Callable[[int, float], object] | None = None,
) -> Params:
    """Improve a network; the same generator gives the same parameters, bit for bit.

    Args:
      grounds: environments of one layout, each with the families whose hosts it has; drawn by the
        number of their families.
      params: to start from.
      generator: draws environments, tasks, keys and batches.
      settings: how.
      prices: of size and decisions.
      on_iteration: called with the number of iterations done and the mean return of the newest.
    """
    tx = _optimizer(settings.learning_rate)
    state = tx.init(params)
    share = np.array([len(families) for _, families in grounds], np.float64)
    for done in range(1, settings.iterations + 1):
        env, families = grounds[int(generator.choice(len(grounds), p=share / share.sum()))]
        family = generator.integers(0, len(families), settings.tasks)
        seeds = generator.integers(2**20, 2**31, settings.tasks)
        drawn = draw_many([families[row] for row in family], [int(seed) for seed in seeds])
        for_runs, for_draws = generator.integers(0, 2**31, 2)
        keys = jax.random.split(jax.random.PRNGKey(int(for_runs)), settings.tasks)
        tasks, keys = jax.tree.map(lambda x: jnp.repeat(x, settings.group, axis=0), (drawn, keys))
        draws = jax.random.split(jax.random.PRNGKey(int(for_draws)), len(keys))
        played = roll_out(env, params, keys, draws, tasks, prices, settings.spread)
        lesson = _lesson_of(played, settings)
        rows = _batches(generator, len(lesson.value), settings)
        params, state = _update(params, state, env.layout, lesson, rows, settings, tx)
        if on_iteration is not None:
            on_iteration(done, float(np.mean(np.sum(np.asarray(played.reward), axis=0))))
    return params


@partial(jax.jit, static_argnums=0)
def roll_out(
    env: HostEnv,
    params: Params,
    keys: jax.Array,
    draws: jax.Array,
    tasks: TaskData,
    prices: Prices,
    spread: jax.typing.ArrayLike,
) -> Decisions:
    """Play runs to their end, each decision drawn from the network's outputs.

    Args:
      env: the environment.
      params: of the network.
      keys: of the runs, [B].
      draws: keys of what is drawn in them, [B].
      tasks: with a leading axis B.
      prices: of size and decisions.
      spread: f32[], see `PpoSettings`.

    Returns:
      ``epochs − 1`` decisions of each run. The rewards of a run add up to the fall of the logarithm
      of its test loss after the first epoch, less the price of its size and of its decisions.
    """

    def one(key: jax.Array, draw: jax.Array, task: TaskData) -> Decisions:
        _, state = env.reset(key, task)

        def decide(carry: tuple[EnvState, Any], _: None) -> tuple[tuple[EnvState, Any], Decisions]:
            state, normalizer = carry
            normalizer, graph, legality = look(env, normalizer, state)
            outputs = apply(params, env.layout, graph)
            now = jax.random.fold_in(draw, state.epochs)
            action = draw_action(now, outputs, legality, spread)
            within = action._replace(lr_delta=jnp.clip(action.lr_delta, -0.9, 1.0))
            after = env.step(key, state, within, task)[1]
            decided = action.action != Action.WAIT
            reward = _score(env, state, prices) - _score(env, after, prices)
            return (after, normalizer), Decisions(
                graph,
                legality,
                action,
                log_probability(outputs, legality, action, spread),
                jnp.asarray(outputs.value),
                reward - prices.decision * decided,
                state.measured.validation_loss,
                after.measured.validation_loss,
            )

        return jax.lax.scan(decide, (state, init_normalizer()), length=env.epochs - 1)[1]

    return jax.vmap(one, out_axes=1)(keys, draws, tasks)


def _score(env: HostEnv, state: EnvState, prices: Prices) -> jax.Array:
    """f32[], to be made small; no loss counts as worse than twice that of a guess."""
    worst = 2 * np.log(env.network.architecture.classes)
    loss = state.measured.test_loss
    loss = jnp.where(jnp.isfinite(loss), jnp.minimum(loss, worst), worst)
    return jnp.log(loss + FLOOR) + prices.size * state.live / env.bare


def advantages_of(rewards: jax.Array, values: jax.Array, decay: float) -> jax.Array:
    """f32[T, B]: generalised advantage estimates without discount, of runs that end after T.

    Schulman et al. 2016, "High-dimensional continuous control using generalized advantage
    estimation", eq. 16.

    Args:
      rewards: f32[T, B].
      values: f32[T, B], of the states that the decisions were made in.
      decay: lambda.
    """
    following = jnp.concatenate([values[1:], jnp.zeros_like(values[:1])])
    errors = rewards + following - values

    def add(advantage: jax.Array, error: jax.Array) -> tuple[jax.Array, jax.Array]:
        advantage = error + jnp.float32(decay) * advantage
        return advantage, advantage

    return jax.lax.scan(add, jnp.zeros_like(errors[0]), errors, reverse=True)[1]


def _lesson_of(played: Decisions, settings: PpoSettings) -> _Lesson:
    advantage = advantages_of(played.reward, played.value, settings.decay)
    losses = np.concatenate([np.asarray(played.loss), np.asarray(played.last_loss)[-1:]])
    count = len(losses) - 1
    following = np.stack(
        [losses[np.minimum(np.arange(1, count + 1) + far, count)] for far in range(RISK_HORIZON)],
        axis=-1,
    )
    risk = rise_classes(losses[:-1].ravel(), following.reshape(-1, RISK_HORIZON))
    groups = advantage.reshape(count, -1, settings.group)
    apart = (groups - jnp.mean(groups, axis=-1, keepdims=True)).reshape(advantage.shape)

    def in_row(x: jax.Array) -> jax.Array:
        return x.reshape(-1, *x.shape[2:])

    return _Lesson(
        *jax.tree.map(
            in_row, (played.graphs, played.legality, played.actions, played.log_probability)
        ),
        advantage=in_row(apart / (jnp.std(apart) + 1e-6)),
        value=in_row(advantage + played.value),
        risk=jnp.asarray(risk),
    )


def _batches(generator: np.random.Generator, count: int, settings: PpoSettings) -> np.ndarray:
    """i64[N, batch_size], the rows of each optimiser step."""
    size = min(settings.batch_size, count)
    whole = count - count % size
    passes = [generator.permutation(count)[:whole] for _ in range(settings.passes)]
    return np.concatenate(passes).reshape(-1, size)


@lru_cache(maxsize=4)
def _optimizer(learning_rate: float) -> optax.GradientTransformation:
    """The same object for equal rates, so that what was compiled for it is found."""
    return optax.chain(optax.clip_by_global_norm(CLIP), optax.adam(learning_rate))


@partial(jax.jit, static_argnums=(2, 5, 6))
def _update(
    params: Params,
    state: Any,  # noqa: ANN401
    layout: GraphLayout,
    lesson: _Lesson,
    rows: jax.Array,
    settings: PpoSettings,
    tx: optax.GradientTransformation,
) -> tuple[Params, Any]:
    def one(carry: tuple[Params, Any], rows: jax.Array) -> tuple[tuple[Params, Any], None]:
        params, state = carry
        batch = jax.tree.map(lambda x: x[rows], lesson)
        gradient = jax.grad(_loss)(params, layout, batch, settings)
        updates, state = tx.update(gradient, state, cast(Any, params))
        return (cast(Params, optax.apply_updates(cast(Any, params), updates)), state), None

    return jax.lax.scan(one, (params, state), rows)[0]


def _loss(params: Params, layout: GraphLayout, batch: _Lesson, settings: PpoSettings) -> jax.Array:
    """f32[]: the clipped objective (eq. 7), the value's error, the entropy and the other heads."""
    outputs = outputs_of(params, layout, batch.graphs)
    chosen = jax.vmap(partial(log_probability, spread=settings.spread))(
        outputs, batch.legality, batch.actions
    )
    ratio = jnp.exp(chosen - batch.log_probability)
    clipped = jnp.clip(ratio, 1 - settings.clip, 1 + settings.clip)
    objective = jnp.minimum(ratio * batch.advantage, clipped * batch.advantage)
    logs = jax.nn.log_softmax(mask(outputs.policy_logits, batch.legality.actions))
    entropy = -jnp.sum(jnp.where(batch.legality.actions, jnp.exp(logs) * logs, 0), axis=-1)
    value = jnp.square(outputs.value - batch.value)
    losses = -objective - settings.entropy * entropy + settings.value * value
    return jnp.mean(losses + side_losses(outputs, batch.risk))
