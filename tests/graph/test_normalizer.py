"""The normaliser against a plain reference, and its invariances."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tamiyo_jax.config import GraphConfig
from tamiyo_jax.graph import (
    NODE_TYPES,
    STATISTICS,
    Registries,
    build,
    encode,
    init_normalizer,
    layout_for,
    update_and_normalize,
)

CONFIG = GraphConfig(max_seeds=4, max_blueprints=2)
NAMES = [statistic.name for statistic in STATISTICS]
step = functools.partial(jax.jit, static_argnums=0)(update_and_normalize)


@pytest.fixture
def case(make_packet, make_blueprint):
    blueprint = make_blueprint()
    layout = layout_for(blueprint, CONFIG)
    raw, _ = encode(make_packet(), blueprint, (), Registries.empty(), layout, config=CONFIG)
    return layout, raw


def reference(layout, mean, var, raw, rate):
    """The formula of the specification, one statistic and one value at a time."""
    cells = {}
    for kind in NODE_TYPES:
        for i in range(layout.nodes[kind.name].capacity):
            for j, column in enumerate(kind.columns):
                at = (layout.nodes[kind.name].start + i, j)
                if column.statistic is not None and raw.present[at]:
                    cells.setdefault(column.statistic, []).append((at, float(raw.values[at])))
    x = np.where(raw.present, raw.values, 0.0).astype(np.float64)
    for s, name in enumerate(NAMES):
        if name not in cells:
            continue
        values = [value for _, value in cells[name]]
        m = sum(values) / len(values)
        v = sum((value - m) ** 2 for value in values) / len(values)
        d = m - mean[s]
        mean[s] += rate * d
        var[s] = max((1 - rate) * (var[s] + rate * d * d) + rate * v, 1e-6)
        for at, value in cells[name]:
            x[at] = min(max((value - mean[s]) / var[s] ** 0.5, -10.0), 10.0)
    return mean, var, x


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_it_follows_the_reference_over_many_steps(case, rate):
    layout, raw = case
    state = init_normalizer()
    mean, var = np.array(state.mean, np.float64), np.array(state.var, np.float64)
    rng = np.random.default_rng(0)
    for _ in range(6):
        present = raw.present & (rng.random(raw.present.shape) < 0.8)
        noisy = raw._replace(
            values=(raw.values * rng.uniform(0.5, 2, raw.values.shape)).astype(np.float32),
            present=present,
        )
        state, x = step(layout, state, noisy.values, present, rate=rate)
        mean, var, expected = reference(layout, mean, var, noisy, rate)
        np.testing.assert_allclose(state.mean, mean, rtol=2e-5, atol=1e-6)
        np.testing.assert_allclose(state.var, var, rtol=2e-4, atol=1e-6)
        np.testing.assert_allclose(x, expected, rtol=1e-3, atol=1e-4)


def test_a_statistic_without_values_keeps_its_state(case):
    layout, raw = case
    before = init_normalizer()
    after, x = step(layout, before, raw.values, np.zeros_like(raw.present))
    assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))
    assert not np.asarray(x).any()


def test_an_absent_value_is_zero_after_normalisation_and_moves_nothing(
    make_packet, make_blueprint, make_seed
):
    blueprint = make_blueprint()
    layout = layout_for(blueprint, CONFIG)
    states = []
    for extra in ((), (make_seed(1, learning_rate=None), make_seed(2, learning_rate=np.nan))):
        packet = make_packet(seeds=(make_seed(0), *extra))
        raw, _ = encode(packet, blueprint, (), Registries.empty(), layout, config=CONFIG)
        state, x = step(layout, init_normalizer(), raw.values, raw.present)
        states.append((state, np.asarray(x)))
    rate = NAMES.index("seed_learning_rate")
    assert states[0][0].mean[rate] == states[1][0].mean[rate]
    seeds = states[1][1][layout.nodes["seed"].slice]
    assert seeds[0, 0] != 0
    assert seeds[1:3, :2].tolist() == [[0, 0], [0, 0]]


def test_each_step_counts_once_however_many_nodes_report(case):
    layout, raw = case
    state, _ = step(layout, init_normalizer(), raw.values, raw.present)
    assert set(np.asarray(state.count).tolist()) == {1.0}


def test_features_that_differ_between_nodes_only_do_not_run_into_the_clip(case):
    layout, raw = case
    state = init_normalizer()
    for _ in range(200):
        state, x = step(layout, state, raw.values, raw.present)
    latency = np.asarray(x)[layout.nodes["layer"].slice][:3, 2]
    np.testing.assert_allclose(latency, [-1.2247, 0.0, 1.2247], atol=1e-2)


@settings(max_examples=25)
@given(order=st.permutations(range(4)), numbers=st.lists(
    st.floats(-1e6, 1e6, width=32), min_size=4, max_size=4))  # fmt: skip
def test_the_order_of_nodes_does_not_matter(make_packet, make_blueprint, make_seed, order, numbers):
    blueprint = make_blueprint()
    layout = layout_for(blueprint, CONFIG)
    seeds = [make_seed(i, gradient_norm=numbers[i]) for i in range(4)]
    results = []
    for arrangement in (range(4), order):
        packet = make_packet(seeds=tuple(seeds[i] for i in arrangement))
        raw, _ = encode(packet, blueprint, (), Registries.empty(), layout, config=CONFIG)
        state, x = step(layout, init_normalizer(), raw.values, raw.present)
        results.append((state, np.asarray(x)[layout.nodes["seed"].slice, 4]))
    (a, x), (b, y) = results
    np.testing.assert_allclose(a.mean, b.mean, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(a.var, b.var, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(x[list(order)], y, rtol=1e-3, atol=1e-4)


def test_extreme_values_leave_a_finite_state(make_packet, make_blueprint, make_seed):
    blueprint = make_blueprint()
    layout = layout_for(blueprint, CONFIG)
    packet = make_packet(
        training_metrics={"loss": 1e300, "gradient_norm": -1e300},
        seeds=tuple(make_seed(i, gradient_norm=(-1) ** i * 1e308) for i in range(4)),
    )
    raw, _ = encode(packet, blueprint, (), Registries.empty(), layout, config=CONFIG)
    state, x = step(layout, init_normalizer(), raw.values, raw.present)
    assert all(np.isfinite(array).all() for array in (*state, x))
    assert np.abs(np.asarray(x)[:, 0]).max() <= 10


def test_a_batch_gives_what_each_packet_gives_alone(make_packet, make_blueprint, make_seed):
    blueprint = make_blueprint()
    layout = layout_for(blueprint, CONFIG)
    raws = [
        encode(
            make_packet(seeds=tuple(make_seed(i, risk_score=0.1 * n) for i in range(n))),
            blueprint, (), Registries.empty(), layout, config=CONFIG,
        )[0]
        for n in range(4)
    ]  # fmt: skip
    single = jax.jit(build, static_argnums=0)
    batch = jax.jit(jax.vmap(functools.partial(build, layout), in_axes=(None, 0)))
    stacked = jax.tree.map(lambda *rows: jnp.stack(rows), *raws)
    together = batch(init_normalizer(), stacked)
    for i, raw in enumerate(raws):
        alone = single(layout, init_normalizer(), raw)
        for ours, theirs in zip(jax.tree.leaves(alone), jax.tree.leaves(together), strict=True):
            np.testing.assert_allclose(ours, theirs[i], rtol=1e-5, atol=1e-6)


def test_packets_of_one_blueprint_compile_once(
    make_packet, make_blueprint, make_seed, count_compilations
):
    blueprint = make_blueprint()
    layout = layout_for(blueprint, CONFIG)
    state = init_normalizer()

    def build_once(layout, state, raw):
        return build(layout, state, raw)

    jitted = jax.jit(build_once, static_argnums=0)
    with count_compilations() as compiled:
        for n in range(4):
            packet = make_packet(seeds=tuple(make_seed(i) for i in range(n)))
            raw, _ = encode(packet, blueprint, (), Registries.empty(), layout, config=CONFIG)
            state, _ = jitted(layout_for(blueprint, CONFIG), state, raw)
    assert sum("build_once" in name for name in compiled.names) == 1
