"""A loop of one's own, with Tamiyo plugged in: what it measures, keeps, asks and does."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from host.tiny_host import BANK, SEED_ID, batch, make_host, make_state
from making import make_blueprint

from tamiyo_jax import host
from tamiyo_jax.contracts import SeedStage
from tamiyo_jax.errors import CommandRejectedError, ConfigurationError, PersistenceError
from tamiyo_jax.plug import Plug
from tamiyo_jax.runtime.history import read_history

# Optax's optimisers mix dtypes; a busy machine is late.
pytestmark = pytest.mark.usefixtures("standard_promotion", "unhurried")
X = jax.random.normal(jax.random.key(0), (32, 4), jnp.float32)
Y = jnp.sin(X @ jnp.ones((4, 1), jnp.float32))
TX = host.monitor(optax.chain(optax.sgd(0.1), host.tamiyo_scale()))


@pytest.fixture
def unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TAMIYO__DEADLINES__INFERENCE_MS", "60000")


def loss_fn(params: Any, x: jax.Array) -> jax.Array:
    return jnp.mean((x @ params["dense"]["kernel"] - Y) ** 2)


@partial(jax.jit, donate_argnums=0)
def train_step(state: Any, x: jax.Array) -> Any:
    params, opt_state = state
    loss, gradient = jax.value_and_grad(loss_fn)(params, x)
    updates, opt_state = TX.update(gradient, opt_state, params)
    return (optax.apply_updates(params, updates), opt_state), loss


def start() -> Any:
    params = {"dense": {"kernel": jnp.zeros((4, 1), jnp.float32)}}
    return params, TX.init(params)


def plug(tmp_path: Path, told: list[str], **options: Any) -> Plug:
    params = start()[0]
    settings = {"mode": "guard", "every": 5, "tell": told.append, **options}
    return Plug.open(tmp_path / "runs", params, loss_fn, X, **settings)


def train(tamiyo: Plug, steps: int, broken: int | None = None) -> Any:
    state, states = start(), []
    for step in range(steps):
        state, loss = train_step(state, X * (jnp.nan if step == broken else 1.0))
        state = tamiyo(state, loss)
        states.append(jax.device_get(state))
    return states


def same(left: Any, right: Any) -> bool:
    return all(jax.tree.leaves(jax.tree.map(np.array_equal, left, right)))


def test_a_step_that_breaks_is_undone_even_where_steps_are_donated(tmp_path: Path):
    told: list[str] = []
    with plug(tmp_path, told) as tamiyo:
        states = train(tamiyo, 20, broken=12)
    assert same(states[14], states[9])  # at its third decision, back to its second
    assert np.isfinite(states[-1][0]["dense"]["kernel"]).all()
    assert told[0] == "step 15: ROLLBACK (nonfinite_loss)"


@pytest.mark.parametrize(
    "stage",
    [SeedStage.TRAINING, SeedStage.BLENDING, SeedStage.PROBATIONARY, SeedStage.FOSSILIZED],
)
def test_a_step_that_breaks_is_undone_whatever_a_seed_is_doing(tmp_path: Path, stage: SeedStage):
    made = make_host()
    step = jax.jit(partial(host.train_step, made))
    state = make_state(made)
    slot = state.slots[SEED_ID]
    grown = slot._replace(state=host.enter(slot.state, stage))
    state = state._replace(slots={SEED_ID: grown})
    told: list[str] = []
    candidates = [make_blueprint(name) for name in BANK]
    settings = {"mode": "guard", "every": 2, "tell": told.append}
    x, y = batch(0)
    with Plug.grow(tmp_path, state, made, candidates, (x, y), **settings) as tamiyo:
        for index in range(6):
            state, metrics = step(state, (x * jnp.float32(np.nan if index == 3 else 1), y))
            state = tamiyo(state, metrics)
    assert "step 4: ROLLBACK (nonfinite_loss)" in told
    assert not any("without Tamiyo" in line for line in told)
    assert int(state.step) == 4  # two of six were undone
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))


def test_a_run_in_which_nothing_happens_is_the_run_without_tamiyo(tmp_path: Path):
    told: list[str] = []
    with plug(tmp_path, told) as tamiyo:
        watched = train(tamiyo, 10)
    state = start()
    for _ in range(10):
        state, _ = train_step(state, X)
    assert same(watched[-1], jax.device_get(state))
    assert told == []


def test_packets_hold_the_means_of_the_steps_since_the_last_one(tmp_path: Path):
    losses: list[float] = []
    with plug(tmp_path, [], validate=lambda state: loss_fn(state[0], X)) as tamiyo:
        state = start()
        for _ in range(10):
            state, loss = train_step(state, X)
            losses.append(float(loss))
            state = tamiyo(state, loss)
        directory = tamiyo.directory
    first, second = (step.packet for step in read_history(directory / "tamiyo"))
    assert first.training_loss == pytest.approx(np.mean(losses[:5]), rel=1e-6)
    assert second.training_loss == pytest.approx(np.mean(losses[5:]), rel=1e-6)
    assert second.validation_loss == pytest.approx(float(loss_fn(state[0], X)), rel=1e-6)
    assert (second.current_epoch, second.global_step) == (2, 10)
    assert second.restorable_checkpoint == "step-10"
    assert {"layer/dense/weight_norm", "gradient_norm"} <= second.training_metrics.keys()


def test_a_controller_that_cannot_answer_leaves_the_loop_alone(tmp_path: Path):
    told: list[str] = []
    tamiyo = plug(tmp_path, told)
    tamiyo.close()
    assert len(train(tamiyo, 5)) == 5
    assert told[0].startswith("step 5: goes on without Tamiyo: PersistenceError")


def test_in_shadow_it_says_what_it_would_do_and_does_nothing(tmp_path: Path):
    told: list[str] = []
    with plug(tmp_path, told, mode="shadow") as tamiyo:
        states = train(tamiyo, 15, broken=12)
    assert told[-1] == "step 15: would ROLLBACK (nonfinite_loss)"
    assert np.isnan(states[-1][0]["dense"]["kernel"]).all()


@pytest.mark.parametrize(
    ("tx", "error"),
    [
        (optax.chain(optax.sgd(0.1), host.tamiyo_scale()), ConfigurationError),
        (host.monitor(optax.sgd(0.1)), CommandRejectedError),
    ],
    ids=["not monitored", "no multiplier"],
)
def test_an_optimiser_that_was_not_prepared_is_refused(tmp_path: Path, tx: Any, error: type):
    params = start()[0]
    with plug(tmp_path, [], every=1) as tamiyo, pytest.raises(error, match="optimiser"):
        tamiyo((params, tx.init(params)), jnp.float32(1))


def test_parameters_without_the_optimisers_state_are_refused_with_what_is_missing(tmp_path: Path):
    with plug(tmp_path, []) as tamiyo, pytest.raises(ConfigurationError, match="parameters alone"):
        tamiyo(start()[0], jnp.float32(1))


def test_parameters_of_numpy_are_parameters(tmp_path: Path):
    params = jax.device_get(start()[0])
    settings = {"mode": "guard", "every": 5, "tell": print}
    with Plug.open(tmp_path, params, loss_fn, X, **settings) as tamiyo:
        train(tamiyo, 5)
        (step,) = read_history(tamiyo.directory / "tamiyo")
    assert "layer/dense/weight_norm" in step.packet.training_metrics


def test_runs_that_begin_in_the_same_second_have_names_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("tamiyo_jax.plug.time.strftime", lambda *_: "20250101-120000")
    with ThreadPoolExecutor(4) as threads:
        plugs = list(threads.map(lambda _: plug(tmp_path, []), range(4)))
    names = [tamiyo.directory.name for tamiyo in plugs]
    runs = set()
    for tamiyo in plugs:
        train(tamiyo, 5)
        tamiyo.close()
        (step,) = read_history(tamiyo.directory / "tamiyo")
        runs.add((step.packet.training_run_id, step.packet.packet_id))
    assert sorted(names) == ["20250101-120000", *(f"20250101-120000-{n}" for n in (2, 3, 4))]
    assert runs == {(name, f"{name}-1") for name in names}


@pytest.mark.parametrize("place", ["file", "file/below", "gone/below", "/proc/none"])
def test_a_directory_that_cannot_hold_runs_is_an_error_that_names_it(tmp_path: Path, place: str):
    (tmp_path / "file").touch()
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere" / "at all")
    settings = {"mode": "guard", "every": 5, "tell": print}
    with pytest.raises(PersistenceError, match=place) as raised:
        Plug.open(tmp_path / place, start()[0], loss_fn, X, **settings)
    assert raised.value.path == str(tmp_path / place)


@pytest.mark.parametrize("every", [0, -1])
def test_an_interval_that_is_none_is_refused_before_anything_is_made(tmp_path: Path, every: int):
    with pytest.raises(ConfigurationError, match="every is"):
        plug(tmp_path, [], every=every)
    assert not (tmp_path / "runs").exists()


def test_an_nnx_model_and_its_optimiser_are_rolled_back_and_braked(tmp_path: Path):
    class Net(nnx.Module):
        def __init__(self) -> None:
            self.dense = nnx.Linear(4, 1, rngs=nnx.Rngs(0))
            self.dropout = nnx.Dropout(0.1, rngs=nnx.Rngs(1))

        def __call__(self, x: jax.Array) -> jax.Array:
            return self.dense(self.dropout(x))

    def loss_of(model: Net, x: jax.Array) -> jax.Array:
        return jnp.mean((model(x) - Y) ** 2)

    @nnx.jit
    def step(model: Net, optimizer: nnx.Optimizer, x: jax.Array) -> jax.Array:
        loss, gradient = nnx.value_and_grad(loss_of)(model, x)
        optimizer.update(model, gradient)
        return loss

    told: list[str] = []
    model = Net()
    optimizer = nnx.Optimizer(model, TX, wrt=nnx.Param)
    settings = {"mode": "guard", "every": 2, "tell": told.append}
    with Plug.open(tmp_path, model, loss_of, X, **settings) as tamiyo:
        for index in range(8):
            loss = step(model, optimizer, X * (jnp.nan if index == 5 else 1.0))
            model, optimizer = tamiyo((model, optimizer), loss)
    assert told[0] == "step 6: ROLLBACK (nonfinite_loss)"
    assert np.isfinite(model.dense.kernel[...]).all()
    slower = host.scale_by((model, optimizer), 0.5, (0.1, 10.0))
    assert float(host.scale_of(slower)) == 0.5
    step(*slower, X)
