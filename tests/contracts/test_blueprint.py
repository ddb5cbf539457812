from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import tamiyo_jax
from tamiyo_jax.contracts import (
    ActivationSpec,
    Blueprint,
    BlueprintTier,
    HandlingClass,
    HazardBand,
    LayerEdge,
    LayerSpec,
    MonitoredLayer,
    ParameterSpec,
    SafetySheet,
    blueprint_from_json,
    blueprint_json_schema,
    blueprint_to_json,
    validate_blueprint,
)
from tamiyo_jax.errors import GraphCapacityError, InvalidBlueprintError

CAPS = {"max_layers": 8, "max_activations": 8, "max_parameters": 8, "max_edges": 8}
LAYERS = tuple(LayerSpec(f"layer-{index}", "dense", index) for index in range(3))
SHEET = SafetySheet(0.25, HazardBand.LOW, HandlingClass.STANDARD)
BLUEPRINT = Blueprint(
    "network",
    tier=BlueprintTier.SAFE,
    risk=0.5,
    stage=3,
    candidate_score=0.75,
    allowed_parameters={"lr": (0.0, 1.0)},
    layers=LAYERS,
    activations=(ActivationSpec("act-0", "relu", computational_cost=10.0),),
    parameters=(ParameterSpec("lr", 0.0, 1.0), ParameterSpec("decay", 0.0, 0.5)),
    layer_edges=(LayerEdge(0, 1), LayerEdge(1, 2, 0.5)),
    monitored_layers=(MonitoredLayer("seed-a", 2, 0.5),),
    monitor_thresholds={"risk_max": 0.75, "stage_min": 0.25},
    relation_pairs={
        "layer__activates__activation": ((0, 0), (2, 0)),
        "blueprint__composes__layer": ((0, 2),),
        "parameter__targets__blueprint": ((1, 5),),
    },
    allowed_blending_methods=("linear",),
    allowed_parameters_by_seed_id={"seed-a": ("lr",), "seed-b": ()},
    safety=SHEET,
)


def changed(**changes: object) -> Blueprint:
    return dataclasses.replace(BLUEPRINT, **changes)


def layer(**changes: object) -> Blueprint:
    return changed(layers=(*LAYERS[:2], dataclasses.replace(LAYERS[2], **changes)))


def activation(**changes: object) -> Blueprint:
    return changed(activations=(dataclasses.replace(BLUEPRINT.activations[0], **changes),))


def parameter(**changes: object) -> Blueprint:
    return changed(parameters=(dataclasses.replace(BLUEPRINT.parameters[0], **changes),))


def sheet(**changes: object) -> Blueprint:
    return changed(safety=dataclasses.replace(SHEET, **changes))


def pairs(key: str, *entries: object) -> Blueprint:
    return changed(relation_pairs={key: entries})


@pytest.mark.parametrize(
    "blueprint",
    [
        BLUEPRINT,
        Blueprint("bare"),
        Blueprint("one layer needs no edges", layers=LAYERS[:1]),
        Blueprint("declared chain", layers=LAYERS, chain=True),
        Blueprint("declared unconnected", layers=LAYERS, layer_edges=()),
        changed(risk=None),
        pairs("seed__reports__global", (4, 0)),
    ],
    ids=lambda blueprint: blueprint.blueprint_id,
)
def test_a_sound_blueprint_passes(blueprint: Blueprint) -> None:
    validate_blueprint(blueprint, **CAPS)


