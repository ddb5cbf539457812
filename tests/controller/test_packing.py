"""Pytrees as one flat array for each size of an element."""

from __future__ import annotations

import pickle
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from tamiyo_jax.controller import Packed, Packing


class Pair(NamedTuple):
    left: object
    right: object


ARRAYS = arrays.arrays(
    st.sampled_from([np.float32, np.int32, np.bool_, np.uint8]),
    arrays.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=5),
)
TREES = st.recursive(
    ARRAYS, lambda inner: st.lists(inner, max_size=3) | st.builds(Pair, inner, inner), max_leaves=8
)


def test_leaves_that_are_not_arrays_travel_beside_the_others() -> None:
    objects = np.array([object()])
    packing = Packing(Pair(1, [np.ones(2, np.float32), "one", objects]))
    packed = packing.pack(Pair(2, [np.zeros(2, np.float32), "two", objects]))
    assert isinstance(packed, Packed)
    left, (middle, word, same) = packing.unpack(packed)
    assert (left, word) == (2, "two")
    assert list(same) == list(objects)
    np.testing.assert_array_equal(middle, np.zeros(2, np.float32))


@given(TREES)
def test_a_tree_comes_out_as_it_went_in(tree: object) -> None:
    packing = Packing(tree)
    packed = packing.pack(tree)
    assert isinstance(packed, Packed)
    assert len(packed.arrays) <= 2
    back = packing.unpack(packed)
    assert jax.tree.structure(back) == jax.tree.structure(tree)
    for before, after in zip(jax.tree.leaves(tree), jax.tree.leaves(back), strict=True):
        assert (before.dtype, before.shape) == (after.dtype, after.shape)
        assert before.tobytes() == after.tobytes()


@given(TREES)
def test_plain_types_bring_a_packed_tree_back(tree: object) -> None:
    packing = Packing(tree)
    packed = packing.pack(tree)
    plain = packing.to_plain(packed)
    assert {type(part) for part in plain[0]} <= {bytes}
    back = packing.from_plain(pickle.loads(pickle.dumps(plain)))
    for before, after in zip(packed.arrays, back.arrays, strict=True):
        assert before.dtype == after.dtype
        np.testing.assert_array_equal(before, after)


def test_what_was_not_packed_comes_back_from_plain_types_as_it_was() -> None:
    packing = Packing((np.ones(2, np.float32), "one"))
    other = (np.ones(3, np.float32), "one")
    back = packing.from_plain(packing.to_plain(packing.pack(other)))
    assert back is other


def test_elements_of_other_widths_keep_their_bits() -> None:
    tree = {"half": np.asarray(jnp.asarray([1.5, -2.0], jnp.bfloat16)), "double": np.ones(3)}
    packing = Packing(tree)
    back = packing.unpack(packing.from_plain(packing.to_plain(packing.pack(tree))))
    for name, array in tree.items():
        assert back[name].dtype == array.dtype
        assert back[name].tobytes() == array.tobytes()


@given(TREES)
def test_a_traced_tree_is_packed_as_on_the_host(tree: object) -> None:
    packing = Packing(jax.eval_shape(lambda: jax.tree.map(jnp.asarray, tree)))
    for traced, host in zip(packing.flatten(tree), packing.pack(tree).arrays, strict=True):
        assert traced.dtype == host.dtype
        np.testing.assert_array_equal(traced, host)


def test_what_is_not_like_the_example_goes_as_it_is() -> None:
    example = Pair(np.zeros(3, np.float32), [np.ones((), np.int32)])
    packing = Packing(example)
    assert isinstance(packing.pack(example), Packed)
    for other in (
        Pair(np.zeros(4, np.float32), [np.ones((), np.int32)]),
        Pair(np.zeros(3, np.float64), [np.ones((), np.int32)]),
        Pair(np.zeros(3, np.float32), np.ones((), np.int32)),
        Pair(np.zeros(3, np.float32), [1]),
    ):
        assert packing.pack(other) is other
        assert packing.unpack(other) is other


def test_views_of_strided_arrays_are_packed_by_value() -> None:
    tree = [np.arange(12, dtype=np.float32).reshape(3, 4).T]
    packing = Packing(tree)
    packed = packing.pack(tree)
    assert isinstance(packed, Packed)
    np.testing.assert_array_equal(packing.unpack(packed)[0], tree[0])
