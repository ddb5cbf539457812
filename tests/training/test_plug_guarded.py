"""A guarded optimiser under `Plug`: what is refused, undone, braked, read again and reported."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tamiyo_jax import Plug, host
from tamiyo_jax.replay import read_history

pytestmark = pytest.mark.usefixtures("standard_promotion", "unhurried")
XS = jax.random.normal(jax.random.key(0), (300, 16, 4), jnp.float32)
START = {"dense": {"kernel": jnp.ones((4, 1), jnp.float32)}}
TX = host.guarded(optax.chain(optax.adam(1e-2), host.tamiyo_scale()))
CALM = 60  # steps, more than the detector's warm-up
RATES = np.ones(300, np.float32)


@pytest.fixture
def unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TAMIYO__DEADLINES__INFERENCE_MS", "60000")


def loss_fn(params: Any, x: jax.Array) -> jax.Array:
    return jnp.mean((x @ params["dense"]["kernel"] - jnp.sin(x @ jnp.ones((4, 1)))) ** 2)


@partial(jax.jit, donate_argnums=0)
def train_step(state: Any, x: jax.Array, rate: jax.Array) -> Any:
    """A step whose learning rate is multiplied by a number."""
    params, opt_state = state
    loss, gradient = jax.value_and_grad(loss_fn)(params, x)
    changed = opt_state.inner[1]._replace(factor=opt_state.inner[1].factor * rate)
    used = opt_state._replace(inner=(opt_state.inner[0], changed))
    updates, after = TX.update(gradient, used, params, loss=loss)
    factor = opt_state.inner[1]
    after = after._replace(inner=(after.inner[0], factor))
    return (optax.apply_updates(params, updates), after), loss


def start() -> Any:
    params = jax.tree.map(jnp.copy, START)
    return params, TX.init(params)


def plug(tmp_path: Path, lines: list[str], every: int) -> Plug:
    settings: Any = {"mode": "guard", "every": every, "log": lines.append}
    return Plug.open(tmp_path / "runs", START, loss_fn, XS[0], **settings)


def train(
    tamiyo: Plug, steps: int, *, rates: np.ndarray = RATES, broken: tuple[int, ...] = ()
) -> Any:
    state = start()
    for index in range(steps):
        x = XS[index] * (jnp.nan if index in broken else 1.0)
        state, loss = train_step(state, x, rates[index])
        state = tamiyo(state, loss)
    return state


def test_a_refused_batch_is_reported_and_nothing_is_rolled_back(tmp_path: Path):
    lines: list[str] = []
    with plug(tmp_path, lines, 5) as tamiyo:
        train(tamiyo, 25, broken=(11, 13))
        history = read_history(tamiyo.directory / "tamiyo")
    assert lines == ["step 15: step_refused: step_refused 2, step_refused_limit 0"]
    assert all(np.isfinite(step.packet.training_loss) for step in history)


def test_where_every_step_was_refused_the_loss_before_stands(tmp_path: Path):
    with plug(tmp_path, [], 2) as tamiyo:
        train(tamiyo, 8, broken=(4, 5))
    losses = [step.packet.training_loss for step in read_history(tamiyo.directory / "tamiyo")]
    assert losses[2] == losses[1]
    assert losses[3] != losses[1]


@pytest.mark.parametrize("times", [30, 100])
@pytest.mark.parametrize("every", [1, 10, 50])
def test_a_learning_rate_that_jumps_is_undone_and_then_braked_by_as_much(
    tmp_path: Path, times: float, every: int
):
    lines: list[str] = []
    rates = np.where(np.arange(300) < 100, 1, times).astype(np.float32)
    with plug(tmp_path, lines, every) as tamiyo:
        state = train(tamiyo, 200, rates=rates)
        # One asks whether the state of the optimiser was at fault; after the second, it is not.
        rolled = [line for line in lines if "ROLLBACK (update_outlier)" in line]
        commands = [step.command for step in read_history(tamiyo.directory / "tamiyo")]
    assert len(rolled) == 2
    assert int(rolled[0].split()[1][:-1]) == 104
    braked = [one for one in commands if one is not None and "lr_delta" in one.annotations]
    assert len(braked) == 1
    assert 0.5 < float(host.scale_of(state)) * times < 2.5


def test_a_broken_state_of_the_optimiser_is_replaced_without_a_brake(tmp_path: Path):
    lines: list[str] = []
    with plug(tmp_path, lines, 1) as tamiyo:
        state = train(tamiyo, CALM)
        params, opt_state = state
        adam, *rest = opt_state.inner[0]
        broken = adam._replace(mu=jax.tree.map(lambda m: -1e5 * (1 + m), adam.mu))
        state = params, opt_state._replace(inner=((broken, *rest), opt_state.inner[1]))
        for index in range(CALM, 2 * CALM):
            state, loss = train_step(state, XS[index], jnp.float32(1))
            state = tamiyo(state, loss)
    assert [line.split()[2] for line in lines if "step_refused" not in line] == ["ROLLBACK"]
    assert float(host.scale_of(state)) == 1


def test_batches_are_read_again_from_the_state_that_a_rollback_returns_to(tmp_path: Path):
    asked: list[int] = []
    seen: list[int] = []
    place = {}

    def read(position: int) -> Iterator[int]:
        asked.append(position)
        return itertools.islice(itertools.count(position), 300 - position)

    with plug(tmp_path, [], 10) as tamiyo:
        state = start()
        for index in itertools.islice(tamiyo.batches(read), 170):
            rate = 100.0 if len(seen) >= 100 else 1.0
            seen.append(index)
            state, loss = train_step(state, XS[index], jnp.float32(rate))
            state = tamiyo(state, loss)
            if tamiyo.undone_steps:
                place[len(seen)] = tamiyo.undone_steps
    assert place == {104: 4, 108: 4}
    assert asked == [0, 100, 100]
    assert seen == [*range(104), *range(100, 104), *range(100, 162)]


def test_a_loader_that_stalls_is_reported_and_nothing_is_done(tmp_path: Path):
    def read(position: int) -> Iterator[jax.Array]:
        for index in range(position, 40):
            time.sleep(3.0 if index == 30 else 0.0)
            yield XS[index]

    lines: list[str] = []
    with plug(tmp_path, lines, 2) as tamiyo:
        state = start()
        for x in tamiyo.batches(read):
            state, loss = train_step(state, x, jnp.float32(1))
            state = tamiyo(state, loss)
        history = read_history(tamiyo.directory / "tamiyo")
    (line,) = [line for line in lines if "loader_stall" in line]
    assert line.startswith("step 33: loader_stall: loader_ratio")
    assert {step.command for step in history} == {None}


def test_a_plateau_is_reported_once_and_nothing_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("TAMIYO__RISK__PLATEAU_STEPS", "40")
    lines: list[str] = []
    with plug(tmp_path, lines, 5) as tamiyo:
        state = start()
        for _ in range(120):
            after, loss = train_step(state, XS[0], jnp.float32(0))
            state = tamiyo(after, jnp.float32(1) + 0 * loss)
    assert [line.split(": ")[1] for line in lines] == ["plateau"]
