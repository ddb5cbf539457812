"""What a policy sees of the environment: the graph that `encode` makes of a packet, in JAX.

What does not change during a run is encoded once, from a packet, by the product's own encoder.
The rest is written over it in the columns that the schema names. `packet_of` makes the packet
itself, for tests and for policies of rules.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from tamiyo_jax.config import GraphConfig
from tamiyo_jax.contracts import SeedStage, SeedState, SystemStatePacket
from tamiyo_jax.graph import FEATURE_WIDTH, NODE_TYPES, GraphLayout, RawGraph, Registries, encode
from tamiyo_jax.host import (
    MEASURED_STAGES,
    RISK_SCALE,
    HostState,
    SeedMeasurements,
    layer_names,
    packet_from,
    seed_state,
)
from tamiyo_jax.learn._architecture import SEED_LEARNING_RATE, Network

if TYPE_CHECKING:
    from tamiyo_jax.learn._environment import EnvState, HostEnv, Measured

__all__ = ["Observer", "packet_of"]

OPTIMIZER = "adamw"
STAGES = np.float32(11)
VALUE_LIMIT = 1e16  # what the encoder clips to

_TYPES = {kind.name: (index, kind) for index, kind in enumerate(NODE_TYPES)}


def _column(kind: str, feature: str) -> int:
    return [column.name for column in _TYPES[kind][1].columns].index(feature)


def _has_bit(kind: str, feature: str) -> bool:
    return any(column.name == feature and column.presence for column in _TYPES[kind][1].columns)


class Observer:
    """Makes graphs of the states of one network's runs.

    Args:
      network: what trains.
      layout: of the graphs.
      config: caps of the graphs.
    """

    def __init__(self, network: Network, layout: GraphLayout, config: GraphConfig) -> None:
        self._network = network
        self._layout = layout
        self._config = config
        self.slots = tuple(sorted(network.slot_depths))
        shapes = jax.eval_shape(network.init_params, jax.random.PRNGKey(0))
        self.layers = layer_names(shapes)
        ids = {layer.layer_id: i for i, layer in enumerate(network.blueprint.layers)}
        self._rows = [layout.nodes["layer"].start + ids[name] for name in self.layers]
        places: list[tuple[int, int, bool]] = []
        for source, (kind, row, feature) in enumerate(self._cells()):
            place = row * FEATURE_WIDTH + _column(kind, feature)
            places.append((place, source, False))
            if _has_bit(kind, feature):
                places.append((place + 1, source, True))
        columns = np.array(places, np.int64).T
        self._places, self._source = columns[0], columns[1]
        self._is_bit = columns[2].astype(np.bool_)
        self.template = self._encode(SeedStage.DORMANT, 0.0)
        other = self._encode(SeedStage.GERMINATED, 0.0)
        self._shows_stage = self.template.edges != other.edges
        """bool[E, 3]: attributes of edges that are the stage of the seed at one end."""
        self._shows_risk = self.template.edges != self._encode(SeedStage.DORMANT, 1.0).edges
        """bool[E, 3]: likewise its risk."""
        block = layout.nodes["seed"].slice
        senders, receivers = self.template.senders, self.template.receivers
        of_seed = (senders >= block.start) & (senders < block.stop)
        self._seed_end = np.where(of_seed, senders, receivers)

    def _encode(self, stage: SeedStage, risk: float) -> RawGraph:
        """A graph with every measurement there, all seeds in one stage and of one risk."""
        network = self._network
        seeds = tuple(
            SeedState(
                name,
                stage,
                gradient_norm=0.0,
                learning_rate=SEED_LEARNING_RATE,
                risk_score=risk,
                layer_depth=network.slot_depths[name],
                age_epochs=0,
            )
            for name in self.slots
        )
        metrics = {"epochs_total": float(network.architecture.epochs)}
        for name in ("loss", "training_loss", "validation_loss", "gradient_norm"):
            metrics[name] = 1.0
        for layer in self.layers:
            metrics |= {f"layer/{layer}/weight_norm": 1.0, f"layer/{layer}/gradient_norm": 1.0}
        packet = SystemStatePacket(
            packet_id="template",
            training_run_id="template",
            blueprint_id=network.blueprint.blueprint_id,
            candidate_blueprint_ids=tuple(one.blueprint_id for one in network.candidates),
            current_epoch=1,
            global_step=1,
            validation_loss=1.0,
            training_loss=1.0,
            training_metrics=metrics,
            seeds=seeds,
            optimizer_id=OPTIMIZER,
        )
        raw, _ = encode(
            packet,
            network.blueprint,
            network.candidates,
            Registries.empty(),
            self._layout,
            config=self._config,
        )
        return RawGraph(*(array.copy() for array in raw))

    def observe(self, host: HostState, epochs: jax.Array, measured: Measured) -> RawGraph:
        """The graph of a state; see `HostEnv.observe`."""
        template, numbers = self.template, measured.step.statistics
        steps = self._network.architecture.steps_per_epoch
        training, validation = measured.step.loss, measured.validation_loss
        states = [host.slots[name].state for name in self.slots]
        stage = jnp.stack([state.stage for state in states])
        stages = stage.astype(jnp.float32) / STAGES
        contributions = jnp.stack([measured.contributions[name] for name in self.slots])
        risks = jnp.where(
            jnp.isin(stage, jnp.array(MEASURED_STAGES)),
            0.5 - 0.5 * jnp.tanh(contributions / RISK_SCALE),
            jnp.nan,
        )
        norms = jnp.stack([measured.step.seed_gradient_norms[name] for name in self.slots])
        ages = jnp.stack([state.age_steps // steps for state in states])
        of_run = (
            training,
            validation,
            training,
            jnp.linalg.norm(numbers.gradient_norm),
            epochs.astype(jnp.float32),
            jnp.log1p(host.step.astype(jnp.float32)),
            epochs.astype(jnp.float32) / np.float32(self._network.architecture.epochs),
        )
        losses = jnp.tile(jnp.stack([validation, training]), 1 + len(self._network.candidates))
        vector = jnp.concatenate(
            [
                jnp.stack(of_run),
                losses,
                numbers.weight_norm,
                numbers.gradient_norm,
                norms,
                ages.astype(jnp.float32),
                risks,
                stages,
            ]
        )
        there = jnp.isfinite(vector)
        numbers_there = jnp.clip(jnp.where(there, vector, 0), -VALUE_LIMIT, VALUE_LIMIT)
        written = jnp.where(
            self._is_bit, there[self._source].astype(jnp.float32), numbers_there[self._source]
        )
        values = jnp.asarray(template.values).reshape(-1).at[self._places].set(written)
        known = jnp.where(self._is_bit, True, there[self._source])
        present = jnp.asarray(template.present).reshape(-1).at[self._places].set(known)
        seeds = self._layout.nodes["seed"].start + np.arange(len(self.slots))
        shown = jnp.stack([stages, jnp.nan_to_num(risks)], axis=1)
        attributes = jnp.asarray(template.attributes).at[seeds].set(shown)
        reported = jnp.asarray(template.reported)
        for name, numbers in (("gradient_norm", norms), ("risk_score", risks)):
            place = (_TYPES["seed"][0], _column("seed", name))
            reported = reported.at[place].set(jnp.sum(jnp.isfinite(numbers)).astype(jnp.int32))
        ends = attributes[self._seed_end]
        edges = jnp.asarray(template.edges)
        edges = jnp.where(self._shows_stage, ends[:, :1], edges)
        changed = {
            "values": values.reshape(template.values.shape),
            "present": present.reshape(template.present.shape),
            "reported": reported,
            "attributes": attributes,
            "edges": jnp.where(self._shows_risk, ends[:, 1:], edges),
        }
        return RawGraph(**{**template._asdict(), **changed})

    def _cells(self) -> list[tuple[str, int, str]]:
        """(node type, row, feature) of what `observe` writes, in its order."""
        nodes = self._layout.nodes
        run = ("loss", "validation_loss", "training_loss", "gradient_norm")
        time = ("current_epoch", "global_step", "epoch_progress")
        cells = [("global", nodes["global"].start, name) for name in (*run, *time)]
        first = nodes["blueprint"].start
        cells += [
            ("blueprint", first + row, name)
            for row in range(1 + len(self._network.candidates))
            for name in ("validation_loss", "training_loss")
        ]
        for name in ("weight_norm", "gradient_norm"):
            cells += [("layer", row, name) for row in self._rows]
        for name in ("gradient_norm", "age_epochs", "risk_score", "stage"):
            start = nodes["seed"].start
            cells += [("seed", start + index, name) for index in range(len(self.slots))]
        return cells


def packet_of(env: HostEnv, state: EnvState, run_id: str) -> SystemStatePacket:
    """The packet that a host in this state sends; of one run, outside `jit`."""
    network, state = env.network, jax.device_get(state)
    measured = state.measured
    epoch = int(state.epochs)
    contributions: Mapping[str, Any] = measured.contributions
    seeds = [
        seed_state(
            name,
            state.host.slots[name].state,
            SeedMeasurements(
                gradient_norm=float(measured.step.seed_gradient_norms[name]),
                contribution=float(contributions[name]),
                learning_rate=SEED_LEARNING_RATE,
                layer_depth=network.slot_depths[name],
            ),
            timing=network.host.timing,
            steps_per_epoch=network.architecture.steps_per_epoch,
        )
        for name in env.slots
    ]
    identity = SystemStatePacket(
        packet_id=f"{run_id}-{epoch}",
        training_run_id=run_id,
        blueprint_id=network.blueprint.blueprint_id,
        candidate_blueprint_ids=tuple(one.blueprint_id for one in network.candidates),
        current_epoch=epoch,
        global_step=int(state.host.step),
        validation_loss=float(measured.validation_loss),
        optimizer_id=OPTIMIZER,
        source_subsystem="tamiyo_jax.learn",
    )
    return packet_from(
        identity,
        layers=env.observer.layers,
        statistics=measured.step.statistics,
        training_loss=float(measured.step.loss),
        seeds=seeds,
        metrics={"epochs_total": float(env.epochs)},
    )
