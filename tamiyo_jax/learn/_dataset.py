"""From journals to examples: what a team's own runs hold to learn from.

A journal keeps every packet, what was legal and what the policy chose. The graphs are made by the
controller's own encoder and normalised as the live policy would have seen them: the statistics of
a run start at the priors and move with each of its packets.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import numpy as np

from tamiyo_jax.config import TamiyoConfig
from tamiyo_jax.contracts import Blueprint
from tamiyo_jax.errors import ConfigurationError
from tamiyo_jax.graph import (
    GraphLayout,
    GraphsTuple,
    RawGraph,
    Registries,
    blueprint_order,
    build,
    encode_blueprint,
    encode_packet,
    init_normalizer,
    layout_for,
)
from tamiyo_jax.learn._grounds import common_layout
from tamiyo_jax.library import BlueprintLibrary, find_in
from tamiyo_jax.policy import ACTIONS, Action, Legality
from tamiyo_jax.replay import read_history
from tamiyo_jax.storage import StepRecord

__all__ = ["Dataset", "dataset", "select_runs"]

_build = jax.jit(build, static_argnums=0)


class Chosen(NamedTuple):
    """What the policy chose at T steps; rows as in `policy.Selection`.

    Attributes:
      action: i32[T].
      seed: i32[T].
      blueprint: i32[T].
      lr_delta: f32[T].
    """

    action: np.ndarray
    seed: np.ndarray
    blueprint: np.ndarray
    lr_delta: np.ndarray


@dataclass(frozen=True, slots=True)
class Dataset:
    """T logged decisions.

    Attributes:
      layout: of the graphs; the smallest that holds all of them.
      graphs: normalised, with a leading axis T.
      legality: masks with a leading axis T.
      chosen: by the policy on record.
      losses: f32[T], validation loss of each packet; NaN where it has none.
      rewards: f32[T], its fall until the run's next packet; 0 at the end.
      returns: f32[T], rewards summed to the end of the run.
      run: i32[T], which run; counted from 0.
      policies: versions of the policies that made the decisions, by how many.
      blueprints: all that the packets name, by id.
    """

    layout: GraphLayout
    graphs: GraphsTuple
    legality: Legality
    chosen: Chosen
    losses: np.ndarray
    rewards: np.ndarray
    returns: np.ndarray
    run: np.ndarray
    policies: Mapping[str, int]
    blueprints: Mapping[str, Blueprint]


class _Logged(NamedTuple):
    step: StepRecord
    run: str
    blueprint: Blueprint
    candidates: tuple[Blueprint, ...]


def dataset(
    directories: Iterable[str | os.PathLike[str]],
    library: BlueprintLibrary,
    config: TamiyoConfig,
) -> Dataset:
    """Read the journals of run directories.

    Args:
      directories: each with a journal; it is only read.
      library: holds the blueprints that the packets name.
      config: caps of the graph and rate of the normaliser; its caps on seeds and blueprints are
        lowered to what the journals hold, which changes no output of the network.

    Raises:
      ConfigurationError: no journal holds a decision of a policy.
      UnknownBlueprintError: the library lacks a blueprint of a packet.
      PersistenceError: a directory has no journal, or one without packets.
    """
    find = find_in(library)
    logged = [one for directory in directories for one in _read(directory, find)]
    if not logged:
        raise ConfigurationError(
            "the journals hold no decision of a policy with its packet; log runs with a policy, "
            "not on guard, and with storage.record_packets on",
            field="directories",
        )
    caps = {
        "max_seeds": max(len(_packet(one).seeds) for one in logged),
        "max_blueprints": max(
            len(blueprint_order(one.blueprint, one.candidates)) for one in logged
        ),
    }
    graph = config.graph.model_copy(update={name: max(cap, 1) for name, cap in caps.items()})
    actives = {one.blueprint.blueprint_id: one.blueprint for one in logged}
    layout = common_layout([layout_for(one, graph) for one in actives.values()])
    encoders = {name: encode_blueprint(one, layout, config=graph) for name, one in actives.items()}
    names = list(dict.fromkeys(one.run for one in logged))
    graphs: list[GraphsTuple] = []
    for name in names:
        registries, raws = Registries.empty(), list[RawGraph]()
        for one in logged:
            if one.run == name:
                raw, registries = encode_packet(
                    _packet(one),
                    encoders[one.blueprint.blueprint_id],
                    one.candidates,
                    registries,
                    config=graph,
                )
                raws.append(raw)
        graphs.append(_normalise(layout, raws, graph.normalizer_rate))
    rows = [one for name in names for one in logged if one.run == name]
    run = np.array([names.index(one.run) for one in rows], np.int32)
    losses = np.array([_loss(one) for one in rows], np.float32)
    rewards, returns = _rewards(losses, run)
    policies = [one.step.report.tamiyo_policy_version for one in rows]
    return Dataset(
        layout=layout,
        graphs=jax.tree.map(lambda *parts: np.concatenate(parts), *graphs),
        legality=_legality(rows, caps),
        chosen=_chosen(rows),
        losses=losses,
        rewards=rewards,
        returns=returns,
        run=run,
        policies={name: policies.count(name) for name in dict.fromkeys(policies)},
        blueprints={
            each.blueprint_id: each for one in rows for each in (one.blueprint, *one.candidates)
        },
    )


def _read(directory: str | os.PathLike[str], find: Callable[[str], Blueprint]) -> Iterator[_Logged]:
    """The decisions of a policy; a directory may hold several runs."""
    for event in read_history(directory):
        if isinstance(event, StepRecord) and event.packet is not None and event.outputs:
            packet = event.packet
            yield _Logged(
                event,
                json.dumps([os.fspath(directory), packet.training_run_id]),
                find(packet.blueprint_id),
                tuple(find(name) for name in packet.candidates),
            )


def _packet(one: _Logged) -> Any:  # noqa: ANN401
    return one.step.packet


def _loss(one: _Logged) -> float:
    loss = _packet(one).validation_loss
    return math.nan if loss is None else loss


def _normalise(layout: GraphLayout, raws: Sequence[RawGraph], rate: float) -> GraphsTuple:
    """The graphs of one run, as its policy saw them one after another."""
    state, graphs = init_normalizer(), list[GraphsTuple]()
    for raw in raws:
        state, graph = _build(layout, state, raw, rate=rate)
        graphs.append(graph)
    return jax.tree.map(lambda *leaves: np.stack(leaves), *graphs)


def _rewards(losses: np.ndarray, run: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    rewards, returns = np.zeros_like(losses), np.zeros_like(losses)
    for index in range(len(losses) - 2, -1, -1):
        if run[index] == run[index + 1]:
            fall = losses[index] - losses[index + 1]
            rewards[index] = fall if np.isfinite(fall) else 0.0
            returns[index] = rewards[index] + returns[index + 1]
    return rewards, returns


def _legality(rows: Sequence[_Logged], caps: Mapping[str, int]) -> Legality:
    masks = [one.step.mask or {} for one in rows]
    return Legality(
        np.stack([mask["actions"] for mask in masks]).astype(np.bool_),
        np.stack([mask["seeds"][:, : caps["max_seeds"]] for mask in masks]).astype(np.bool_),
        np.stack([mask["blueprints"][: caps["max_blueprints"]] for mask in masks]).astype(np.bool_),
    )


def _chosen(rows: Sequence[_Logged]) -> Chosen:
    """The legal argmax of the recorded outputs: what the policy proposed to the gate."""
    none = np.full(len(rows), -1, np.int32)
    chosen = Chosen(none.copy(), none.copy(), none.copy(), np.zeros(len(rows), np.float32))
    for index, one in enumerate(rows):
        outputs, mask = one.step.outputs or {}, one.step.mask or {}
        logits = np.where(mask["actions"], outputs["policy_logits"], -np.inf)
        action = Action(int(np.argmax(logits)))
        if logits[Action.WAIT] == logits[action]:
            action = Action.WAIT
        rule = ACTIONS[action]
        chosen.action[index] = action
        chosen.lr_delta[index] = float(outputs["param_delta"])
        if rule.operations:
            legal = mask["seeds"][action]
            chosen.seed[index] = np.argmax(np.where(legal, outputs["seed_scores"], -np.inf))
        if rule.needs_blueprint:
            legal = mask["blueprints"]
            chosen.blueprint[index] = np.argmax(
                np.where(legal, outputs["blueprint_scores"], -np.inf)
            )
    return chosen


def select_runs(data: Dataset, runs: Iterable[int]) -> Dataset:
    """The decisions of some runs."""
    kept = np.isin(data.run, list(runs))

    def cut(tree: Any) -> Any:  # noqa: ANN401
        return jax.tree.map(lambda x: x[kept], tree)

    return replace(
        data,
        graphs=cut(data.graphs),
        legality=cut(data.legality),
        chosen=cut(data.chosen),
        losses=cut(data.losses),
        rewards=cut(data.rewards),
        returns=cut(data.returns),
        run=cut(data.run),
    )
