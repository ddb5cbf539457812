"""Rules as functions of arrays: the heuristic, and every fixed schedule, in one parametrised form.

With the numbers of `HeuristicConfig` the rules choose what `HeuristicPolicy` chooses upon packets
without a probe; a test compares the two. With others they are the schedules that a learned policy
must beat: never act, a learning-rate schedule, growth at a fixed epoch.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from tamiyo_jax.config import HeuristicConfig
from tamiyo_jax.contracts import SeedStage
from tamiyo_jax.host import LIMITS, scale_of
from tamiyo_jax.learn._environment import EnvAction, EnvState, HostEnv
from tamiyo_jax.policy import Action

__all__ = ["Memory", "Rules", "heuristic_rules", "new_memory", "no_rules", "rule_action", "wait"]

NEVER = 10_000


class Rules(NamedTuple):
    """The numbers of the rules; all are arrays, so that a batch may follow many rules.

    Attributes:
      plateau_epochs: i32[], as in `HeuristicConfig`; `NEVER` germinates nothing.
      plateau_improvement: f32[].
      min_epochs: i32[].
      embargo_epochs: i32[].
      train_epochs: i32[].
      cull_penalty: f32[].
      penalty_decay: f32[].
      penalty_skip: f32[].
      harm_fraction: f32[].
      harm_epochs: i32[].
      rising_epochs: i32[].
      brake: f32[].
      rates: f32[epochs], the multiplier of the learning rate after each epoch; 0 leaves it to
        the brake. Each time that the brake is taken, the plan is scaled down for good.
      tolerance: f32[], how far off the planned multiplier the rate may be, relatively.
      only: i32[], row of the only blueprint to germinate; 0 gives all their turns.
      random: bool[], choose among what is legal by chance instead.
    """

    plateau_epochs: jax.Array
    plateau_improvement: jax.Array
    min_epochs: jax.Array
    embargo_epochs: jax.Array
    train_epochs: jax.Array
    cull_penalty: jax.Array
    penalty_decay: jax.Array
    penalty_skip: jax.Array
    harm_fraction: jax.Array
    harm_epochs: jax.Array
    rising_epochs: jax.Array
    brake: jax.Array
    rates: jax.Array
    tolerance: jax.Array
    only: jax.Array
    random: jax.Array


class Memory(NamedTuple):
    """What the rules remember of a run with K slots and B blueprints; see `HeuristicState`.

    Attributes:
      loss: f32[], the last validation loss; NaN before the first.
      best: f32[], NaN before the first.
      stalled: i32[].
      rises: i32[].
      culled_at: i32[], far in the past before the first cull.
      turn: i32[], germinations so far.
      penalties: f32[B].
      stages: i32[K].
      entered: i32[K].
      entry_loss: f32[K], NaN where there is none.
      harm: i32[K].
      grown: i32[K], row of the blueprint that each slot grows or grew.
      braked: f32[], what the brake has scaled the plan of the learning rate down to.
    """

    loss: jax.Array
    best: jax.Array
    stalled: jax.Array
    rises: jax.Array
    culled_at: jax.Array
    turn: jax.Array
    penalties: jax.Array
    stages: jax.Array
    entered: jax.Array
    entry_loss: jax.Array
    harm: jax.Array
    grown: jax.Array
    braked: jax.Array


def heuristic_rules(config: HeuristicConfig, epochs: int) -> Rules:
    """The heuristic's own numbers, for runs of so many epochs."""
    own = ("rates", "tolerance", "only", "random")
    numbers = {name: getattr(config, name) for name in Rules._fields if name not in own}
    arrays = {
        name: jnp.float32(value) if isinstance(value, float) else jnp.int32(value)
        for name, value in numbers.items()
    }
    return Rules(
        **arrays,
        rates=jnp.zeros(epochs, jnp.float32),
        tolerance=jnp.float32(0.02),
        only=jnp.int32(0),
        random=jnp.bool_(False),
    )


def no_rules(epochs: int) -> Rules:
    """Never act."""
    rules = heuristic_rules(HeuristicConfig(), epochs)
    return rules._replace(plateau_epochs=jnp.int32(NEVER), rising_epochs=jnp.int32(NEVER))


def wait() -> EnvAction:
    """WAIT."""
    return EnvAction(jnp.int32(Action.WAIT), jnp.int32(-1), jnp.int32(-1), jnp.float32(0))


