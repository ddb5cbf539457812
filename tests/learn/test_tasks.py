"""Families of tasks, and the layout that families of several architectures share."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from tiny_learning import FAMILY, TINY

from tamiyo_jax.config import PolicyConfig
from tamiyo_jax.graph import GraphLayout, build, init_normalizer
from tamiyo_jax.learn import HELD_OUT, TRAINING, Architecture, HostEnv, draw
from tamiyo_jax.learn._grounds import grounds_of
from tamiyo_jax.policy import apply, init_params

pytestmark = pytest.mark.usefixtures("standard_promotion")

DEEP = Architecture("deep", 8, (3, 3, 3), 2, 32, 8, TINY.epochs, convolution=True)


@pytest.mark.parametrize("family", [*TRAINING.values(), *HELD_OUT.values()], ids=lambda f: f.name)
def test_a_task_fits_its_host_and_repeats(family) -> None:
    task, again, other = draw(family, 1), draw(family, 1), draw(family, 2)
    shape = family.architecture
    assert task.train.inputs.shape == (shape.examples, shape.inputs)
    for batch in task[:3]:
        assert np.isfinite(batch.inputs).all()
        assert batch.labels.min() >= 0
        assert batch.labels.max() < shape.classes
    jax.tree.map(np.testing.assert_array_equal, task, again)
    assert not np.array_equal(task.test.inputs, other.test.inputs)


def test_few_examples_are_repeated_and_no_others_are() -> None:
    def distinct(name: str, seed: int) -> float:
        inputs = np.asarray(draw(TRAINING[name], seed).train.inputs)
        return len(np.unique(inputs, axis=0)) / len(inputs)

    low, high = TRAINING["few-motifs"].distinct
    shares = [distinct("few-motifs", seed) for seed in range(6)]
    assert min(shares) >= low - 0.01
    assert max(shares) <= high + 0.01
    assert len(set(shares)) == 6
    assert distinct("motifs", 0) == 1.0


def test_no_held_out_family_is_a_training_family() -> None:
    held_out = {(one.make, one.architecture) for one in HELD_OUT.values()}
    assert not held_out & {(one.make, one.architecture) for one in TRAINING.values()}
    assert not {one.make for one in HELD_OUT.values()} & {one.make for one in TRAINING.values()}


def test_hosts_of_several_architectures_are_seen_through_one_layout() -> None:
    other = FAMILY._replace(name="deep", architecture=DEEP)
    grounds = grounds_of([FAMILY, other, FAMILY._replace(name="third")])
    assert [[one.name for one in ground.families] for ground in grounds] == [
        ["signs", "third"],
        ["deep"],
    ]
    assert grounds[0].env.layout == grounds[1].env.layout
    assert grounds[0].env.layout != HostEnv(TINY).layout


@pytest.mark.slow
def test_what_the_network_answers_does_not_depend_on_the_layout() -> None:
    """Of every output, but for seeds and blueprints that a layout has no room for."""
    params = init_params(PolicyConfig.small(), jax.random.key(0))
    small = HostEnv(TINY)
    nodes, edges = dict(small.layout.node_capacities), dict(small.layout.edge_capacities)
    wide = GraphLayout.of(
        {**nodes, "layer": 2 * nodes["layer"], "activation": 4 * nodes["activation"]},
        {name: 2 * capacity for name, capacity in edges.items()},
    )
    answers = []
    for env in (small, HostEnv(TINY, layout=wide)):
        _, graph = build(env.layout, init_normalizer(), env.observer.template)
        answers.append(jax.tree.map(np.asarray, apply(params, env.layout, graph)))
    assert wide != small.layout
    for ours, theirs in zip(*map(jax.tree.leaves, answers), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=1e-6)
