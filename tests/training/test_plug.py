"""A loop of one's own, with Tamiyo plugged in: what it measures, keeps, asks and does."""

from __future__ import annotations

import threading
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
from summaries import equal_trees

from tamiyo_jax import Plug, growth, host
from tamiyo_jax.contracts import SeedOperation, SeedStage
from tamiyo_jax.errors import CommandRejectedError, ConfigurationError, PersistenceError
from tamiyo_jax.replay import read_history

# Optax's optimisers mix dtypes; a busy machine is late.
pytestmark = pytest.mark.usefixtures("standard_promotion", "patient_deadlines")
X = jax.random.normal(jax.random.key(0), (32, 4), jnp.float32)
Y = jnp.sin(X @ jnp.ones((4, 1), jnp.float32))
TX = host.monitor(optax.chain(optax.sgd(0.1), host.tamiyo_scale()))


@pytest.fixture
def patient_deadlines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TAMIYO__DEADLINES__INFERENCE_MS", "60000")
    monkeypatch.setenv("TAMIYO__DEADLINES__METADATA_MS", "60000")


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


def plug(tmp_path: Path, lines: list[str], **options: Any) -> Plug:
    params = start()[0]
    settings = {"mode": "guard", "every": 5, "log": lines.append, **options}
    return Plug.open(tmp_path / "runs", params, loss_fn, X, **settings)


def train(tamiyo: Plug, steps: int, broken: int | None = None) -> Any:
    state, states = start(), []
    for step in range(steps):
        state, loss = train_step(state, X * (jnp.nan if step == broken else 1.0))
        state = tamiyo(state, loss)
        states.append(jax.device_get(state))
    return states


def test_a_step_that_breaks_is_undone_even_where_steps_are_donated(tmp_path: Path):
    lines: list[str] = []
    with plug(tmp_path, lines) as tamiyo:
        states = train(tamiyo, 20, broken=12)
    assert equal_trees(states[13], states[9])  # a step after it broke, back to the last decision
    assert np.isfinite(states[-1][0]["dense"]["kernel"]).all()
    assert lines[0] == "step 14: ROLLBACK (nonfinite_loss): a loss in the packet is NaN or infinite"
    assert tamiyo.undone_steps == 0


def test_the_loop_can_read_how_many_batches_a_rollback_undid(tmp_path: Path):
    lines: list[str] = []
    undone = []
    with plug(tmp_path, lines, every=1) as tamiyo:
        state = start()
        for index in range(30):
            state, loss = train_step(state, X * (jnp.nan if index >= 20 else 1.0))
            state = tamiyo(state, loss)
            undone.append((tamiyo.undone_steps, tamiyo.skips_data, tamiyo.escalated))
    assert undone[20:22] == [(0, False, False), (11, False, False)]
    assert undone[23][0] > 8
    assert undone[23][1:] == (True, False)
    assert undone[27:] == [(0, False, True)] * 3
    assert lines[-1].startswith("step 28: escalates: nonfinite_loss, rollback_budget_exhausted")


@pytest.mark.parametrize(
    "stage",
    [SeedStage.TRAINING, SeedStage.BLENDING, SeedStage.PROBATIONARY, SeedStage.FOSSILIZED],
)
def test_a_step_that_breaks_is_undone_whatever_a_seed_is_doing(tmp_path: Path, stage: SeedStage):
    made = make_host()
    step = jax.jit(partial(host.train_step, made))
    germinate = SeedOperation.GERMINATE
    state = host.operate(made, make_state(made), SEED_ID, germinate, blueprint_id="steep")
    slot = state.slots[SEED_ID]
    grown = slot._replace(state=growth.enter(slot.state, stage))
    state = state._replace(slots={SEED_ID: grown})
    lines: list[str] = []
    candidates = [make_blueprint(name) for name in BANK]
    settings = {"mode": "guard", "every": 2, "log": lines.append}
    x, y = batch(0)
    with Plug.grow(tmp_path, state, made, candidates, (x, y), **settings) as tamiyo:
        for index in range(6):
            state, metrics = step(state, (x * jnp.float32(np.nan if index == 3 else 1), y))
            state = tamiyo(state, metrics)
    assert "step 4: ROLLBACK (nonfinite_loss): a loss in the packet is NaN or infinite" in lines
    assert not any("without Tamiyo" in line for line in lines)
    assert int(state.step) == 4  # two of six were undone
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))


