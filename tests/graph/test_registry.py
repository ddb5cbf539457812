"""Registries: order of arrival, digests, and what a full one does."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tamiyo_jax.errors import GraphCapacityError, GraphSchemaError
from tamiyo_jax.graph import Registries, Registry

names = st.lists(st.text(max_size=5), max_size=20)


def test_indices_follow_the_order_of_arrival_and_the_empty_key_is_zero():
    registry = Registry("seeds", 16).with_keys(["b", "", "a", "b"])
    assert [registry.index(key) for key in ("", "b", "a")] == [0, 1, 2]


def test_nothing_new_gives_the_same_object_back():
    registries = Registries.empty().with_keys(seeds=["a"], layer_types=["dense"])
    assert registries.with_keys(seeds=["a", ""], layer_types=["dense"]) is registries
    assert registries.seeds.with_keys(["a"]) is registries.seeds


def test_a_full_registry_of_ids_sends_the_rest_to_unseen():
    registry = Registry("seeds", 4).with_keys(["a", "b", "c", "d"])
    assert registry.keys == ("a", "b")
    assert registry.index("c") == registry.index("d") == registry.unseen == 3
    assert "c" not in registry


def test_a_full_closed_vocabulary_is_an_error():
    registry = Registry("layer_types", 3, closed=True).with_keys(["a", "b"])
    with pytest.raises(GraphCapacityError) as caught:
        registry.with_keys(["c"])
    assert (caught.value.name, caught.value.cap) == ("layer_types", 2)


def test_a_closed_vocabulary_has_no_bucket_for_unknown_keys():
    with pytest.raises(GraphSchemaError):
        Registries.empty().layer_types.index("dense")


@given(names, names)
def test_additions_carry_the_growth_through_json(first, second):
    old = Registries.empty().with_keys(seeds=first)
    new = old.with_keys(seeds=second, layer_types=second)
    wire = json.loads(json.dumps(new.additions(old)))
    assert old.apply_additions(wire) == new
    assert Registries.from_plain(json.loads(json.dumps(new.to_plain()))).digest == new.digest


@given(names, names)
def test_an_index_once_given_never_changes(first, second):
    old = Registry("seeds", 64).with_keys(first)
    new = old.with_keys(second)
    assert all(new.index(key) == old.index(key) for key in first)


def test_the_digest_depends_on_the_index_of_each_key():
    digests = {
        Registries.empty().digest,
        Registries.empty().with_keys(seeds=["a", "b"]).digest,
        Registries.empty().with_keys(seeds=["b", "a"]).digest,
        Registries.empty().with_keys(blueprints=["a", "b"]).digest,
    }
    assert len(digests) == 4
    assert all(len(digest) == 64 for digest in digests)


@pytest.mark.parametrize("plain", [{"unknown": ["a"]}, {"seeds": ["a", "a"]}, {"seeds": [""]}])
def test_a_broken_record_is_refused(plain):
    with pytest.raises(GraphSchemaError):
        Registries.from_plain(plain)


def test_additions_of_unrelated_registries_are_refused():
    with pytest.raises(GraphSchemaError):
        Registries.empty().additions(Registries.empty().with_keys(seeds=["a"]))
