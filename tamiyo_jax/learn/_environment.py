"""The environment: training a host, one decision per epoch, as pure functions of arrays.

`reset` and `step` have the signature of Gymnax (Lange 2022) and work under `jit` and `vmap`. What
trains is the product's own host: `train_step`, the stages of a seed, `contribution` and the
learning-rate multiplier. All randomness of a run comes from the key of `reset`, folded with the
step, so two continuations of one state see the same batches and grow the same initial seeds.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from tamiyo_jax.config import GraphConfig
from tamiyo_jax.contracts import SeedStage
from tamiyo_jax.graph import GraphLayout, RawGraph, layout_for
from tamiyo_jax.growth import TRANSITIONS, dormant, enter
from tamiyo_jax.host import (
    LIMITS,
    HostState,
    Slot,
    StepMetrics,
    contribution,
    gates_of,
    init_host,
    loss_of,
    scale_by,
    seeds_of,
    train_step,
)
from tamiyo_jax.learn._architecture import GROWN, WHICH, Architecture, Batch, network_for
from tamiyo_jax.learn._observation import Observer
from tamiyo_jax.learn._tasks import TaskData
from tamiyo_jax.policy import ACTIONS, NUM_ACTIONS, Action, Legality

__all__ = ["EnvAction", "EnvState", "HostEnv", "Measured", "Rent"]

_STAGES = len(SeedStage)

# i32[32, stages]: the stage that each action puts a seed of each stage into; -1 for none.
_LEADS_TO = np.full((NUM_ACTIONS, _STAGES), -1, np.int32)
for _action, _rule in ACTIONS.items():
    for _stage, _operation in _rule.operations.items():
        _LEADS_TO[_action, _stage] = TRANSITIONS[_operation].get(_stage, -1)

_TAKES = _LEADS_TO >= 0
_BREAKS = {Action.BREAKER_OPEN: True, Action.BREAKER_CLOSE: False}


class EnvAction(NamedTuple):
    """An action; rows count as in `policy.Selection`, -1 where the action takes none.

    Attributes:
      action: i32[], a `policy.Action`.
      seed: i32[], row of the seed.
      blueprint: i32[], row of the blueprint; the host's own is row 0.
      lr_delta: f32[] in [-1, 1], relative change of the learning rate, of OPTIMIZER.
    """

    action: jax.Array
    seed: jax.Array
    blueprint: jax.Array
    lr_delta: jax.Array


class Measured(NamedTuple):
    """What an epoch measured.

    Attributes:
      step: a step's metrics, averaged over the epoch.
      validation_loss: f32[].
      contributions: f32[] by slot id.
      test_loss: f32[]; no part of the observation.
      test_accuracy: f32[] in [0, 1]; likewise.
    """

    step: StepMetrics
    validation_loss: jax.Array
    contributions: dict[str, jax.Array]
    test_loss: jax.Array
    test_accuracy: jax.Array


class EnvState(NamedTuple):
    """A run at a decision boundary.

    Attributes:
      host: what trains.
      epochs: i32[], epochs trained.
      measured: of the newest epoch.
      live: f32[], parameters of the host and of its seeds from GERMINATED to FOSSILIZED.
      compute: f32[], live parameters summed over epochs, in units of the bare host's.
      interventions: i32[], decisions other than WAIT.
    """

    host: HostState
    epochs: jax.Array
    measured: Measured
    live: jax.Array
    compute: jax.Array
    interventions: jax.Array


class Rent(NamedTuple):
    """What the reward takes off the fall of the test loss.

    Attributes:
      per_epoch: for growing by the size of the bare host, for one epoch.
      per_action: for each decision other than WAIT.
    """

    per_epoch: float = 0.0005
    per_action: float = 0.001


class HostEnv:
    """The environment of one architecture.

    Args:
      architecture: of the hosts; equal ones share what they compile.
      rent: prices of the reward.
      layout: of the graphs; by default the smallest. The network's answers do not depend on it.
    """

    def __init__(
        self,
        architecture: Architecture,
        rent: Rent | None = None,
        layout: GraphLayout | None = None,
    ) -> None:
        self.network = network_for(architecture)
        self.rent = rent or Rent()
        self.slots = tuple(sorted(self.network.slot_depths))
        self.graph_config = GraphConfig(
            max_seeds=len(self.slots), max_blueprints=1 + len(self.network.candidates)
        )
        self.layout: GraphLayout = layout or layout_for(self.network.blueprint, self.graph_config)
        self.observer = Observer(self.network, self.layout, self.graph_config)
        ids = [one.blueprint_id for one in self.network.candidates]
        # `SlotState.blueprint` counts in the order of the ids.
        self._places = np.array([sorted(ids).index(one) for one in ids], np.int32)
        shapes = jax.eval_shape(self.network.host.init_seeds, jax.random.PRNGKey(0))
        self._sizes = {
            name: np.array([_size(shapes[name][GROWN][one]) for one in ids], np.float32)
            for name in self.slots
        }
        self.bare = float(_size(jax.eval_shape(self.network.init_params, jax.random.PRNGKey(0))))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, HostEnv) and self._identity == other._identity

    def __hash__(self) -> int:
        return hash(self._identity)

    @property
    def _identity(self) -> tuple[Architecture, Rent, GraphLayout]:
        return self.network.architecture, self.rent, self.layout

    @property
    def epochs(self) -> int:
        """Decisions of a run, the first and the last included."""
        return self.network.architecture.epochs

    def initial(self, key: jax.Array, task: TaskData) -> EnvState:
        """A run before its first epoch, nothing measured; see `reset`."""
        network = self.network
        params = network.init_params(key)
        host = init_host(network.host, params, key)
        opt_state = optax.tree_utils.tree_set(host.opt_state, learning_rate=task.learning_rate)
        seeds, tx = network.host.init_seeds(key), network.host.seed_optimizer
        slots = {name: Slot(dormant(), seeds[name], tx.init(seeds[name])) for name in self.slots}
        host = host._replace(opt_state=opt_state, slots=slots)
        nothing = jax.eval_shape(self._train, host, task)[1]
        return EnvState(
            host=host,
            epochs=jnp.int32(0),
            measured=jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), nothing),
            live=jnp.float32(self.bare),
            compute=jnp.float32(0),
            interventions=jnp.int32(0),
        )

    def reset(self, key: jax.Array, task: TaskData) -> tuple[RawGraph, EnvState]:
        """A run after its first epoch, all slots dormant.

        Args:
          key: `jax.random.PRNGKey` of the run: its parameters, batches and seeds.
          task: what it trains on.
        """
        return self._epoch(self.initial(key, task), task)

    def step(
        self, key: jax.Array, state: EnvState, action: EnvAction, task: TaskData
    ) -> tuple[RawGraph, EnvState, jax.Array, jax.Array, dict[str, jax.Array]]:
        """Apply an action, then train an epoch.

        Args:
          key: not used: a run's randomness is that of `reset`.
          state: the run.
          action: a legal action; an illegal one changes nothing.
          task: what the run trains on.

        Returns:
          The observation, the next state, the reward f32[], whether the run is over (bool[]),
          and nothing more. The reward is the fall of the test loss less the rent.
        """
        del key
        acted = state._replace(
            host=self._act(state.host, action),
            interventions=state.interventions + (action.action != Action.WAIT),
        )
        observation, after = self._epoch(acted, task)
        grown = (after.live - self.bare) / self.bare
        reward = state.measured.test_loss - after.measured.test_loss - self.rent.per_epoch * grown
        reward = reward - self.rent.per_action * (action.action != Action.WAIT)
        return observation, after, reward, after.epochs >= self.epochs, {}

    def observe(self, state: EnvState) -> RawGraph:
        """The graph that `encode` makes of the packet of this state."""
        return self.observer.observe(state.host, state.epochs, state.measured)

    def legal(self, state: EnvState) -> Legality:
        """What may be chosen, as `policy.legality` says it of the packet of this state."""
        stages = jnp.stack([state.host.slots[name].state.stage for name in self.slots])
        seeds = jnp.asarray(_TAKES)[:, stages]
        always = jnp.array([Action.PAUSE, Action.WAIT, Action.OPTIMIZER])
        actions = jnp.any(seeds, axis=1).at[always].set(True)
        for action, opens in _BREAKS.items():
            actions = actions.at[action].set(state.host.breaker_open != opens)
        blueprints = jnp.arange(self.graph_config.max_blueprints) > 0
        return Legality(actions, seeds, blueprints)

    def start_grown(self, state: EnvState, blueprint: jax.Array) -> EnvState:
        """The run with a candidate (its row, i32[]) fossilised in every slot."""
        slots = self._germinate(state.host, blueprint)
        grown = {
            name: slot._replace(state=enter(slot.state, SeedStage.FOSSILIZED))
            for name, slot in slots.items()
        }
        return state._replace(host=state.host._replace(slots=grown))

    def _act(self, host: HostState, action: EnvAction) -> HostState:
        fresh = self._germinate(host, action.blueprint)
        slots = {
            name: self._move(host, row, action, fresh[name]) for row, name in enumerate(self.slots)
        }
        factor = jnp.where(action.action == Action.OPTIMIZER, 1 + action.lr_delta, jnp.float32(1))
        breaker = host.breaker_open
        for wanted, opens in _BREAKS.items():
            breaker = jnp.where(action.action == wanted, opens, breaker)
        return host._replace(
            opt_state=scale_by(host.opt_state, factor, LIMITS),  # pyright: ignore[reportArgumentType]
            slots=slots,
            paused=action.action == Action.PAUSE,
            breaker_open=breaker,
        )

    def _move(self, host: HostState, row: int, action: EnvAction, fresh: Slot) -> Slot:
        """A slot after an action on it or on another; an open breaker lets CULL alone through."""
        slot = host.slots[self.slots[row]]
        following = jnp.asarray(_LEADS_TO)[action.action, slot.state.stage]
        moves = (action.seed == row) & (following >= 0)
        moves = moves & (~host.breaker_open | (action.action == Action.CULL))
        germinates = moves & (action.action == Action.GERMINATE)
        slot = jax.tree.map(lambda new, old: jnp.where(germinates, new, old), fresh, slot)
        state = enter(slot.state, jnp.where(moves, following, slot.state.stage))
        kept = jax.tree.map(lambda new, old: jnp.where(moves, new, old), state, slot.state)
        return slot._replace(state=kept)

    def _germinate(self, host: HostState, blueprint: jax.Array) -> dict[str, Slot]:
        """Every slot as it would be with that candidate germinated in it."""
        bank = self.network.host.init_seeds(jax.random.fold_in(host.rng, host.step))
        row = jnp.maximum(blueprint - 1, 0)
        which = (jnp.arange(len(self._places)) == row).astype(jnp.float32)
        slots: dict[str, Slot] = {}
        for name, fresh in bank.items():
            params = {GROWN: {**fresh[GROWN], WHICH: which}}
            state = host.slots[name].state._replace(blueprint=jnp.asarray(self._places)[row])
            slots[name] = Slot(state, params, self.network.host.seed_optimizer.init(params))
        return slots

    def _epoch(self, state: EnvState, task: TaskData) -> tuple[RawGraph, EnvState]:
        host, measured = self._train(state.host, task)
        live = self._live(host)
        after = state._replace(
            host=host,
            epochs=state.epochs + 1,
            measured=measured,
            live=live,
            compute=state.compute + live / self.bare,
        )
        return self.observe(after), after

    def _train(self, host: HostState, task: TaskData) -> tuple[HostState, Measured]:
        """One epoch in the order that the run's key gives, and what it measured."""
        network, shape = self.network, self.network.architecture
        steps = shape.steps_per_epoch
        key = jax.random.fold_in(host.rng, host.step // steps)
        order = jax.random.permutation(key, shape.examples)
        batches = order[: steps * shape.batch_size].reshape(steps, shape.batch_size)

        def train_batch(host: HostState, rows: jax.Array) -> tuple[HostState, StepMetrics]:
            batch = Batch(task.train.inputs[rows], task.train.labels[rows])
            return train_step(network.host, host, batch)

        host, metrics = jax.lax.scan(train_batch, host, batches)
        loss, accuracy = self.test(host, task)
        return host, Measured(
            step=_mean(metrics),
            validation_loss=loss_of(network.host, host, task.validation),
            contributions=contribution(network.host.loss, host.params, host.slots, task.validation),
            test_loss=loss,
            test_accuracy=accuracy,
        )

    def test(self, host: HostState, task: TaskData) -> tuple[jax.Array, jax.Array]:
        """Loss and accuracy on the examples that no policy sees, f32[] each."""
        seeds, gates = seeds_of(host.slots), gates_of(host.slots)
        logits = self.network.logits(host.params, seeds, gates, task.test.inputs)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, task.test.labels)
        right = jnp.argmax(logits, axis=-1) == task.test.labels
        return jnp.mean(losses), jnp.mean(right.astype(jnp.float32))

    def _live(self, host: HostState) -> jax.Array:
        total = jnp.float32(self.bare)
        for name in self.slots:
            state = host.slots[name].state
            alive = (state.stage >= SeedStage.GERMINATED) & (state.stage <= SeedStage.FOSSILIZED)
            which = host.slots[name].params[GROWN][WHICH] > 0
            total = total + jnp.where(alive, jnp.sum(which * jnp.asarray(self._sizes[name])), 0)
        return total


def _size(tree: Any) -> int:  # noqa: ANN401 - any pytree of shapes
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def _mean(steps: StepMetrics) -> StepMetrics:
    """Means over the steps of an epoch; of the signals the worst, of the refusals the newest."""
    numbers = steps.statistics
    mean = jax.tree.map(lambda x: jnp.mean(x.astype(jnp.float32), axis=0), steps)
    kept = mean.statistics._replace(
        signals=jax.tree.map(lambda x: jnp.max(x, axis=0).astype(jnp.float32), numbers.signals),
        refusals=jax.tree.map(lambda x: x[-1].astype(jnp.float32), numbers.refusals),
    )
    return mean._replace(statistics=kept)