@pytest.mark.slow
def test_a_loop_goes_on_without_a_seed_until_its_step_is_compiled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count_compilations
):
    monkeypatch.setenv("TAMIYO__RISK__DETECTION", "absolute")
    made, data, release = make_host(), batch(0), threading.Event()
    train = jax.jit(partial(host.train_step, made), donate_argnums=0)

    def step(state: host.HostState):
        release.wait(600)
        return train(state, data)

    lines: list[str] = []
    candidates = [make_blueprint(name) for name in BANK]
    settings = {"mode": "act", "every": 2, "log": lines.append, "step": step}
    state, learned = make_state(made), 0
    with Plug.grow(tmp_path, state, made, candidates, data, **settings) as tamiyo:
        while learned < 2:
            state, metrics = train(state, data)
            state = tamiyo(state, metrics)
            grown = state.slots[SEED_ID]
            if any("GERMINATE" in line for line in lines) and not release.is_set():
                assert grown.params == {}  # at the step of the decision
                release.set()
            learned += bool(grown.params)
            assert int(state.step) < 200
        with count_compilations() as compiled:
            state, _ = train(state, data)
    assert compiled.count == 0
    assert not any("goes on without" in line for line in lines)


def test_a_run_in_which_nothing_happens_is_the_run_without_tamiyo(tmp_path: Path):
    lines: list[str] = []
    with plug(tmp_path, lines) as tamiyo:
        watched = train(tamiyo, 10)
    state = start()
    for _ in range(10):
        state, _ = train_step(state, X)
    assert equal_trees(watched[-1], jax.device_get(state))
    assert lines == []


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
    assert second.restorable_checkpoint == "step-00000010"
    assert {"layer/dense/weight_norm", "gradient_norm"} <= second.training_metrics.keys()


def test_a_controller_that_cannot_answer_leaves_the_loop_alone(tmp_path: Path):
    lines: list[str] = []
    tamiyo = plug(tmp_path, lines)
    tamiyo.close()
    assert len(train(tamiyo, 5)) == 5
    assert lines[0].startswith("step 5: goes on without Tamiyo: PersistenceError")


def test_in_shadow_it_says_what_it_would_do_and_does_nothing(tmp_path: Path):
    lines: list[str] = []
    with plug(tmp_path, lines, mode="shadow") as tamiyo:
        states = train(tamiyo, 15, broken=12)
    assert (
        lines[-1]
        == "step 15: would ROLLBACK (nonfinite_loss): a loss in the packet is NaN or infinite"
    )
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


@pytest.mark.parametrize(
    "shape",
    [
        lambda loss: loss[None],
        lambda loss: jnp.stack([loss, loss]),
        lambda loss: (loss, {"accuracy": jnp.float32(0.5)}),
        lambda loss: {"data": loss / 2, "weights": loss / 2},
        lambda loss: loss.astype(jnp.bfloat16),
        float,
        lambda loss: np.asarray(loss),
    ],
    ids=["(1,)", "(n,)", "tuple", "dict", "bf16", "float", "numpy"],
)
def test_a_loss_may_come_in_many_forms(tmp_path: Path, shape: Any):
    with plug(tmp_path, lines := []) as tamiyo:
        state = start()
        for _ in range(5):
            state, loss = train_step(state, X)
            state = tamiyo(state, shape(loss))
        (step,) = read_history(tamiyo.directory / "tamiyo")
    assert lines == []
    assert step.packet.training_loss == pytest.approx(float(loss), rel=1)


@pytest.mark.parametrize("loss", [None, "0.5", {}, (), jnp.zeros(0), jnp.int32(1)])
def test_a_loss_that_is_no_floating_number_is_refused(tmp_path: Path, loss: Any):
    with plug(tmp_path, []) as tamiyo, pytest.raises(ConfigurationError, match="the loss is"):
        tamiyo(start(), loss)


def test_a_mode_that_does_not_exist_leaves_nothing_behind(tmp_path: Path):
    with pytest.raises(ConfigurationError, match="'gaurd'") as raised:
        plug(tmp_path, [], mode="gaurd")
    assert not (tmp_path / "runs").exists()
    assert "act, shadow, guard" in str(raised.value)


