"""Trees on disk come back as they were, or not at all."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import pytest

from tamiyo_jax.errors import CheckpointMismatchError, PersistenceError
from tamiyo_jax.host import load_tree, save_tree


class Inner(NamedTuple):
    count: object
    pair: tuple


TREE = {
    "inner": Inner(jnp.int32(3), (jnp.arange(4, dtype=jnp.float32), ())),
    "flag": jnp.bool_(True),
    "text": "what was said",
}
LIKE = {
    "inner": Inner(jnp.int32(0), (jnp.zeros(4, jnp.float32), ())),
    "flag": jnp.bool_(False),
    "text": str,
}


def test_arrays_and_texts_come_back_in_their_structure(tmp_path):
    save_tree(tmp_path / "tree", TREE)
    loaded = load_tree(tmp_path / "tree", LIKE)
    assert isinstance(loaded["inner"], Inner)
    assert (int(loaded["inner"].count), bool(loaded["flag"])) == (3, True)
    assert loaded["text"] == "what was said"
    np.testing.assert_array_equal(loaded["inner"].pair[0], TREE["inner"].pair[0])


@pytest.mark.parametrize(
    ("like", "name"),
    [
        ({**LIKE, "flag": jnp.zeros(2, bool)}, "flag"),
        ({**LIKE, "flag": jnp.int32(0)}, "flag"),
        ({**LIKE, "more": jnp.int32(0)}, "more"),
        ({"inner": LIKE["inner"], "text": str}, "flag"),
        ({**LIKE, "inner": LIKE["inner"]._replace(pair=(jnp.zeros(5, jnp.float32), ()))}, "pair"),
    ],
)
def test_other_shapes_dtypes_or_names_are_refused_and_named(tmp_path, like, name):
    save_tree(tmp_path / "tree", TREE)
    with pytest.raises(CheckpointMismatchError, match=name) as raised:
        load_tree(tmp_path / "tree", like)
    assert len(raised.value.names) == 1


def test_nothing_is_overwritten_and_nothing_is_not_a_checkpoint(tmp_path):
    save_tree(tmp_path / "tree", TREE)
    with pytest.raises(PersistenceError, match="never overwritten"):
        save_tree(tmp_path / "tree", TREE)
    with pytest.raises(PersistenceError, match="no checkpoint"):
        load_tree(tmp_path / "other", LIKE)
