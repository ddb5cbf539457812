"""Features: what each node type takes from packets and blueprints."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tamiyo_jax.config import GraphConfig
from tamiyo_jax.contracts import (
    ActivationSpec,
    HandlingClass,
    HazardBand,
    LayerSpec,
    ParameterSpec,
    SafetySheet,
    SeedStage,
)
from tamiyo_jax.errors import (
    GraphSchemaError,
    InvalidPacketError,
    MissingBlueprintIdError,
    MissingFeatureError,
)
from tamiyo_jax.graph import (
    NODE_TYPES,
    RELATIONS,
    GraphLayout,
    Registries,
    coverage,
    encode,
    encode_blueprint,
    encode_packet,
    feature_changes,
    layout_for,
    missing_features,
    relation_group,
    total_coverage,
)
from tamiyo_jax.graph._relations import find_relation
from tamiyo_jax.graph._schema import find_node_type

CONFIG = GraphConfig()
LENIENT = GraphConfig(strict_features=False)


def encode_fresh(packet, blueprint, candidates=(), registries=None, config=CONFIG):
    layout = layout_for(blueprint, config)
    raw, grown = encode(
        packet,
        blueprint,
        candidates,
        Registries.empty() if registries is None else registries,
        layout,
        config=config,
    )
    return layout, raw, grown


def row(layout, raw, name, index=0, field="values"):
    return getattr(raw, field)[layout.nodes[name].start + index, : find_node_type(name).width]


def test_the_columns_of_every_type_are_those_that_checkpoints_depend_on(
    make_packet, make_blueprint
):
    layout, raw, _ = encode_fresh(make_packet(), make_blueprint())
    f = np.float32
    expected = {
        ("global", 0): [0.9, 1, 0.7, 1, 0.6, 1, 1.2, 1, 4000, 1, 10, 1, 3, math.log1p(120),
                        math.tanh(2), 0.25],
        ("seed", 1): [0.02, 1, 0.3, 1, 2.5, 1, 2, 1, 3 / 11, 1, 1 / 3, 1, 2 / 1024, 0],
        ("blueprint", 0): [1 / 1024, 0.7, 1, 0.6, 1, 0.25, 0.4, math.log1p(600), 1, 0.1, 0, 0,
                           0.6, 1],
        ("layer", 2): [1, 1, 4, 1, math.log1p(300), 1, 0.1, 1 / 1024, 1 / 1024, 3, 0.5, 1],
        ("activation", 1): [1 / 1024, 1, 0.1, 1, 0.9, math.log1p(64), 0.4, 1],
        ("parameter", 0): [0.1, 1, 0.5, 1, 0.4, 1, 0.3, 1, 0.25, 0.4],
    }  # fmt: skip
    for (name, index), values in expected.items():
        np.testing.assert_allclose(
            row(layout, raw, name, index), np.array(values, f), rtol=1e-6, err_msg=name
        )


def test_span_and_default_of_a_parameter_may_be_given(make_packet, make_blueprint):
    blueprint = make_blueprint(parameters=(ParameterSpec("lr", 0.0, 1.0, span=0.3, default=0.9),))
    layout, raw, _ = encode_fresh(make_packet(), blueprint)
    np.testing.assert_allclose(row(layout, raw, "parameter")[[4, 6]], [0.3, 0.9], rtol=1e-6)


def test_a_single_activation_stands_at_zero(make_packet, make_blueprint):
    layout, raw, _ = encode_fresh(
        make_packet(), make_blueprint(activations=(ActivationSpec("A", "relu"),))
    )
    assert row(layout, raw, "activation")[7] == 0


@pytest.mark.parametrize(
    ("metrics", "stage", "methods", "expected"),
    [
        ({}, SeedStage.TRAINING, (), 0.0),
        ({"blend_allowed": 0.0}, SeedStage.TRAINING, (), 0.0),
        ({"blend_allowed": 1.0}, SeedStage.TRAINING, (), 1.0),
        ({}, SeedStage.BLENDING, (), 1.0),
        ({}, SeedStage.DORMANT, ("linear",), 1.0),
    ],
)
def test_blending_is_allowed_by_metric_stage_or_blueprint(
    make_packet, make_blueprint, make_seed, metrics, stage, methods, expected
):
    packet = make_packet(seeds=(make_seed(0, metrics=metrics, stage=stage),))
    layout, raw, _ = encode_fresh(packet, make_blueprint(allowed_blending_methods=methods))
    assert row(layout, raw, "seed")[13] == expected


def test_the_risk_of_the_safety_sheet_is_the_risk_of_the_blueprint(make_packet, make_blueprint):
    sheet = SafetySheet(0.75, HazardBand.HIGH, HandlingClass.STANDARD)
    layout, raw, _ = encode_fresh(make_packet(), make_blueprint(risk=None, safety=sheet))
    assert row(layout, raw, "blueprint")[5] == 0.75
    assert row(layout, raw, "blueprint", field="attributes")[1] == 0.75


def test_live_measurements_override_the_static_ones(make_packet, make_blueprint):
    packet = make_packet()
    live = {
        **packet.training_metrics,
        "layer/L1/latency_ms": 9.0,
        "layer/L1/gradient_norm": 0.0,
        "layer/L2/weight_norm": math.nan,
        "activation/A0/saturation_rate": 0.8,
        "layer/other/latency_ms": 1.0,
    }
    layout, raw, _ = encode_fresh(make_packet(training_metrics=live), make_blueprint())
    assert row(layout, raw, "layer", 1)[2] == 9.0
    assert row(layout, raw, "layer", 1)[10] == 0.0
    assert row(layout, raw, "layer", 0)[2] == 2.0
    assert row(layout, raw, "activation")[2] == np.float32(0.8)
    assert not row(layout, raw, "layer", 2, "present")[9]
    assert "layer.weight_norm" not in missing_features(layout, raw)


def test_the_active_blueprint_stands_first_and_once(make_packet, make_blueprint):
    active, other = make_blueprint(), make_blueprint("other", depth=1, stage=7)
    packet = make_packet(candidate_blueprint_ids=("other", "bp"))
    layout, raw, grown = encode_fresh(packet, active, (other, active))
    assert grown.blueprints.keys == ("bp", "other")
    assert raw.mask[layout.nodes["blueprint"].slice].sum() == 2
    np.testing.assert_array_equal(
        raw.attributes[layout.nodes["blueprint"].slice][:2], np.array([[4, 0.25], [7, 0.25]])
    )


def test_blueprints_that_the_packet_does_not_name_are_refused(make_packet, make_blueprint):
    with pytest.raises(InvalidPacketError):
        encode_fresh(make_packet(), make_blueprint("another"))
    with pytest.raises(InvalidPacketError):
        encode_fresh(make_packet(candidate_blueprint_ids=("x",)), make_blueprint())


def test_a_packet_without_a_blueprint_id_is_an_error_and_never_gets_one(
    make_packet, make_blueprint
):
    with pytest.raises(MissingBlueprintIdError):
        encode_fresh(make_packet(blueprint_id=""), make_blueprint())


def test_all_missing_required_features_are_named_at_once(make_packet, make_blueprint, make_seed):
    packet = make_packet(
        training_metrics={}, seeds=(make_seed(0), make_seed(1, stage=SeedStage.UNKNOWN))
    )
    blueprint = make_blueprint(
        risk=None,
        layers=(LayerSpec("L", "", 0),),
        activations=(ActivationSpec("A", ""),),
    )
    with pytest.raises(MissingFeatureError) as caught:
        encode_fresh(packet, blueprint)
    assert caught.value.features == (
        "activation.type", "blueprint.risk", "global.gradient_norm", "global.loss", "layer.type",
        "seed.stage",
    )  # fmt: skip
    layout, raw, _ = encode_fresh(packet, blueprint, config=LENIENT)
    assert set(caught.value.features) <= missing_features(layout, raw)


def test_a_loss_that_is_not_a_number_counts_as_reported_and_encodes_as_absent(
    make_packet, make_blueprint
):
    reported = {"loss": math.nan, "gradient_norm": math.inf}
    layout, raw, _ = encode_fresh(make_packet(training_metrics=reported), make_blueprint())
    values = row(layout, raw, "global")
    assert values[:2].tolist() == values[6:8].tolist() == [0.0, 0.0]
    assert not {"global.loss", "global.gradient_norm"} & missing_features(layout, raw)


def test_zero_counts_as_reported_and_absence_does_not(make_packet, make_blueprint, make_seed):
    seeds = (make_seed(0, risk_score=0.0, learning_rate=None),)
    layout, raw, _ = encode_fresh(make_packet(seeds=seeds), make_blueprint())
    assert row(layout, raw, "seed")[[0, 1, 2, 3]].tolist() == [0.0, 0.0, 0.0, 1.0]
    missing = missing_features(layout, raw)
    assert "seed.learning_rate" in missing
    assert "seed.risk_score" not in missing
    assert coverage(layout, raw)["node.seed"] == 6 / 7


def test_what_goes_missing_is_reported_once_and_so_is_its_return(
    make_packet, make_blueprint, make_seed
):
    seen = [frozenset()]
    for rate in (None, None, 0.1):
        seeds = (make_seed(0, learning_rate=rate),)
        layout, raw, _ = encode_fresh(make_packet(seeds=seeds), make_blueprint())
        seen.append(missing_features(layout, raw))
    changes = [feature_changes(a, b) for a, b in itertools.pairwise(seen)]
    assert [change.missing for change in changes] == [("seed.learning_rate",), (), ()]
    assert [change.restored for change in changes] == [(), (), ("seed.learning_rate",)]


def test_coverage_is_full_for_a_full_packet_and_leaves_out_absent_types(
    make_packet, make_blueprint
):
    layout, raw, _ = encode_fresh(make_packet(), make_blueprint(activations=()))
    reported = coverage(layout, raw)
    assert set(reported.values()) == {1.0}
    assert total_coverage(layout, raw) == 1.0
    assert "node.activation" not in reported
    assert "edges.layer_connects" in reported


def test_a_nearly_empty_packet_has_almost_no_coverage(make_packet, make_blueprint):
    blueprint = make_blueprint(depth=0, activations=(), parameters=(), risk=None,
                               candidate_score=None)  # fmt: skip
    packet = make_packet(training_metrics={}, seeds=(), validation_loss=None, training_loss=None)
    layout, raw, _ = encode_fresh(packet, blueprint, config=LENIENT)
    assert coverage(layout, raw)["node.global"] == 0.0
    assert total_coverage(layout, raw) == pytest.approx(1 / 13)


def test_an_id_beyond_the_registry_is_reported_as_unseen(make_packet, make_blueprint):
    full = Registries.empty().with_keys(seeds=[f"old-{i}" for i in range(1022)])
    layout, raw, grown = encode_fresh(make_packet(), make_blueprint(), registries=full)
    assert grown.seeds is full.seeds
    assert row(layout, raw, "seed")[12] == np.float32(1023 / 1024)
    assert "seed.seed_index" in missing_features(layout, raw)


def test_encoding_leaves_the_given_registries_alone(make_packet, make_blueprint):
    given_registries = Registries.empty()
    _, _, grown = encode_fresh(make_packet(), make_blueprint(), registries=given_registries)
    assert given_registries == Registries.empty()
    assert grown.additions(given_registries) == {
        "seeds": ["seed-0", "seed-1"],
        "blueprints": ["bp"],
        "layer_types": ["dense"],
        "activation_types": ["relu"],
    }


def test_a_blueprint_encoded_once_serves_every_packet(make_packet, make_blueprint, make_seed):
    blueprint = make_blueprint()
    layout = layout_for(blueprint, CONFIG)
    arrays = encode_blueprint(blueprint, layout)
    packets = [
        make_packet(training_metrics={"loss": 1.0, "gradient_norm": 1.0, "layer/L0/latency_ms": 7}),
        make_packet(seeds=tuple(make_seed(i) for i in range(5))),
        make_packet(seeds=()),
    ]
    for packet in packets:
        cached, _ = encode_packet(packet, arrays, (), Registries.empty())
        fresh, _ = encode(packet, blueprint, (), Registries.empty(), layout)
        for name, ours, theirs in zip(fresh._fields, cached, fresh, strict=True):
            np.testing.assert_array_equal(ours, theirs, err_msg=name)


anything = st.floats(allow_nan=True, allow_infinity=True) | st.just(1e300) | st.just(-1e300)


@given(st.lists(anything, min_size=7, max_size=7))
def test_no_number_makes_the_arrays_non_finite(make_packet, make_blueprint, make_seed, numbers):
    a, b, c, d, e, f, g = numbers
    packet = make_packet(
        training_metrics={"loss": a, "gradient_norm": b, "epochs_total": c},
        validation_loss=d,
        seeds=(make_seed(0, learning_rate=e, risk_score=f),),
    )
    blueprint = make_blueprint(activations=(ActivationSpec("A", "relu", computational_cost=g),))
    _, raw, _ = encode_fresh(packet, blueprint)
    assert all(np.isfinite(array).all() for array in (raw.values, raw.attributes, raw.edges))
    assert not raw.values[~raw.present].any()


def test_a_type_outside_the_schema_is_an_error_at_construction(make_blueprint):
    layout = layout_for(make_blueprint(), CONFIG)
    with pytest.raises(GraphSchemaError):
        GraphLayout((*layout.node_capacities, ("optimizer", 4)), layout.edge_capacities)
    with pytest.raises(GraphSchemaError):
        find_relation("global__dreams__seed")


def test_the_schema_holds_six_types_and_twenty_one_relations_with_names_of_their_own():
    assert {kind.name: kind.width for kind in NODE_TYPES} == {
        "global": 16, "seed": 14, "blueprint": 14, "layer": 12, "activation": 8, "parameter": 10,
    }  # fmt: skip
    assert len(RELATIONS) == len({relation.key for relation in RELATIONS}) == 21
    assert len({relation_group(relation) for relation in RELATIONS}) == 21


def test_similar_blueprints_share_a_layout_and_so_a_compiled_program(make_blueprint):
    layouts = {layout_for(make_blueprint(depth=n), CONFIG) for n in (5, 6, 7, 8)}
    assert len({layout.node_capacities for layout in layouts}) == 1
    assert dict(layout_for(make_blueprint(depth=9), CONFIG).node_capacities)["layer"] == 16
