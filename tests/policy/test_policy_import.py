"""Parameters from PyTorch, and ours in files."""

from __future__ import annotations

import pickle

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from tamiyo_jax.config import PolicyConfig
from tamiyo_jax.errors import CheckpointMismatchError
from tamiyo_jax.policy import (
    export_params,
    import_state_dict,
    init_params,
    load_params,
    load_state_dict,
)


@pytest.fixture
def state_dict(golden):
    arrays = load_state_dict(golden / "policy_small.npz")
    return {k.removeprefix("params/"): x for k, x in arrays.items() if k.startswith("params/")}


def test_widths_and_heads_are_read_off_the_tensors(state_dict):
    config, params = import_state_dict(state_dict, PolicyConfig(dropout=0.1))
    assert (config.sage_width, config.gat_width, config.heads) == (32, 16, 4)
    assert config.dropout == 0.1
    assert len(jax.tree.leaves(params)) == len(state_dict)


def test_a_linear_weight_is_transposed(state_dict):
    _, params = import_state_dict(state_dict)
    np.testing.assert_array_equal(
        params["risk_logits"]["kernel"], state_dict["_risk_head.weight"].T
    )


def test_missing_unexpected_and_misshapen_tensors_are_all_listed(state_dict):
    del state_dict["_risk_head.bias"], state_dict["_value_head.bias"]
    state_dict["_extra"] = np.zeros(1)
    with pytest.raises(CheckpointMismatchError) as caught:
        import_state_dict(state_dict)
    assert caught.value.missing == ["_risk_head.bias", "_value_head.bias"]
    assert caught.value.unexpected == ["_extra"]


def test_transposed_and_short_tensors_are_listed_as_wrong(state_dict):
    state_dict["_risk_head.weight"] = state_dict["_risk_head.weight"].T
    state_dict["_value_head.bias"] = np.zeros(2, np.float32)
    with pytest.raises(CheckpointMismatchError) as caught:
        import_state_dict(state_dict)
    assert [text.split(":")[0] for text in caught.value.wrong] == [
        "_risk_head.weight",
        "_value_head.bias",
    ]


def test_a_state_dict_loads_alike_from_npz_and_safetensors(state_dict, tmp_path):
    np.savez(tmp_path / "a.npz", **state_dict)
    save_file(
        {k: np.ascontiguousarray(x) for k, x in state_dict.items()}, tmp_path / "a.safetensors"
    )
    one, other = (load_state_dict(tmp_path / f"a.{kind}") for kind in ("npz", "safetensors"))
    assert one.keys() == other.keys()
    assert all(np.array_equal(one[name], other[name]) for name in one)


class Bomb:
    def __reduce__(self):
        return (pytest.fail, ("a pickle was opened",))


def test_pickles_are_refused_in_any_wrapping(tmp_path):
    (tmp_path / "model.pt").write_bytes(pickle.dumps(Bomb()))
    (tmp_path / "model.safetensors").write_bytes(pickle.dumps(Bomb()))
    (tmp_path / "raw.npz").write_bytes(pickle.dumps(Bomb()))
    np.savez(tmp_path / "objects.npz", a=np.array([Bomb()], dtype=object))
    for path in sorted(tmp_path.iterdir()):
        with pytest.raises(CheckpointMismatchError):
            load_state_dict(path)


def test_our_parameters_survive_a_file(tmp_path):
    config = PolicyConfig.small()
    params = init_params(config, jax.random.key(0))
    export_params(params, tmp_path / "p.safetensors")
    back = load_params(tmp_path / "p.safetensors", config)
    assert jax.tree.all(jax.tree.map(lambda x, y: bool(np.array_equal(x, y)), dict(params), back))


def test_a_file_of_other_widths_is_refused(tmp_path):
    export_params(init_params(PolicyConfig.small(), jax.random.key(0)), tmp_path / "p.safetensors")
    wider = PolicyConfig.small().model_copy(update={"gat_width": 8})
    with pytest.raises(CheckpointMismatchError, match="of another shape or dtype"):
        load_params(tmp_path / "p.safetensors", wider)
