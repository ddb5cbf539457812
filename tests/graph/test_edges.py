"""Relations: the golden edges, and what the data of a blueprint makes of them."""

from __future__ import annotations

import numpy as np
import pytest

from tamiyo_jax.config import GraphConfig
from tamiyo_jax.conformance._edges import compare_edges
from tamiyo_jax.contracts import LayerEdge, MonitoredLayer, SeedStage
from tamiyo_jax.errors import GraphCapacityError, GraphSchemaError
from tamiyo_jax.graph import (
    RELATIONS,
    Registries,
    count_truncated,
    coverage,
    encode,
    expand_layout,
    layout_for,
    missing_features,
)

CONFIG = GraphConfig()


def edges_of(layout, raw, key):
    one = next(relation for relation in RELATIONS if relation.key == key)
    block = layout.edges[key].slice
    real = raw.edge_mask[block]
    ends = zip(
        (raw.senders[block][real] - layout.nodes[one.source].start).tolist(),
        (raw.receivers[block][real] - layout.nodes[one.target].start).tolist(),
        strict=True,
    )
    return list(ends), raw.edges[block][real]


def encode_pairs(packet, blueprint, layout=None, config=CONFIG):
    layout = layout_for(blueprint, config) if layout is None else layout
    raw, _ = encode(packet, blueprint, (), Registries.empty(), layout, config=config)
    return layout, raw


def test_the_golden_edges_hold_written_out_and_complete(golden):
    cases, edges, largest_error = compare_edges(golden / "edges.json")
    assert (cases, edges) == (3, 632)
    assert largest_error <= 1e-5


def test_a_declared_chain_connects_each_layer_to_the_next(make_packet, make_blueprint):
    layout, raw = encode_pairs(make_packet(), make_blueprint())
    ends, values = edges_of(layout, raw, "layer__connects__layer")
    assert ends == [(0, 1), (1, 2)]
    np.testing.assert_allclose(values, [[1 / 3, 2 / 3, 0.25], [2 / 3, 1, 0.25]], rtol=1e-6)


def test_the_strength_of_a_layer_edge_stands_before_the_risk(make_packet, make_blueprint):
    blueprint = make_blueprint(chain=False, layer_edges=(LayerEdge(2, 0, 0.0), LayerEdge(0, 2)))
    layout, raw = encode_pairs(make_packet(), blueprint)
    ends, values = edges_of(layout, raw, "layer__connects__layer")
    assert ends == [(2, 0), (0, 2)]
    np.testing.assert_array_equal(values[:, 2], np.array([0.0, 0.25], np.float32))


def test_pairs_listed_by_the_blueprint_replace_the_complete_relation(make_packet, make_blueprint):
    pairs = {"layer__activates__activation": ((0, 1), (2, 0), (2, 0))}
    layout, raw = encode_pairs(make_packet(), make_blueprint(relation_pairs=pairs))
    ends, values = edges_of(layout, raw, "layer__activates__activation")
    assert ends == [(0, 1), (2, 0), (2, 0)]
    np.testing.assert_allclose(values[:2], [[1 / 3, 1, 1], [1, 0.5, 1]], rtol=1e-6)


@pytest.mark.parametrize("key", ["layer__dreams__layer", "layer__connects__layer"])
def test_pairs_of_a_relation_that_cannot_be_listed_are_an_error(make_blueprint, key):
    with pytest.raises(GraphSchemaError) as caught:
        layout_for(make_blueprint(relation_pairs={key: ((0, 0),)}), CONFIG)
    assert caught.value.name == key


def test_a_layout_made_for_another_blueprint_cannot_drop_listed_pairs(make_packet, make_blueprint):
    listing = make_blueprint(relation_pairs={"layer__feeds__activation": ((0, 0),)})
    with pytest.raises(GraphSchemaError):
        encode_pairs(make_packet(), listing, layout_for(make_blueprint(), CONFIG))


def test_an_empty_allow_list_allows_none_and_no_entry_allows_all(
    make_packet, make_blueprint, make_seed
):
    seeds = tuple(make_seed(i, stage=SeedStage.BLENDING) for i in range(3))
    lists = {"seed-0": (), "seed-1": ("wd",)}
    layout, raw = encode_pairs(
        make_packet(seeds=seeds), make_blueprint(allowed_parameters_by_seed_id=lists)
    )
    assert edges_of(layout, raw, "seed__allowed__parameter")[0] == [(1, 1), (2, 0), (2, 1)]
    assert edges_of(layout, raw, "parameter__associated__seed")[0] == [(1, 1), (0, 2), (1, 2)]


