"""A run that is resumed goes on from its newest kept state as if it had not ended."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from summaries import equal_trees

from tamiyo_jax import Plug, host
from tamiyo_jax.errors import CheckpointMismatchError, ConfigurationError, PersistenceError
from tamiyo_jax.replay import read_history

pytestmark = pytest.mark.usefixtures("standard_promotion", "unhurried")
XS = jax.random.normal(jax.random.key(0), (80, 16, 4), jnp.float32)
START = {"dense": {"kernel": jnp.ones((4, 1), jnp.float32)}}
TX = host.guarded(optax.chain(optax.adam(1e-2), host.tamiyo_scale()))
EVERY, STOPPED, STEPS = 5, 48, 70


@pytest.fixture
def unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TAMIYO__DEADLINES__INFERENCE_MS", "60000")


def loss_fn(params: Any, x: jax.Array) -> jax.Array:
    return jnp.mean((x @ params["dense"]["kernel"] - jnp.sin(x @ jnp.ones((4, 1)))) ** 2)


@partial(jax.jit, donate_argnums=0)
def train_step(state: Any, x: jax.Array) -> Any:
    params, opt_state, key, counter = state
    key, used = jax.random.split(key)
    x = x + 0.01 * jax.random.normal(used, x.shape)
    loss, gradient = jax.value_and_grad(loss_fn)(params, x)
    updates, opt_state = TX.update(gradient, opt_state, params, loss=loss)
    return (optax.apply_updates(params, updates), opt_state, key, counter + 1), loss


def start(width: int = 4) -> Any:
    """Parameters, optimiser, a random key and a count."""
    params = {"dense": {"kernel": jnp.ones((width, 1), jnp.float32)}}
    return params, TX.init(params), jax.random.key(7), 0


def plug(tmp_path: Path, lines: list[str], **options: Any) -> Plug:
    settings: Any = {"mode": "guard", "every": EVERY, "log": lines.append, **options}
    return Plug.open(tmp_path / "runs", START, loss_fn, XS[0], **settings)


def train(
    tamiyo: Plug, state: Any, until: int, broken: tuple[int, ...] = ()
) -> tuple[Any, list[int]]:
    """Train to the end of the data or until so many batches were read; which were read."""
    seen: list[int] = []
    for index in tamiyo.batches(lambda position: range(position, until)):
        seen.append(index)
        state, loss = train_step(state, XS[index] * (jnp.nan if index in broken else 1.0))
        state = tamiyo(state, loss)
    return state, seen


def numbers(state: Any) -> Any:
    params, opt_state, key, counter = state
    return jax.device_get((params, opt_state, jax.random.key_data(key), counter))


@pytest.mark.slow
def test_a_resumed_run_ends_with_the_bits_of_one_that_never_stopped(tmp_path: Path):
    with plug(tmp_path, []) as whole:
        expected, _ = train(whole, start(), STEPS, broken=(60,))
    lines: list[str] = []
    with plug(tmp_path, lines, resumable=True) as first:
        train(first, start(), STOPPED)
    with plug(tmp_path, lines, resume=first.directory) as second:
        state = second.restore(start())
        assert int(state[3]) == STOPPED // EVERY * EVERY
        state, seen = train(second, state, STEPS, broken=(60,))
        assert second.directory == first.directory
        history = read_history(second.directory / "tamiyo")
    assert seen == list(range(45, STEPS))
    assert equal_trees(numbers(state), numbers(expected))
    assert lines == ["step 65: step_refused: step_refused 1, step_refused_limit 0"]
    assert [step.packet.global_step for step in history] == list(range(EVERY, STEPS + 1, EVERY))
    assert [step.packet.current_epoch for step in history] == list(range(1, STEPS // EVERY + 1))


@pytest.mark.slow
def test_a_fault_after_resuming_is_rolled_back_to_a_state_from_before(tmp_path: Path):
    lines: list[str] = []
    with plug(tmp_path, lines, resumable=True) as first:
        train(first, start(), 45)
    with plug(tmp_path, lines, resume=first.directory) as second:
        state = second.restore(start())
        for index in range(45, 47):
            params, opt_state, key, counter = state
            state, _ = train_step((params, opt_state, key, counter), XS[index])
            state = second(state, jnp.float32(jnp.nan))
    said = "ROLLBACK (nonfinite_loss): a loss in the packet is NaN or infinite"
    assert lines == [f"step 47: {said}"]
    assert int(state[3]) == 45
    assert second.undone_steps == 2


def test_only_the_states_that_are_kept_stay_on_disk(tmp_path: Path):
    with plug(tmp_path, [], resumable=True) as tamiyo:
        train(tamiyo, start(), STEPS)
    names = sorted(path.name for path in (tamiyo.directory / "states").iterdir())
    assert names[-1] == f"step-{STEPS:08d}"
    assert len(names) == 3


def test_a_state_whose_writing_was_cut_short_is_not_there(tmp_path: Path):
    with plug(tmp_path, [], resumable=True) as first:
        train(first, start(), 20)
    states = first.directory / "states"
    *_, before, last = sorted(path.name for path in states.iterdir())
    (states / last).rename(states / f".{last}.unfinished")
    with plug(tmp_path, [], resume=first.directory) as second:
        assert int(second.restore(start())[3]) == int(before.removeprefix("step-"))


def test_a_resumed_run_takes_no_step_before_its_state_is_restored(tmp_path: Path):
    with plug(tmp_path, [], resumable=True) as first:
        train(first, start(), 20)
    with plug(tmp_path, [], resume=first.directory) as second:
        state, loss = train_step(start(), XS[0])
        with pytest.raises(ConfigurationError, match="restore"):
            second(state, loss)


def test_states_of_another_model_are_refused(tmp_path: Path):
    with plug(tmp_path, [], resumable=True) as first:
        train(first, start(), 20)
    with (
        plug(tmp_path, [], resume=first.directory) as second,
        pytest.raises(CheckpointMismatchError),
    ):
        second.restore(start(width=5))


def test_a_run_whose_states_were_in_memory_alone_is_not_resumed(tmp_path: Path):
    with plug(tmp_path, []) as first:
        train(first, start(), 20)
    with pytest.raises(PersistenceError, match="resumable=True"):
        plug(tmp_path, [], resume=first.directory)


def test_a_disk_that_takes_no_states_is_reported_and_the_loop_goes_on(tmp_path: Path):
    lines: list[str] = []
    with plug(tmp_path, lines, resumable=True) as tamiyo:
        shutil.rmtree(tamiyo.directory / "states")
        (tamiyo.directory / "states").write_text("in the way")
        state, _ = train(tamiyo, start(), 20)
    assert int(state[3]) == 20
    assert any("a kept state is in memory alone" in line for line in lines)


def test_what_is_not_an_array_is_kept_and_comes_back_as_it_was(tmp_path: Path):
    kept = host.DiskCheckpoints(tmp_path / "states", lambda: ())
    state = {
        "f": loss_fn,
        "n": 3,
        "x": 0.1,
        "a": np.arange(3, dtype=np.int32),
        "key": jax.random.key(1),
    }
    kept.save("one", state)
    assert kept.close() == []
    again = host.DiskCheckpoints(tmp_path / "states", lambda: ())
    like = {"f": loss_fn, "n": 0, "x": 0.0, "a": np.zeros(3, np.int32), "key": jax.random.key(0)}
    found, _ = again.load("one", like, ())
    assert (found["f"], found["n"], found["x"]) == (loss_fn, 3, 0.1)
    assert isinstance(found["a"], np.ndarray)
    np.testing.assert_array_equal(found["a"], state["a"])
    assert equal_trees(jax.random.key_data(found["key"]), jax.random.key_data(state["key"]))
    assert again.names() == {"one"}