def test_a_spiked_state_is_never_what_a_rollback_returns_to(tmp_path: Path):
    """Updates × 1,000 from step 42 to 45, and a NaN at 53: back to before the updates."""
    lines: list[str] = []
    with plug(tmp_path, lines, every=5) as tamiyo:
        state, losses = start(), []
        for step in range(1, 61):
            before = state[0]["dense"]["kernel"].copy()
            state, loss = train_step(state, X * (jnp.nan if step == 53 else 1.0))
            if 42 <= step <= 45:
                spoilt = before + 1000 * (state[0]["dense"]["kernel"] - before + 1e-2)
                state = ({"dense": {"kernel": spoilt}}, state[1])
            state = tamiyo(state, loss)
            losses.append(float(loss_fn(state[0], X)))
    assert "step 54: ROLLBACK (nonfinite_loss): a loss in the packet is NaN or infinite" in lines
    assert losses[48] > 100 * losses[39]  # finite, and no state to return to
    assert losses[53] == losses[39]


def test_the_same_fault_again_goes_further_back_then_brakes_then_escalates(tmp_path: Path):
    lines: list[str] = []
    decisions: list[Any] = []
    with plug(tmp_path, lines, every=1) as tamiyo:
        step = tamiyo.tamiyo.step
        tamiyo.tamiyo.step = lambda packet: decisions.append(step(packet)) or decisions[-1]
        state = start()
        for index in range(30):
            state, loss = train_step(state, X * (jnp.nan if index >= 20 else 1.0))
            state = tamiyo(state, loss)
            if index in (21, 23, 25):
                assert np.isfinite(state[0]["dense"]["kernel"]).all()
    commands = [decision.command for decision in decisions[20:23]]
    went = [int(command.payload.checkpoint.removeprefix("step-")) for command in commands]
    assert went == [11, 1, 1]  # the newest, and the oldest; each a step after its fault
    assert "skip_data" not in commands[0].annotations
    assert commands[1].annotations["skip_data"] == "true"
    assert float(commands[2].annotations["lr_delta"]) < 0
    assert [decision.escalate for decision in decisions[20:]] == [False] * 3 + [True] * 4
    assert {decision.command for decision in decisions[23:]} == {None}
    assert "rollback_budget_exhausted" in {event.name for event in decisions[23].events}


def test_brakes_are_released_over_calm_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TAMIYO__GUARD__RELEASE_STEPS", "4")
    lines: list[str] = []
    with plug(tmp_path, lines, every=1) as tamiyo:
        state, loss = train_step(start(), X)
        state = host.scale_by(tamiyo(state, loss), 0.49, host.LIMITS)
        for _ in range(20):
            state, loss = train_step(state, X)
            state = tamiyo(state, loss)
    assert [line.split(": ")[1] for line in lines] == ["OPTIMIZER (brake_released)"] * 2
    assert float(host.scale_of(state)) == pytest.approx(1.0)


def test_parameters_of_numpy_are_parameters(tmp_path: Path):
    params = jax.device_get(start()[0])
    settings = {"mode": "guard", "every": 5, "log": print}
    with Plug.open(tmp_path, params, loss_fn, X, **settings) as tamiyo:
        train(tamiyo, 5)
        (step,) = read_history(tamiyo.directory / "tamiyo")
    assert "layer/dense/weight_norm" in step.packet.training_metrics


def test_runs_that_begin_in_the_same_second_have_names_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(
        "tamiyo_jax.training._run_directory.time.strftime", lambda *_: "20250101-120000"
    )
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
    settings = {"mode": "guard", "every": 5, "log": print}
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

    lines: list[str] = []
    model = Net()
    optimizer = nnx.Optimizer(model, TX, wrt=nnx.Param)
    settings = {"mode": "guard", "every": 2, "log": lines.append}
    with Plug.open(tmp_path, model, loss_of, X, **settings) as tamiyo:
        for index in range(8):
            loss = step(model, optimizer, X * (jnp.nan if index == 5 else 1.0))
            model, optimizer = tamiyo((model, optimizer), loss)
    assert lines[0] == "step 7: ROLLBACK (nonfinite_loss): a loss in the packet is NaN or infinite"
    assert np.isfinite(model.dense.kernel[...]).all()
    slower = host.scale_by((model, optimizer), 0.5, (0.1, 10.0))
    assert float(host.scale_of(slower)) == 0.5
    step(*slower, X)