@pytest.mark.parametrize(
    ("blueprint", "field"),
    [
        (changed(blueprint_id=""), "blueprint_id"),
        (changed(blueprint_id="x" * 257), "blueprint_id"),
        (changed(revision=-1), "revision"),
        (changed(tier=1), "tier"),
        (changed(risk=1.5), "risk"),
        (changed(risk=-0.1), "risk"),
        (changed(risk=math.nan), "risk"),
        (changed(risk="high"), "risk"),
        (changed(stage=10), "stage"),
        (changed(stage=-1), "stage"),
        (changed(candidate_score=math.inf), "candidate_score"),
        (changed(optimizer_family="x" * 257), "optimizer_family"),
        (sheet(risk_score=2.0), "safety.risk_score"),
        (sheet(risk_score=math.nan), "safety.risk_score"),
        (sheet(hazard_band="SEVERE"), "safety.hazard_band"),
        (sheet(handling_class="loose"), "safety.handling_class"),
        (layer(layer_id=""), "layers[2].layer_id"),
        (layer(layer_id="layer-0"), "layers"),
        (layer(layer_id="x" * 257), "layers[2].layer_id"),
        (layer(depth=-1), "layers[2].depth"),
        (layer(depth=None), "layers[2].depth"),
        (layer(parameter_count=-1), "layers[2].parameter_count"),
        (layer(latency_ms=math.nan), "layers[2].latency_ms"),
        (layer(weight_norm="x"), "layers[2].weight_norm"),
        (activation(activation_id=""), "activations[0].activation_id"),
        (activation(computational_cost=-1.0), "activations[0].computational_cost"),
        (activation(gradient_flow=math.inf), "activations[0].gradient_flow"),
        (changed(activations=BLUEPRINT.activations * 2), "activations"),
        (parameter(name=""), "parameters[0].name"),
        (parameter(min=2.0), "parameters[0]"),
        (parameter(max=math.nan), "parameters[0].max"),
        (parameter(max=None), "parameters[0].max"),
        (changed(parameters=BLUEPRINT.parameters[:1] * 2), "parameters"),
        (changed(layer_edges=(LayerEdge(0, 3),)), "layer_edges[0].target"),
        (changed(layer_edges=(LayerEdge(-1, 0),)), "layer_edges[0].source"),
        (changed(layer_edges=(LayerEdge(True, 0),)), "layer_edges[0].source"),
        (changed(layer_edges=(LayerEdge(0, 1, math.nan),)), "layer_edges[0].strength"),
        (changed(chain=True), "chain"),
        (changed(layer_edges=None), "layer_edges"),
        (changed(monitored_layers=(MonitoredLayer("s", 3),)), "monitored_layers[0].layer_index"),
        (changed(monitored_layers=(MonitoredLayer("", 0),)), "monitored_layers[0].seed_id"),
        (changed(monitor_thresholds={"depth_max": 1.0}), "monitor_thresholds"),
        (changed(monitor_thresholds={"risk_max": math.nan}), "monitor_thresholds['risk_max']"),
        (changed(allowed_parameters={"lr": (1.0, 0.0)}), "allowed_parameters['lr']"),
        (changed(allowed_parameters={"lr": (0.0, math.inf)}), "allowed_parameters['lr'][1]"),
        (changed(allowed_parameters={"": (0.0, 1.0)}), "allowed_parameters"),
        (changed(allowed_blending_methods=("",)), "allowed_blending_methods[0]"),
        (
            changed(allowed_parameters_by_seed_id={"s": ("momentum",)}),
            "allowed_parameters_by_seed_id['s']",
        ),
        (changed(allowed_parameters_by_seed_id={"": ()}), "allowed_parameters_by_seed_id"),
        (pairs("layers", (0, 0)), "relation_pairs"),
        (
            pairs("layer__feeds__activation", (0, 0), (3, 0)),
            "relation_pairs['layer__feeds__activation'][1]",
        ),
        (
            pairs("layer__feeds__activation", (0, 1)),
            "relation_pairs['layer__feeds__activation'][0]",
        ),
        (
            pairs("activation__configures__parameter", (0, 2)),
            "relation_pairs['activation__configures__parameter'][0]",
        ),
        (
            pairs("blueprint__composes__layer", (-1, 0)),
            "relation_pairs['blueprint__composes__layer'][0]",
        ),
        (
            pairs("layer__feeds__activation", (0, 0, 0)),
            "relation_pairs['layer__feeds__activation'][0]",
        ),
    ],
)
def test_a_breach_is_refused_and_its_field_named(blueprint: Blueprint, field: str) -> None:
    with pytest.raises(InvalidBlueprintError) as caught:
        validate_blueprint(blueprint, **CAPS)
    assert caught.value.field == field
    assert field in str(caught.value)