def test_a_monitored_seed_that_the_packet_lacks_is_skipped_and_reported(
    make_packet, make_blueprint
):
    watches = (MonitoredLayer("seed-0", 2, 0.7), MonitoredLayer("gone", 1))
    layout, raw = encode_pairs(make_packet(), make_blueprint(monitored_layers=watches))
    assert edges_of(layout, raw, "seed__monitors__layer")[0] == [(0, 2)]
    assert coverage(layout, raw)["edges.seed_monitors"] == 0.5
    assert {"edges.seed_monitors", "edges.layer_monitored_by"} <= missing_features(layout, raw)


def test_an_allow_list_of_an_absent_seed_is_reported(make_packet, make_blueprint):
    blueprint = make_blueprint(allowed_parameters_by_seed_id={"gone": ("lr",)})
    assert "edges.seed_allowed" in missing_features(*encode_pairs(make_packet(), blueprint))


def test_a_seed_without_a_depth_watches_no_layer_instead_of_the_first(
    make_packet, make_blueprint, make_seed
):
    seeds = (make_seed(0, layer_depth=None), make_seed(1, layer_depth=99))
    layout, raw = encode_pairs(make_packet(seeds=seeds), make_blueprint())
    assert edges_of(layout, raw, "seed__monitors__layer")[0] == [(1, 2)]
    assert coverage(layout, raw)["edges.seed_monitors"] == 0.5


def test_expanding_writes_out_what_is_complete(make_packet, make_blueprint):
    layout = expand_layout(layout_for(make_blueprint(), CONFIG))
    _, raw = encode_pairs(make_packet(), make_blueprint(), layout)
    ends, _ = edges_of(layout, raw, "activation__affects__layer")
    assert ends == [(a, layer) for a in range(2) for layer in range(3)]
    assert all(not layout.is_complete(relation) for relation in RELATIONS)


def test_padding_edges_point_at_the_padding_node_of_their_type(make_packet, make_blueprint):
    layout, raw = encode_pairs(make_packet(), make_blueprint())
    for relation in RELATIONS:
        if layout.is_complete(relation):
            continue
        block = layout.edges[relation.key].slice
        padding = ~raw.edge_mask[block]
        assert set(raw.senders[block][padding]) <= {layout.nodes[relation.source].padding}
        assert set(raw.receivers[block][padding]) <= {layout.nodes[relation.target].padding}
        real = raw.edge_mask[block]
        assert raw.mask[raw.senders[block][real]].all()
        assert raw.mask[raw.receivers[block][real]].all()


def test_more_layers_than_the_cap_is_an_error_that_names_the_type(make_blueprint):
    with pytest.raises(GraphCapacityError, match=r"layer: 3 exceed the cap of 2") as caught:
        layout_for(make_blueprint(), GraphConfig(max_layers=2))
    assert (caught.value.name, caught.value.count, caught.value.cap) == ("layer", 3, 2)


def test_too_many_edges_is_an_error_that_names_the_relation(make_blueprint):
    links = tuple(LayerEdge(0, 1) for _ in range(5))
    with pytest.raises(GraphCapacityError) as caught:
        layout_for(make_blueprint(layer_edges=links), GraphConfig(max_edges=4))
    assert caught.value.name == "layer__connects__layer"


def test_too_many_seeds_is_an_error_at_the_packet(make_packet, make_blueprint):
    with pytest.raises(GraphCapacityError) as caught:
        encode_pairs(make_packet(), make_blueprint(), config=GraphConfig(max_seeds=1))
    assert caught.value.name == "seed"


def test_truncation_drops_dangling_edges_and_lowers_the_coverage(make_packet, make_blueprint):
    config = GraphConfig(max_layers=2, overflow="truncate")
    layout, raw = encode_pairs(make_packet(), make_blueprint(), config=config)
    assert count_truncated(layout, raw) == {"layer": 1}
    reported = coverage(layout, raw)
    assert reported["node.layer"] == pytest.approx(2 / 3)
    assert reported["edges.layer_connects"] == 0.5
    assert edges_of(layout, raw, "layer__connects__layer")[0] == [(0, 1)]