class Tied(nnx.Module):
    """Letters in, letters out, by one matrix; with dropout and batch statistics."""

    def __init__(self) -> None:
        self.embed = nnx.Embed(8, 4, rngs=nnx.Rngs(0))
        self.norm = nnx.BatchNorm(4, rngs=nnx.Rngs(1))
        self.dropout = nnx.Dropout(0.1, rngs=nnx.Rngs(2))
        self.readout = self.embed

    def __call__(self, letters: jax.Array) -> jax.Array:
        return self.dropout(self.norm(self.embed(letters))) @ self.readout.embedding[...].T


def tied_loss(model: Tied, letters: jax.Array) -> jax.Array:
    logits = model(letters)
    return optax.softmax_cross_entropy_with_integer_labels(logits, letters).mean()


@nnx.jit
def tied_step(model: Tied, optimizer: nnx.Optimizer, letters: jax.Array, factor: Any) -> jax.Array:
    def loss_of(model: Tied) -> jax.Array:
        return factor * tied_loss(model, letters)

    loss, gradient = nnx.value_and_grad(loss_of)(model)
    optimizer.update(model, gradient)
    return loss


def test_tied_weights_of_an_nnx_model_survive_rollback_and_braking(tmp_path: Path):
    lines: list[str] = []
    model, letters = Tied(), jnp.arange(8)
    optimizer = nnx.Optimizer(model, TX, wrt=nnx.Param)
    settings = {"mode": "guard", "every": 2, "log": lines.append}
    with Plug.open(tmp_path, model, tied_loss, letters, **settings) as tamiyo:
        tied_loss(model, letters)  # was traced, and can still be called
        for index in range(8):
            factor = jnp.float32(jnp.nan if index == 5 else 1)
            loss = tied_step(model, optimizer, letters, factor)
            model, optimizer = tamiyo((model, optimizer), loss)
            assert model.readout.embedding is model.embed.embedding
    assert "step 7: ROLLBACK (nonfinite_loss): a loss in the packet is NaN or infinite" in lines
    assert np.isfinite(model.embed.embedding[...]).all()
    slower, slowed = host.scale_by((model, optimizer), 0.5, host.LIMITS)
    assert slower.readout.embedding is slower.embed.embedding
    assert float(host.scale_of(slowed)) == 0.5 * float(host.scale_of(optimizer))


def test_an_equinox_optimiser_may_be_given_the_whole_model(tmp_path: Path):
    eqx = pytest.importorskip("equinox")

    class Net(eqx.Module):
        linear: Any
        steps: jax.Array
        activation: Any

    def loss_of(model: Net, x: jax.Array) -> jax.Array:
        return jnp.mean((model.activation(jax.vmap(model.linear)(x)) - Y) ** 2)

    @eqx.filter_jit
    def step(model: Net, opt_state: Any, x: jax.Array) -> Any:
        loss, gradient = eqx.filter_value_and_grad(loss_of)(model, x)
        updates, opt_state = TX.update(gradient, opt_state, model)
        return eqx.apply_updates(model, updates), opt_state, loss

    lines: list[str] = []
    model = Net(eqx.nn.Linear(4, 1, key=jax.random.key(0)), jnp.arange(3), jnp.tanh)
    opt_state = TX.init(eqx.filter(model, eqx.is_inexact_array))
    settings = {"mode": "guard", "every": 2, "log": lines.append}
    with Plug.open(tmp_path, model, loss_of, X, **settings) as tamiyo:
        for index in range(6):
            x = X * (jnp.nan if index == 3 else 1.0)
            model, opt_state, loss = step(model, opt_state, x)
            model, opt_state = tamiyo((model, opt_state), loss)
    assert lines[0] == "step 5: ROLLBACK (nonfinite_loss): a loss in the packet is NaN or infinite"
    assert np.isfinite(model.linear.weight).all()