@pytest.mark.parametrize(
    ("blueprint", "field"),
    [
        (None, "blueprint"),
        (changed(name=b"bytes"), "name"),
        (changed(description="\ud800"), "description"),
        (changed(stage=10**5000), "stage"),
        (changed(stage=True), "stage"),
        (changed(quarantine_only="no"), "quarantine_only"),
        (changed(approved=1), "approved"),
        (changed(candidate_score=10**400), "candidate_score"),
        (changed(layers=None), "layers"),
        (changed(layers=[*LAYERS]), "layers"),
        (changed(layers=(None,)), "layers[0]"),
        (changed(layers=(LayerSpec,)), "layers[0]"),
        (layer(type=None), "layers[2].type"),
        (layer(weight_norm=True), "layers[2].weight_norm"),
        (changed(parameters=1.5), "parameters"),
        (parameter(default="x"), "parameters[0].default"),
        (changed(layer_edges={}), "layer_edges"),
        (changed(layer_edges=((0, 1),)), "layer_edges[0]"),
        (changed(monitored_layers=("seed-a",)), "monitored_layers[0]"),
        (changed(monitor_thresholds={"risk_max": None}), "monitor_thresholds['risk_max']"),
        (changed(monitor_thresholds={10**5000: 0.5}), "monitor_thresholds"),
        (changed(allowed_parameters=()), "allowed_parameters"),
        (changed(allowed_parameters={"lr": (0.0,)}), "allowed_parameters['lr']"),
        (changed(allowed_parameters={"lr": (0.0, None)}), "allowed_parameters['lr'][1]"),
        (changed(allowed_parameters_by_seed_id={"s": "lr"}), "allowed_parameters_by_seed_id['s']"),
        (changed(allowed_blending_methods="linear"), "allowed_blending_methods"),
        (changed(relation_pairs={"a__b__c": None}), "relation_pairs['a__b__c']"),
        (pairs("a__b__c", (0, 0.5)), "relation_pairs['a__b__c'][0][1]"),
        (changed(safety=0.5), "safety"),
        (sheet(provenance=None), "safety.provenance"),
    ],
)
def test_a_field_of_the_wrong_kind_is_refused_by_its_path(blueprint: Blueprint, field: str) -> None:
    with pytest.raises(InvalidBlueprintError) as caught:
        validate_blueprint(blueprint, **CAPS)
    assert caught.value.field == field
    assert str(caught.value).startswith(f"{field} is ")


def test_numbers_may_be_whole_where_they_may_be_fractions() -> None:
    validate_blueprint(layer(weight_norm=1), **CAPS)
    validate_blueprint(changed(risk=1, allowed_parameters={"lr": (0, 1)}), **CAPS)


@pytest.mark.parametrize(
    ("blueprint", "cap", "name", "count"),
    [
        (BLUEPRINT, {"max_layers": 2}, "layers", 3),
        (BLUEPRINT, {"max_activations": 0}, "activations", 1),
        (BLUEPRINT, {"max_parameters": 1}, "parameters", 2),
        (BLUEPRINT, {"max_edges": 1}, "layer_edges", 2),
        (changed(layer_edges=None, chain=True), {"max_edges": 1}, "layer_edges", 2),
        (
            changed(monitored_layers=BLUEPRINT.monitored_layers * 3),
            {"max_edges": 2},
            "monitored_layers",
            3,
        ),
        (
            pairs("layer__activates__activation", (0, 0), (1, 0), (2, 0)),
            {"max_edges": 2},
            "relation_pairs['layer__activates__activation']",
            3,
        ),
    ],
)
def test_more_nodes_or_edges_than_a_cap_are_refused(
    blueprint: Blueprint, cap: dict[str, int], name: str, count: int
) -> None:
    with pytest.raises(GraphCapacityError) as caught:
        validate_blueprint(blueprint, **{**CAPS, **cap})
    (limit,) = cap.values()
    assert (caught.value.name, caught.value.count, caught.value.cap) == (name, count, limit)


def test_the_safety_sheet_has_the_last_word_on_risk() -> None:
    assert BLUEPRINT.effective_risk == 0.25
    assert changed(safety=None).effective_risk == 0.5


def test_only_an_approved_blueprint_outside_quarantine_is_selectable() -> None:
    assert BLUEPRINT.selectable
    assert changed(approval_required=True).selectable
    assert not changed(approval_required=True, approved=False).selectable
    assert not changed(quarantine_only=True).selectable
    assert not sheet(handling_class=HandlingClass.QUARANTINE).selectable


# st.text gives no lone surrogates, which neither JSON readers nor UTF-8 accept.
_text = st.text(max_size=8)
_finite = st.floats(allow_nan=False, allow_infinity=False)
_index = st.integers(0, 2**53)


def _tuples(values: st.SearchStrategy) -> st.SearchStrategy:
    return st.lists(values, max_size=3).map(tuple)