def new_memory(env: HostEnv) -> Memory:
    """Before the first epoch."""
    slots, blueprints = len(env.slots), env.graph_config.max_blueprints
    return Memory(
        loss=jnp.float32(jnp.nan),
        best=jnp.float32(jnp.nan),
        stalled=jnp.int32(0),
        rises=jnp.int32(0),
        culled_at=jnp.int32(-NEVER),
        turn=jnp.int32(0),
        penalties=jnp.zeros(blueprints, jnp.float32),
        stages=jnp.full(slots, -1, jnp.int32),
        entered=jnp.zeros(slots, jnp.int32),
        entry_loss=jnp.full(slots, jnp.nan, jnp.float32),
        harm=jnp.zeros(slots, jnp.int32),
        grown=jnp.zeros(slots, jnp.int32),
        braked=jnp.float32(1),
    )


def rule_action(
    env: HostEnv, rules: Rules, memory: Memory, state: EnvState
) -> tuple[Memory, EnvAction]:
    """What the rules choose after an epoch, and what they remember from then on."""
    stages = jnp.stack([state.host.slots[name].state.stage for name in env.slots])
    alphas = jnp.stack([state.host.slots[name].state.alpha for name in env.slots])
    contributions = jnp.stack([state.measured.contributions[name] for name in env.slots])
    epoch, loss = state.epochs, state.measured.validation_loss
    memory = _observe_loss(rules, memory, loss)
    memory = _observe_stages(rules, memory, stages, epoch)
    alive = (stages >= SeedStage.GERMINATED) & (stages <= SeedStage.PROBATIONARY)
    useful = contributions > 0
    blended = (stages == SeedStage.BLENDING) & (alphas >= 1 - 1e-6)
    trained = (stages == SeedStage.TRAINING) & (epoch - memory.entered >= rules.train_epochs)
    proven = (stages == SeedStage.PROBATIONARY) & jnp.isfinite(contributions)
    no_seed, none = jnp.int32(-1), jnp.int32(-1)
    choices: list[tuple[jax.Array, Action, jax.Array, jax.Array]] = []
    harmed = alive & (memory.harm >= rules.harm_epochs)
    choices.append((jnp.any(harmed), Action.CULL, jnp.argmax(harmed), none))
    for row in range(len(env.slots)):
        seed = jnp.int32(row)
        ready = (stages[row] == SeedStage.GERMINATED) | trained[row] | blended[row]
        choices.append((ready, Action.ADVANCE, seed, none))
        choices.append((proven[row] & useful[row], Action.FOSSILIZE, seed, none))
        choices.append((proven[row] & ~useful[row], Action.CULL, seed, none))
    braking = memory.rises >= rules.rising_epochs
    choices.append((braking, Action.OPTIMIZER, no_seed, none))
    planned = rules.rates[jnp.minimum(epoch, len(rules.rates) - 1)]
    brakes_plan = braking & (planned > 0)
    braked = memory.braked * jnp.where(brakes_plan, 1 - rules.brake, 1.0)
    planned = jnp.where(planned > 0, jnp.clip(planned * braked, *LIMITS), 0.0)
    now = scale_of(state.host.opt_state)
    off = (planned > 0) & (jnp.abs(planned / now - 1) > rules.tolerance)
    choices.append((off, Action.OPTIMIZER, no_seed, none))
    dormant = stages == SeedStage.DORMANT
    blueprint, offered = _next_blueprint(rules, memory)
    grows = (
        ~jnp.any(alive)
        & (epoch - memory.culled_at >= rules.embargo_epochs)
        & (memory.stalled >= rules.plateau_epochs)
        & (epoch >= rules.min_epochs)
        & jnp.any(dormant)
        & offered
    )
    choices.append((grows, Action.GERMINATE, jnp.argmax(dormant), blueprint))
    found = wait()
    for wanted, action, seed, row in reversed(choices):
        chosen = found._replace(
            action=jnp.int32(action), seed=jnp.int32(seed), blueprint=jnp.int32(row)
        )
        found = jax.tree.map(
            lambda new, old, wanted=wanted: jnp.where(wanted, new, old), chosen, found
        )
    turned = found.action == Action.OPTIMIZER
    to_plan = jnp.clip(planned / now - 1, -0.9, 1.0)
    delta = jnp.where(braking & (planned == 0), -rules.brake, to_plan)
    found = found._replace(lr_delta=jnp.where(turned, delta, jnp.float32(0)))
    germinates = found.action == Action.GERMINATE
    here = jnp.arange(len(env.slots)) == found.seed
    chance = _random_action(env, state)
    found = jax.tree.map(lambda a, b: jnp.where(rules.random, a, b), chance, found)
    return memory._replace(
        rises=jnp.where(turned, 0, memory.rises),
        braked=jnp.where(turned, braked, memory.braked),
        grown=jnp.where(germinates & here, found.blueprint, memory.grown),
    ), found


