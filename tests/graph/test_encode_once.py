"""What is encoded once serves every step: nothing leaks from one packet into another."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tamiyo_jax.config import GraphConfig
from tamiyo_jax.contracts import LayerSpec, MonitoredLayer, SeedStage
from tamiyo_jax.graph import (
    Registries,
    completeness,
    coverage,
    encode,
    encode_blueprint,
    encode_packet,
    expand_layout,
    layout_for,
    missing_features,
)

LENIENT = GraphConfig(strict_features=False, overflow="truncate", max_seeds=4)

numbers = st.none() | st.floats(-10, 10) | st.just(float("nan"))
seed_fields = st.fixed_dictionaries(
    {
        "stage": st.sampled_from(SeedStage),
        "gradient_norm": numbers,
        "risk_score": st.none() | st.floats(0, 1),
        "layer_depth": st.none() | st.integers(0, 5),
        "metrics": st.sampled_from([{}, {"blend_allowed": 1.0}]),
    }
)
live = st.dictionaries(
    st.sampled_from(
        ["loss", "gradient_norm", "layer/L0/latency_ms", "layer/L1/weight_norm",
         "layer/L2/gradient_norm", "activation/A1/saturation_rate", "layer/none/latency_ms"]
    ),
    st.floats(-10, 10) | st.just(float("inf")),
)  # fmt: skip
steps = st.tuples(live, numbers, st.lists(st.tuples(st.integers(0, 5), seed_fields),
                                          unique_by=lambda seed: seed[0], max_size=5))  # fmt: skip
variants = st.sampled_from(
    [
        {},
        {"allowed_blending_methods": ("linear",)},
        {"allowed_parameters_by_seed_id": {"seed-0": ("wd", "unknown"), "seed-3": ()}},
        {"monitored_layers": (MonitoredLayer("seed-1", 2, 0.4), MonitoredLayer("seed-4", 0))},
        {"monitor_thresholds": {"risk_max": 0.5, "stage_min": 0.2}},
        {"relation_pairs": {"global__influences__seed": ((0, 0), (0, 3)),
                            "layer__feeds__activation": ((2, 1),)}},
    ]
)  # fmt: skip


@pytest.fixture(scope="session")
def packet_of(make_packet, make_seed):
    def make(step):
        metrics, loss, seeds = step
        return make_packet(
            training_metrics=metrics,
            validation_loss=loss,
            candidate_blueprint_ids=("bp", "other"),
            seeds=tuple(make_seed(i, **fields) for i, fields in seeds),
        )

    return make


def assert_equal(ours, theirs):
    for name, mine, expected in zip(ours._fields, ours, theirs, strict=True):
        assert mine.dtype == expected.dtype
        np.testing.assert_array_equal(mine, expected, err_msg=name)


@settings(max_examples=40)
@given(steps, steps, variants, st.booleans())
def test_a_packet_encodes_alike_whatever_was_encoded_before_it(
    packet_of, make_blueprint, one, other, variant, listed
):
    blueprint, candidate = make_blueprint(**variant), make_blueprint("other", depth=1)
    layout = layout_for(blueprint, LENIENT)
    layout = expand_layout(layout) if listed else layout
    arrays = encode_blueprint(blueprint, layout, config=LENIENT)
    registries = Registries.empty()
    handed_out = []
    for step in (one, other, one):
        packet = packet_of(step)
        raw, grown = encode_packet(packet, arrays, (candidate,), registries, config=LENIENT)
        fresh, _ = encode(packet, blueprint, (candidate,), registries, layout, config=LENIENT)
        assert_equal(raw, fresh)
        handed_out.append((raw, raw._replace(**{k: v.copy() for k, v in raw._asdict().items()})))
        assert grown.seeds.keys == tuple(seed.seed_id for seed in packet.seeds)
    assert_equal(handed_out[0][0], handed_out[2][0])
    for raw, before in handed_out:
        assert_equal(raw, before)


@settings(max_examples=40)
@given(steps, variants)
def test_reported_features_are_counted_as_a_walk_over_packet_and_blueprint_counts_them(
    packet_of, make_blueprint, step, variant
):
    sparse = LayerSpec("L2", "conv", 2, weight_norm=1.0)
    blueprint = make_blueprint(**variant)
    blueprint = dataclasses.replace(blueprint, layers=(*blueprint.layers[:2], sparse))
    packet = packet_of(step)
    layout = layout_for(blueprint, LENIENT)
    raw, _ = encode(
        packet, blueprint, (make_blueprint("other"),), Registries.empty(), layout, config=LENIENT
    )
    seeds = packet.seeds[:4]
    reported = sum(
        value is not None
        for seed in seeds
        for value in (seed.learning_rate, seed.risk_score, seed.gradient_norm, seed.age_epochs,
                      seed.stage or None, seed.layer_depth, seed.seed_id)
    )  # fmt: skip
    # L2 lacks latency, parameter count, dropout, activation and gradient norm.
    live = {"layer/L2/gradient_norm"} & packet.training_metrics.keys()
    ours = coverage(layout, raw)
    assert ours["node.layer"] == (24 - 5 + len(live)) / 24
    assert ours["node.activation"] == 1.0
    if seeds:
        assert ours["node.seed"] == reported / (7 * len(packet.seeds))
    assert ours["node.blueprint"] == (5 if packet.validation_loss is None else 6) / 6


def test_a_live_measurement_makes_up_for_what_the_blueprint_lacks(make_packet, make_blueprint):
    blueprint = make_blueprint(layers=(LayerSpec("L0", "dense", 0), LayerSpec("L1", "dense", 1)))
    layout = layout_for(blueprint, LENIENT)
    arrays = encode_blueprint(blueprint, layout, config=LENIENT)
    seen = []
    for keys in ((), ("layer/L0/latency_ms",), ("layer/L0/latency_ms", "layer/L1/latency_ms"), ()):
        packet = make_packet(training_metrics=dict.fromkeys(keys, 1.0))
        raw, _ = encode_packet(packet, arrays, (), Registries.empty(), config=LENIENT)
        missing = "layer.latency_ms" in missing_features(layout, raw)
        seen.append((missing, coverage(layout, raw)["node.layer"]))
    assert seen == [(True, 4 / 16), (True, 5 / 16), (False, 6 / 16), (True, 4 / 16)]


def test_what_steps_share_cannot_be_written(make_packet, make_blueprint):
    arrays = encode_blueprint(make_blueprint(), layout_for(make_blueprint(), LENIENT))
    first, _ = encode_packet(make_packet(), arrays, (), Registries.empty())
    second, _ = encode_packet(make_packet(), arrays, (), Registries.empty())
    for name, earlier, later, static in zip(first._fields, first, second, arrays.raw, strict=True):
        assert not static.flags.writeable, name
        if np.shares_memory(earlier, later) or np.shares_memory(earlier, static):
            assert not earlier.flags.writeable, name


class Walked(tuple):
    """A tuple that counts the walks over it."""

    walks = 0

    def __iter__(self):
        type(self).walks += 1
        return super().__iter__()


def test_once_registries_are_settled_no_step_walks_over_a_blueprint(make_packet, make_blueprint):
    def count_by_walking(blueprint):
        parts = ("layers", "activations", "parameters", "allowed_blending_methods")
        given = {name: Walked(getattr(blueprint, name)) for name in parts}
        watches = Walked((MonitoredLayer("seed-0", 1), MonitoredLayer("gone", 2)))
        return dataclasses.replace(blueprint, monitored_layers=watches, **given)

    active, other = count_by_walking(make_blueprint()), count_by_walking(make_blueprint("other"))
    arrays = encode_blueprint(active, layout_for(active, LENIENT))
    packet = make_packet(candidate_blueprint_ids=("bp", "other"))
    registries = Registries.empty()
    for _ in range(2):  # the second finds the registries that the first has grown
        _, registries = encode_packet(packet, arrays, (active, other), registries)
    walks = Walked.walks
    assert walks > 0
    for risk in (0.1, 0.2):
        seeds = tuple(dataclasses.replace(seed, risk_score=risk) for seed in packet.seeds)
        raw, again = encode_packet(
            dataclasses.replace(packet, seeds=seeds), arrays, (active, other), registries
        )
        completeness(arrays.layout, raw)
        assert again is registries
    assert Walked.walks == walks


def test_old_seed_placements_and_sets_of_blueprints_are_forgotten(make_packet, make_blueprint):
    blueprint = make_blueprint()
    arrays = encode_blueprint(blueprint, layout_for(blueprint, LENIENT))
    for step in range(100):
        other = make_blueprint("other", stage=step % 9)
        seeds = tuple(dataclasses.replace(seed, layer_depth=step) for seed in make_packet().seeds)
        packet = make_packet(candidate_blueprint_ids=("other",), seeds=seeds)
        encode_packet(packet, arrays, (other,), Registries.empty())
    for remembered in (arrays.seed_edges_for, arrays.stage_for):
        assert remembered.cache_info().currsize <= 8