@pytest.mark.slow
def test_two_monitored_optimisers_are_measured_as_one(tmp_path: Path):
    generator, discriminator = (
        {name: {"kernel": jnp.ones((4, 1), jnp.float32)}} for name in ("generator", "discriminator")
    )
    states = TX.init(generator), TX.init(discriminator)
    gradient = {"generator": {"kernel": jnp.full((4, 1), 2, jnp.float32)}}
    _, second = TX.update(gradient, states[0], generator)
    both = (generator, discriminator)
    settings = {"mode": "guard", "every": 1, "log": print}

    def forward(both: Any, x: jax.Array) -> jax.Array:
        return x @ both[0]["generator"]["kernel"] + x @ both[1]["discriminator"]["kernel"]

    with Plug.open(tmp_path, both, forward, X, **settings) as tamiyo:
        tamiyo((both, (second, states[1])), {"generator": 0.5, "discriminator": 0.25})
    (step,) = read_history(tamiyo.directory / "tamiyo")
    metrics = step.packet.training_metrics
    assert metrics["layer/0/generator/gradient_norm"] == pytest.approx(4.0)
    assert metrics["layer/1/discriminator/gradient_norm"] == 0.0
    assert metrics["loss"] == 0.75


def test_a_monitor_in_a_branch_of_multi_transform_is_refused_with_the_place_for_it(
    tmp_path: Path,
):
    params = start()[0]
    tx = optax.multi_transform({"a": TX}, {"dense": "a"})
    with plug(tmp_path, []) as tamiyo, pytest.raises(ConfigurationError, match="put it around"):
        tamiyo((params, tx.init(params)), jnp.float32(1))


def test_a_monitor_under_vmap_is_refused(tmp_path: Path):
    params = start()[0]
    members = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), params)
    states = jax.vmap(TX.init)(members)
    with plug(tmp_path, []) as tamiyo, pytest.raises(ConfigurationError, match="one member"):
        tamiyo((members, states), jnp.ones(2, jnp.float32))


def test_a_plug_inside_jit_is_refused(tmp_path: Path):
    with plug(tmp_path, []) as tamiyo, pytest.raises(ConfigurationError, match=r"outside jax\.jit"):
        jax.jit(lambda state: tamiyo(state, jnp.float32(1)))(start())


def test_an_epoch_under_scan_is_handed_over_at_once(tmp_path: Path):
    @jax.jit
    def epoch(state: Any, xs: jax.Array) -> Any:
        def step(state: Any, x: jax.Array) -> Any:
            state, loss = train_step(state, x)
            return state, host.StepMetrics(loss, {}, host.statistics(state))

        return jax.lax.scan(step, state, xs)

    lines: list[str] = []
    with plug(tmp_path, lines, every=5) as tamiyo:
        state = start()
        for index in range(3):
            xs = jnp.stack([X] * 10).at[3].multiply(jnp.nan if index == 2 else 1.0)
            state, metrics = epoch(state, xs)
            state = tamiyo(state, metrics)
        first, *_ = read_history(tamiyo.directory / "tamiyo")
    assert first.packet.global_step == 10
    assert lines == ["step 30: ROLLBACK (nonfinite_loss): a loss in the packet is NaN or infinite"]
    assert np.isfinite(state[0]["dense"]["kernel"]).all()


def test_a_break_after_the_last_decision_is_seen_when_it_is_closed(tmp_path: Path):
    lines: list[str] = []
    tamiyo = plug(tmp_path, lines)
    states = train(tamiyo, 13, broken=12)
    tamiyo.close()
    assert lines == [
        "step 13: the steps since the last decision have a loss or a gradient that is not finite; "
        "restore(state) returns the newest kept state (step-00000010)"
    ]
    assert equal_trees(jax.device_get(tamiyo.restore(states[-1])), states[9])


def test_a_network_of_511_layers_has_room_in_its_packets(tmp_path: Path):
    params = {f"layer{index:03d}": {"kernel": jnp.ones((1, 1))} for index in range(511)}

    def forward(params: Any, x: jax.Array) -> jax.Array:
        for layer in params.values():
            x = x @ layer["kernel"]
        return x

    lines: list[str] = []
    settings = {"mode": "guard", "every": 1, "log": lines.append}
    with Plug.open(tmp_path, params, forward, jnp.ones((1, 1)), **settings) as tamiyo:
        tamiyo((params, TX.init(params)), jnp.float32(1))
    (step,) = read_history(tamiyo.directory / "tamiyo")
    assert lines == []
    assert "layer/layer510/weight_norm" in step.packet.training_metrics
