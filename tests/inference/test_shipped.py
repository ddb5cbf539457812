"""The policy that the package brings along: its files, and that it decides."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from making import SECRET, Clock, open_tamiyo, story

from tamiyo_jax.config import PolicyConfig, TamiyoConfig
from tamiyo_jax.contracts import PolicyUpdate, Secret, sign_update
from tamiyo_jax.graph import schema_digest
from tamiyo_jax.inference import SHIPPED, SHIPPED_VERSION, shipped_params
from tamiyo_jax.policy import init_params

pytestmark = pytest.mark.usefixtures("standard_promotion")

PACKETS = story(5)


def test_the_card_names_the_parameters_and_the_schema() -> None:
    card = json.loads((SHIPPED / "card.json").read_text())
    payload = (SHIPPED / "params.safetensors").read_bytes()
    assert card["sha256"] == hashlib.sha256(payload).hexdigest()
    assert card["schema"] == schema_digest()
    assert card["limits"]


def test_both_forms_hold_the_same_parameters_in_less_than_ten_megabytes() -> None:
    params = shipped_params()
    target = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), dict(params))
    with ocp.StandardCheckpointer() as checkpointer:
        restored = checkpointer.restore((SHIPPED / "orbax").absolute(), target)
    jax.tree.map(np.testing.assert_array_equal, params, restored)
    files = [path for path in SHIPPED.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 10_000_000


def test_the_graph_policy_without_parameters_is_the_shipped_one(tmp_path: Path) -> None:
    config = TamiyoConfig()  # of the reference widths, which do not matter to it
    with open_tamiyo(tmp_path, policy="graph", config=config) as tamiyo:
        decisions = [tamiyo.step(packet) for packet in PACKETS]
    assert all(np.isfinite(one.value) for one in decisions)
    with open_tamiyo(tmp_path / "given", policy="graph", params=shipped_params()) as tamiyo:
        given = [tamiyo.step(packet) for packet in PACKETS]
    assert [one.value for one in decisions] == [one.value for one in given]


def test_a_live_run_is_updated_to_the_shipped_policy(tmp_path: Path) -> None:
    update = PolicyUpdate(
        policy_id="to-the-shipped",
        training_run_id="learning",
        issued_at_ns=Clock()(),
        policy_version=SHIPPED_VERSION,
        payload=(SHIPPED / "params.safetensors").read_bytes(),
        schema_digest=schema_digest(),
    )
    untrained = init_params(PolicyConfig.small(), jax.random.key(0))
    with open_tamiyo(tmp_path / "updated", policy="graph", params=untrained) as tamiyo:
        first = tamiyo.step(PACKETS[0]).value
        tamiyo.update_policy(sign_update(update, Secret(SECRET)))
        updated = [tamiyo.step(packet).value for packet in PACKETS[1:]]
        assert tamiyo.state.policies[-1].version == SHIPPED_VERSION
    with open_tamiyo(tmp_path / "shipped", policy="graph") as tamiyo:
        expected = [tamiyo.step(packet).value for packet in PACKETS]
    assert updated == expected[1:]
    assert first != expected[0]
