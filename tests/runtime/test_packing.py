"""Pytrees of arrays in one buffer."""

from __future__ import annotations

from typing import NamedTuple

import jax
import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from tamiyo_jax.runtime.packing import Packing


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


@given(TREES)
def test_a_tree_comes_out_as_it_went_in(tree: object) -> None:
    packing = Packing(tree)
    packed = packing.pack(tree)
    assert packed is not None
    back = packing.unpack(packed)
    assert jax.tree.structure(back) == jax.tree.structure(tree)
    for before, after in zip(jax.tree.leaves(tree), jax.tree.leaves(back), strict=True):
        assert (before.dtype, before.shape) == (after.dtype, after.shape)
        assert before.tobytes() == after.tobytes()
        assert not after.flags.writeable


def test_what_is_not_like_the_example_is_not_packed() -> None:
    example = Pair(np.zeros(3, np.float32), [np.ones((), np.int32)])
    packing = Packing(example)
    assert packing.pack(example) is not None
    for other in (
        Pair(np.zeros(4, np.float32), [np.ones((), np.int32)]),
        Pair(np.zeros(3, np.float64), [np.ones((), np.int32)]),
        Pair(np.zeros(3, np.float32), np.ones((), np.int32)),
        Pair(np.zeros(3, np.float32), [1]),
    ):
        assert packing.pack(other) is None
    for unfit in (Pair(1, 2.0), [np.array([object()])]):
        assert Packing(unfit).pack(unfit) is None


def test_views_of_strided_arrays_are_packed_by_value() -> None:
    tree = [np.arange(12, dtype=np.float32).reshape(3, 4).T]
    packing = Packing(tree)
    packed = packing.pack(tree)
    assert packed is not None
    np.testing.assert_array_equal(packing.unpack(packed)[0], tree[0])