_layers = st.builds(
    LayerSpec,
    _text,
    _text,
    _index,
    _text,
    st.none() | _finite,
    st.none() | _index,
    *(st.none() | _finite for _ in range(3)),
    *(st.none() | _index for _ in range(2)),
)
_blueprints = st.builds(
    Blueprint,
    blueprint_id=_text,
    name=_text,
    revision=_index,
    tier=st.sampled_from(BlueprintTier),
    risk=st.none() | _finite,
    stage=_index,
    quarantine_only=st.booleans(),
    candidate_score=st.none() | _finite,
    allowed_parameters=st.dictionaries(_text, st.tuples(_finite, _finite), max_size=3),
    layers=_tuples(_layers),
    activations=_tuples(
        st.builds(ActivationSpec, _text, _text, *(st.none() | _finite for _ in range(4)))
    ),
    parameters=_tuples(
        st.builds(ParameterSpec, _text, _finite, _finite, st.none() | _finite, st.none() | _finite)
    ),
    layer_edges=st.none() | _tuples(st.builds(LayerEdge, _index, _index, st.none() | _finite)),
    chain=st.booleans(),
    monitored_layers=_tuples(st.builds(MonitoredLayer, _text, _index, st.none() | _finite)),
    monitor_thresholds=st.dictionaries(_text, _finite, max_size=2),
    relation_pairs=st.dictionaries(_text, _tuples(st.tuples(_index, _index)), max_size=2),
    allowed_blending_methods=_tuples(_text),
    allowed_parameters_by_seed_id=st.dictionaries(_text, _tuples(_text), max_size=2),
    safety=st.none()
    | st.builds(
        SafetySheet, _finite, st.sampled_from(HazardBand), st.sampled_from(HandlingClass), _text
    ),
)


@given(blueprint=_blueprints)
def test_a_blueprint_comes_back_from_json(blueprint: Blueprint) -> None:
    text = blueprint_to_json(blueprint)
    assert blueprint_from_json(text) == blueprint
    assert blueprint_to_json(blueprint_from_json(text)) == text


@given(blueprint=_blueprints)
def test_validation_raises_nothing_but_its_own_errors(blueprint: Blueprint) -> None:
    try:
        validate_blueprint(blueprint, **CAPS)
    except (InvalidBlueprintError, GraphCapacityError):
        return
    assert blueprint.blueprint_id


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("[", "blueprint"),
        ("{}", "blueprint_id"),
        ('{"blueprint_id": 3}', "blueprint_id"),
        ('{"blueprint_id": "\\ud800"}', "blueprint"),
        ('{"blueprint_id": "b", "colour": 1}', "colour"),
        ('{"blueprint_id": "b", "risk": NaN}', "risk"),
        ('{"blueprint_id": "b", "risk": "0.5"}', "risk"),
        ('{"blueprint_id": "b", "stage": 1.5}', "stage"),
        ('{"blueprint_id": "b", "tier": 9}', "tier"),
        ('{"blueprint_id": "b", "chain": 1}', "chain"),
        (
            '{"blueprint_id": "b", "allowed_parameters": {"x": [0, 1e999]}}',
            "allowed_parameters.x.1",
        ),
        (
            '{"blueprint_id": "b", "layers": [{"layer_id": "l", "type": "t", "depth": 0, "z": 1}]}',
            "layers.0.z",
        ),
        ('{"blueprint_id": "b", "layer_edges": [{"source": 0}]}', "layer_edges.0.target"),
    ],
)
def test_malformed_json_is_refused_and_its_field_named(text: str, field: str) -> None:
    with pytest.raises(InvalidBlueprintError) as caught:
        blueprint_from_json(text)
    assert caught.value.field == field


def test_what_json_cannot_say_is_refused_on_the_way_out() -> None:
    with pytest.raises(InvalidBlueprintError, match=r"layers\[2\]\.latency_ms"):
        blueprint_to_json(layer(latency_ms=math.nan))
    with pytest.raises(InvalidBlueprintError, match="risk"):
        blueprint_to_json(changed(risk="high"))


@pytest.mark.parametrize("value", [None, "host", b"host", {"blueprint_id": "host"}, Blueprint])
def test_what_is_no_blueprint_has_no_json(value: object) -> None:
    with pytest.raises(InvalidBlueprintError, match="give a Blueprint") as caught:
        blueprint_to_json(value)  # type: ignore[arg-type]
    assert caught.value.field == "blueprint"
    assert caught.value.value == value


def test_parts_of_another_kind_have_no_json() -> None:
    with pytest.raises(InvalidBlueprintError) as caught:
        blueprint_to_json(changed(layers=({"layer_id": "l"},)))
    assert caught.value.field == "layers[0]"


def test_the_published_schema_is_the_one_in_force() -> None:
    published = Path(tamiyo_jax.__file__).parents[1] / "docs" / "blueprint.schema.json"
    text = published.read_text()
    assert json.loads(text) == blueprint_json_schema()
    assert text == json.dumps(blueprint_json_schema(), indent=2, sort_keys=True) + "\n"


def test_the_schema_forbids_unknown_names_everywhere() -> None:
    schema = blueprint_json_schema()
    records = [schema, *(part for part in schema["$defs"].values() if part["type"] == "object")]
    assert len(records) == 7
    assert all(record["additionalProperties"] is False for record in records)
