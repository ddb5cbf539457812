"""Policy updates: which are refused and why, and when the others take effect."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from making import SECRET, Clock, make_config, make_packet, open_tamiyo, story
from safetensors.numpy import save

from tamiyo_jax.contracts import PolicyUpdate, Secret, encode_policy_update, sign_update
from tamiyo_jax.errors import PersistenceError, PolicyUpdateRejectedError
from tamiyo_jax.graph import schema_digest
from tamiyo_jax.journal import RecordType, read_journal
from tamiyo_jax.policy import arrays_from_bytes, init_params, params_to_bytes
from tamiyo_jax.replay import read_history
from tamiyo_jax.service import Tamiyo
from tamiyo_jax.telemetry import MemorySink

CONFIG = make_config()
NOW = Clock()()
FIRST = init_params(CONFIG.policy, jax.random.key(0))
SECOND = init_params(CONFIG.policy, jax.random.key(1))
THIRD = init_params(CONFIG.policy, jax.random.key(2))


def make_update(policy_id: str = "p1", params: Any = SECOND, **fields: Any) -> PolicyUpdate:
    secret = fields.pop("secret", SECRET)
    update = PolicyUpdate(
        policy_id=policy_id,
        training_run_id="elsewhere",
        issued_at_ns=NOW,
        policy_version=f"learned-{policy_id}",
        payload=params_to_bytes(params),
        schema_digest=schema_digest(),
    )
    return sign_update(replace(update, **fields), Secret(secret))


@contextmanager
def graph_tamiyo(directory: Path, **arguments: Any) -> Iterator[Tamiyo]:
    defaults: dict[str, Any] = {"policy": "graph", "params": FIRST, "config": CONFIG}
    with open_tamiyo(directory, **(defaults | arguments)) as tamiyo:
        yield tamiyo


def value(tamiyo: Tamiyo, step: int = 0) -> float:
    decision = tamiyo.step(story(step + 1)[step])
    assert decision.value is not None
    return decision.value


def values_of(directory: Path, params: Any, count: int) -> list[float]:
    """What parameters say of the first packets of the story."""
    with graph_tamiyo(directory, params=params) as tamiyo:
        return [value(tamiyo, step) for step in range(count)]


def break_update(change: Any) -> Any:
    """Parameters with one array changed."""
    leaves, structure = jax.tree.flatten(jax.device_get(SECOND))
    leaves[0] = change(np.array(leaves[0]))
    return jax.tree.unflatten(structure, leaves)


def fill_with_nan(array: np.ndarray) -> np.ndarray:
    return np.full_like(array, np.nan)


def widen(array: np.ndarray) -> np.ndarray:
    return np.concatenate([array, array])


def overflow(array: np.ndarray) -> np.ndarray:
    return np.full_like(array, np.finfo(np.float32).max)


HOUR_NS = 3_600_000_000_000
REFUSED = {
    "not signed": (lambda: replace(make_update(), signature=""), "bad_signature"),
    "signed with another secret": (
        lambda: make_update(secret=b"a secret of another process"),
        "bad_signature",
    ),
    "changed after signing": (
        lambda: replace(make_update(), policy_version="another"),
        "bad_signature",
    ),
    "too old": (lambda: make_update(issued_at_ns=NOW - 2 * HOUR_NS), "stale_update"),
    "from the future": (lambda: make_update(issued_at_ns=NOW + HOUR_NS), "stale_update"),
    "without a time": (lambda: make_update(issued_at_ns=None), "stale_update"),
    "nameless": (lambda: make_update(""), "version_mismatch"),
    "without a version": (lambda: make_update(policy_version=""), "version_mismatch"),
    "of another schema": (lambda: make_update(schema_digest="0" * 64), "schema_mismatch"),
    "not safetensors": (lambda: make_update(payload=b"\x80\x04pickle"), "invalid_payload"),
    "empty": (lambda: make_update(payload=b""), "invalid_payload"),
    "far too large": (lambda: make_update(payload=bytes(1 << 24)), "invalid_payload"),
    "of another network": (
        lambda: make_update(payload=params_to_bytes({"a": np.ones(3, np.float32)})),
        "shape_mismatch",
    ),
    "of another width": (lambda: make_update(params=break_update(widen)), "shape_mismatch"),
    "half precision": (
        lambda: make_update(params=break_update(lambda a: a.astype(np.float16))),
        "shape_mismatch",
    ),
    "not finite": (lambda: make_update(params=break_update(fill_with_nan)), "nonfinite"),
    "bytes that are none": (lambda: b"\xff\xff", "invalid_payload"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_an_update_is_refused_for_a_reason_and_the_live_policy_stays(
    case: str, tmp_path: Path
) -> None:
    make, reason = REFUSED[case]
    sink = MemorySink()
    with graph_tamiyo(tmp_path, sinks=(sink,)) as tamiyo:
        before = tamiyo.state
        with pytest.raises(PolicyUpdateRejectedError) as raised:
            tamiyo.update_policy(make())
        assert raised.value.reason == reason
        assert tamiyo.state == before
        assert tamiyo.params is FIRST
    events = [event for packet in sink.packets for event in packet.events]
    assert [event.attributes["reason"] for event in events] == [reason]
    assert not list((tmp_path / "policies").iterdir())


def test_a_guard_without_parameters_says_why_it_takes_no_update(tmp_path: Path) -> None:
    with (
        graph_tamiyo(tmp_path, params=None, mode="guard") as tamiyo,
        pytest.raises(PolicyUpdateRejectedError, match="open it with params") as raised,
    ):
        tamiyo.update_policy(make_update())
    assert raised.value.reason == "shape_mismatch"


def test_a_policy_that_fails_its_trial_never_decides(tmp_path: Path) -> None:
    with graph_tamiyo(tmp_path) as tamiyo:
        tamiyo.step(make_packet())
        everything = jax.tree.map(overflow, jax.device_get(SECOND))
        with pytest.raises(PolicyUpdateRejectedError) as raised:
            tamiyo.update_policy(make_update(params=everything))
        assert raised.value.reason == "trial_failed"
        assert tamiyo.state.risk.inference.failures == 0
        assert tamiyo.params is FIRST


def test_an_update_decides_from_the_next_step_on_and_after_a_restart(tmp_path: Path) -> None:
    first = values_of(tmp_path / "a", FIRST, 1)
    second = values_of(tmp_path / "b", SECOND, 3)
    with graph_tamiyo(tmp_path / "run") as tamiyo:
        tamiyo.update_policy(make_update())
        assert value(tamiyo, 0) == second[0] != first[0]
        command = tamiyo.step(story(2)[1]).command
        assert command is None or command.annotations["policy_version"] == "learned-p1"
    with graph_tamiyo(tmp_path / "run") as tamiyo:
        assert value(tamiyo, 2) == second[2]
        assert "learned-p1" in repr(tamiyo)


def test_an_update_comes_over_the_wire_too(tmp_path: Path) -> None:
    with graph_tamiyo(tmp_path) as tamiyo:
        tamiyo.update_policy(encode_policy_update(make_update()))
        assert tamiyo.state.policies[-1].policy_id == "p1"


def test_an_update_is_not_applied_twice_even_after_a_restart_and_a_restore(
    tmp_path: Path,
) -> None:
    with graph_tamiyo(tmp_path) as tamiyo:
        earlier = tamiyo.state
        tamiyo.update_policy(make_update())
        tamiyo.restore(earlier)
        assert tamiyo.params is FIRST
    with graph_tamiyo(tmp_path) as tamiyo:
        with pytest.raises(PolicyUpdateRejectedError) as raised:
            tamiyo.update_policy(make_update())
        assert raised.value.reason == "replayed"


def test_rolling_back_returns_to_the_policy_before(tmp_path: Path) -> None:
    with graph_tamiyo(tmp_path) as tamiyo:
        with pytest.raises(PolicyUpdateRejectedError, match="nothing to roll back"):
            tamiyo.rollback_policy()
        tamiyo.update_policy(make_update("p1", SECOND))
        tamiyo.update_policy(make_update("p2", THIRD))
        tamiyo.rollback_policy()
        assert [policy.policy_id for policy in tamiyo.state.policies] == ["p1"]
        np.testing.assert_array_equal(
            *(jax.tree.leaves(tree)[0] for tree in (tamiyo.params, SECOND))
        )
        tamiyo.rollback_policy()
        assert tamiyo.params is FIRST
    types = [record.type for record in read_journal(tmp_path).records]
    assert types.count(RecordType.POLICY_UPDATE) == 2
    assert types.count(RecordType.OPERATOR) == 2


def test_a_restored_state_brings_its_policy_along(tmp_path: Path) -> None:
    second = values_of(tmp_path / "b", SECOND, 1)
    with graph_tamiyo(tmp_path / "run") as tamiyo:
        tamiyo.update_policy(make_update())
        saved = tamiyo.state
        tamiyo.rollback_policy()
        tamiyo.restore(saved)
        assert value(tamiyo, 0) == second[0]


def test_rolling_back_returns_to_parameters_that_came_with_a_restored_state(
    tmp_path: Path,
) -> None:
    second = values_of(tmp_path / "b", SECOND, 1)
    with graph_tamiyo(tmp_path / "run") as tamiyo:
        start = tamiyo.state
        tamiyo.restore(start, SECOND)
        tamiyo.update_policy(make_update(params=THIRD))
        tamiyo.rollback_policy()
        assert value(tamiyo) == second[0]
        tamiyo.restore(start)
        assert value(tamiyo) == second[0]


def test_a_guard_opened_with_a_state_keeps_the_parameters_of_its_update(tmp_path: Path) -> None:
    second = values_of(tmp_path / "b", SECOND, 1)
    with graph_tamiyo(tmp_path / "run") as tamiyo:
        tamiyo.update_policy(make_update())
        saved = tamiyo.state
    with graph_tamiyo(tmp_path / "run", params=None, mode="guard", state=saved) as tamiyo:
        assert tamiyo.state.policies == saved.policies
    with graph_tamiyo(tmp_path / "run") as tamiyo:
        assert value(tamiyo) == second[0]


def test_parameters_given_with_a_restored_state_stay_after_a_restart(tmp_path: Path) -> None:
    third = values_of(tmp_path / "c", THIRD, 2)
    with graph_tamiyo(tmp_path / "elsewhere") as tamiyo:
        tamiyo.update_policy(make_update())
        saved = tamiyo.state
    with graph_tamiyo(tmp_path / "run") as tamiyo:
        tamiyo.restore(saved, THIRD)
        assert value(tamiyo, 0) == third[0]
    with graph_tamiyo(tmp_path / "run") as tamiyo:
        assert value(tamiyo, 1) == third[1]
    with graph_tamiyo(tmp_path / "new", params=THIRD, state=saved) as tamiyo:
        assert value(tamiyo, 0) == third[0]


def test_parameters_that_are_damaged_on_disk_are_not_run(tmp_path: Path) -> None:
    with graph_tamiyo(tmp_path) as tamiyo:
        tamiyo.update_policy(make_update())
    (file,) = (tmp_path / "policies").iterdir()
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with (
        pytest.raises(PersistenceError, match="damaged"),
        graph_tamiyo(tmp_path),
    ):
        pass


@pytest.mark.slow
def test_a_new_policy_is_tried_in_a_fresh_worker_while_steps_go_on(tmp_path: Path) -> None:
    second = values_of(tmp_path / "b", SECOND, 2)
    with graph_tamiyo(tmp_path / "run", isolation="process") as tamiyo:
        value(tamiyo, 0)
        workers = tamiyo._steps.deployed.runner.pool.pids()  # type: ignore[attr-defined]
        tamiyo.update_policy(make_update())
        assert not set(workers) & set(tamiyo._steps.deployed.runner.pool.pids())  # type: ignore[attr-defined]
        assert value(tamiyo, 1) == pytest.approx(second[1], abs=1e-6)


def test_a_restore_keeps_the_digest_of_an_update_and_the_history_before_it(tmp_path: Path) -> None:
    arrays = arrays_from_bytes(params_to_bytes(SECOND))
    payload = save(arrays, metadata={"learned": "elsewhere"})
    assert payload != params_to_bytes(SECOND)
    with graph_tamiyo(tmp_path) as tamiyo:
        value(tamiyo, 0)
        tamiyo.update_policy(make_update(payload=payload))
        for step in (1, 2, 3):
            value(tamiyo, step)
        saved = tamiyo.state
        value(tamiyo, 4)
        tamiyo.restore(saved, SECOND)
        assert tamiyo.state.policies == saved.policies
        value(tamiyo, 4)
    history = read_history(tmp_path)
    assert len(history) == 6  # five steps and the update


def test_a_restore_with_other_parameters_keeps_the_history(tmp_path: Path) -> None:
    with graph_tamiyo(tmp_path) as tamiyo:
        tamiyo.update_policy(make_update())
        for step in (0, 1):
            value(tamiyo, step)
        saved = tamiyo.state
        tamiyo.restore(saved, THIRD)
        assert tamiyo.state.policies != saved.policies
        value(tamiyo, 2)
    assert len(read_history(tmp_path)) == 4