def _random_action(env: HostEnv, state: EnvState) -> EnvAction:
    """A legal action by chance: the action first, then what it takes."""
    key = jax.random.fold_in(state.host.rng, -1 - state.epochs)
    legality = env.legal(state)
    for_action, for_seed, for_blueprint, for_delta = jax.random.split(key, 4)

    def pick(key: jax.Array, legal: jax.Array) -> jax.Array:
        scores = jax.random.uniform(key, legal.shape)
        row = jnp.argmax(jnp.where(legal, scores, -1)).astype(jnp.int32)
        return jnp.where(jnp.any(legal), row, -1)

    action = pick(for_action, jnp.asarray(legality.actions))
    germinates = action == Action.GERMINATE
    return EnvAction(
        action,
        pick(for_seed, jnp.asarray(legality.seeds)[action]),
        pick(for_blueprint, jnp.asarray(legality.blueprints) & germinates),
        jax.random.uniform(for_delta, (), minval=-0.5, maxval=0.5),
    )


def _observe_loss(rules: Rules, memory: Memory, loss: jax.Array) -> Memory:
    """Count a loss; one that is not finite is left out."""
    improved = jnp.isnan(memory.best) | (
        loss < memory.best - rules.plateau_improvement * jnp.abs(memory.best)
    )
    rose = ~jnp.isnan(memory.loss) & (loss > memory.loss)
    harmed = loss > memory.entry_loss + rules.harm_fraction * jnp.abs(memory.entry_loss)
    counted = memory._replace(
        loss=loss,
        best=jnp.where(improved, loss, memory.best),
        stalled=jnp.where(improved, 0, memory.stalled + 1),
        rises=jnp.where(rose, memory.rises + 1, 0),
        harm=jnp.where(harmed, memory.harm + 1, 0),
    )
    known = jnp.isfinite(loss)
    return jax.tree.map(lambda new, old: jnp.where(known, new, old), counted, memory)


def _observe_stages(rules: Rules, memory: Memory, stages: jax.Array, epoch: jax.Array) -> Memory:
    """Read off what was germinated, what moved on and what was culled; penalties fade."""
    before, changed = memory.stages, stages != memory.stages
    alive = (stages >= SeedStage.GERMINATED) & (stages <= SeedStage.PROBATIONARY)
    heard = (stages == SeedStage.BLENDING) | (stages == SeedStage.PROBATIONARY)
    lived = (before >= SeedStage.GERMINATED) & (before <= SeedStage.PROBATIONARY)
    germinated = changed & (before == SeedStage.DORMANT) & alive
    culled = changed & lived & ~alive & (stages != SeedStage.FOSSILIZED)
    rows = jnp.arange(len(memory.penalties))
    punished = jnp.any(culled[:, None] & (memory.grown[:, None] == rows[None, :]), axis=0)
    faded = memory.penalties * rules.penalty_decay
    return memory._replace(
        stages=stages,
        entered=jnp.where(changed, epoch, memory.entered),
        entry_loss=jnp.where(changed, jnp.where(heard, memory.loss, jnp.nan), memory.entry_loss),
        harm=jnp.where(changed, 0, memory.harm),
        turn=memory.turn + jnp.sum(germinated),
        stalled=jnp.where(jnp.any(germinated), 0, memory.stalled),
        culled_at=jnp.where(jnp.any(culled), epoch, memory.culled_at),
        penalties=jnp.where(punished, rules.cull_penalty, faded),
    )


def _next_blueprint(rules: Rules, memory: Memory) -> tuple[jax.Array, jax.Array]:
    """The row whose turn it is among those without a penalty, and whether there is one."""
    count = len(memory.penalties) - 1
    rows = 1 + (memory.turn + jnp.arange(count)) % count
    free = memory.penalties[rows] <= rules.penalty_skip
    turn = rows[jnp.argmax(free)]
    return jnp.where(rules.only > 0, rules.only, turn), (rules.only > 0) | jnp.any(free)
