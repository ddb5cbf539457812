"""A guarded optimiser refuses the steps that would ruin a run, and is silent in a good one."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tamiyo_jax import host
from tamiyo_jax.errors import ConfigurationError

pytestmark = pytest.mark.usefixtures("standard_promotion")

CALM = 40  # steps, more than the detector's warm-up
OPTIMIZERS = {
    "adamw": optax.adamw(1e-2),
    "clipped momentum": optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.1, momentum=0.9)),
    "per group": optax.partition(
        {"weights": optax.adam(1e-2), "biases": optax.sgd(0.1)},
        {"a": {"w": "weights", "b": "biases"}, "b": {"w": "weights"}},
    ),
    "schedule": optax.adam(optax.warmup_cosine_decay_schedule(0.0, 1e-1, 10, 200)),
}
# What tests compile without (conftest.py) rounds a schedule's rate as it happens to be fused.
AS_OUTSIDE_OF_TESTS = {"xla_cpu_use_fusion_emitters": True}
GENERATOR = np.random.default_rng(0)
PARAMS = {
    "a": {"w": GENERATOR.normal(size=(4, 3)), "b": GENERATOR.normal(size=3)},
    "b": {"w": GENERATOR.normal(size=(3, 2))},
}
PARAMS = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), PARAMS)
BATCHES = jnp.asarray(GENERATOR.normal(size=(CALM + 60, 8, 4)), jnp.float32)


def loss_of(params: Any, x: jax.Array) -> jax.Array:
    hidden = x @ params["a"]["w"] + params["a"]["b"][None]
    return jnp.mean((hidden @ params["b"]["w"] - jnp.sin(x[:, :2])) ** 2)


def train_step(tx):
    @jax.jit
    def step(params, state, x):
        loss, gradient = jax.value_and_grad(loss_of)(params, x)
        updates, state = tx.update(gradient, state, params, loss=loss)
        return optax.apply_updates(params, updates), state

    return step


def calm_run(tx, steps=CALM):
    step, params, state = train_step(tx), PARAMS, tx.init(PARAMS)
    for x in BATCHES[:steps]:
        params, state = step(params, state, x)
    return step, params, state


def assert_same_bits(left, right):
    for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_good_run_is_that_of_the_plain_optimiser_bit_for_bit(name):
    # The gradient in a program of its own: within the update's, XLA rounds it as that program
    # happens to be fused, measured or not.
    gradient_of = jax.jit(jax.value_and_grad(loss_of))

    def run(tx):
        @functools.partial(jax.jit, compiler_options=AS_OUTSIDE_OF_TESTS)
        def apply(params, state, gradient, loss):
            updates, state = tx.update(gradient, state, params, loss=loss)
            return optax.apply_updates(params, updates), state

        params, state = PARAMS, tx.init(PARAMS)
        for x in BATCHES:
            loss, gradient = gradient_of(params, x)
            params, state = apply(params, state, gradient, loss)
        return params, state

    params, state = run(optax.with_extra_args_support(OPTIMIZERS[name]))
    ours, guarded = run(host.guarded(OPTIMIZERS[name]))
    assert_same_bits(ours, params)
    assert_same_bits(guarded.inner, state)
    assert int(host.statistics(guarded).refusals.by_cause.sum()) == 0


@pytest.mark.parametrize("trouble", [np.nan, np.inf, -np.inf, 1e25, 1e4])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_ruinous_batch_changes_neither_parameters_nor_the_optimisers_state(name, trouble):
    step, params, state = calm_run(host.guarded(OPTIMIZERS[name]))
    bad = BATCHES[CALM].at[0].multiply(trouble)
    after, refused = step(params, state, bad)
    assert_same_bits(after, params)
    assert_same_bits(refused.inner, state.inner)
    seen = host.statistics(refused).refusals
    assert (bool(seen.refused), int(seen.in_row), int(seen.by_cause.sum())) == (True, 1, 1)
    moved, following = step(after, refused, BATCHES[CALM + 1])
    assert not np.array_equal(moved["a"]["w"], after["a"]["w"])
    assert int(host.statistics(following).refusals.in_row) == 0


def test_a_negative_zero_stays_one_on_a_refused_step():
    step, params, state = calm_run(host.guarded(optax.sgd(0.1)))
    params["a"]["b"] = params["a"]["b"].at[0].set(-0.0)
    after, _ = step(params, state, BATCHES[CALM] * jnp.nan)
    assert_same_bits(after, params)


def test_without_a_loss_the_gradient_alone_is_looked_at():
    tx = host.guarded(optax.sgd(0.1))

    @jax.jit
    def step(params, state, x):
        updates, state = tx.update(jax.grad(loss_of)(params, x), state, params)
        return optax.apply_updates(params, updates), state

    params, state = PARAMS, tx.init(PARAMS)
    for x in BATCHES[:CALM]:
        params, state = step(params, state, x)
    _, state = step(params, state, BATCHES[CALM].at[0].multiply(jnp.nan))
    assert bool(host.statistics(state).refusals.refused)
    assert float(host.statistics(state).signals.loss_z) == 0


def test_a_corrupted_optimiser_state_does_not_reach_the_parameters():
    step, params, state = calm_run(host.guarded(optax.adam(1e-3)))
    adam, rest = state.inner
    broken = adam._replace(mu=jax.tree.map(lambda m: 1e4 * m, adam.mu))
    after, state = step(params, state._replace(inner=(broken, rest)), BATCHES[CALM])
    assert_same_bits(after, params)
    assert bool(host.statistics(state).signals.update_outlier)


def test_outliers_are_accepted_after_so_many_in_a_row_but_never_a_nan():
    step, params, state = calm_run(host.guarded(optax.sgd(1e-6)))
    outcomes = []
    for _ in range(80):
        params, state = step(params, state, 30 * BATCHES[CALM])
        outcomes.append(bool(host.statistics(state).refusals.refused))
    assert outcomes == [True] * 32 + [False] * 48
    for _ in range(40):
        params, state = step(params, state, BATCHES[CALM] * jnp.nan)
        assert bool(host.statistics(state).refusals.refused)


def test_a_monitor_refuses_nothing_and_counts_no_refusal():
    step, params, state = calm_run(host.monitor(optax.sgd(1e-6)))
    for _ in range(40):
        params, state = step(params, state, 30 * BATCHES[CALM])
    seen = host.statistics(state)
    assert bool(seen.signals.loss_outlier)
    assert (bool(seen.refusals.refused), int(seen.refusals.in_row)) == (False, 0)


def rated_run(rates):
    """Refusals by step, and ‖update‖, under a factor on the learning rate by step."""
    adam = optax.adam(1e-3)

    def update(gradient, state, params, *, rate):
        updates, state = adam.update(gradient, state, params)
        return jax.tree.map(lambda u: u * rate, updates), state

    tx = host.guarded(optax.GradientTransformationExtraArgs(adam.init, update))

    def step(carry, given):
        params, state = carry
        x, rate = given
        loss, gradient = jax.value_and_grad(loss_of)(params, x)
        updates, state = tx.update(gradient, state, params, loss=loss, rate=rate)
        refused = host.statistics(state).refusals.refused
        return (optax.apply_updates(params, updates), state), (refused, optax.tree.norm(updates))

    xs = jnp.concatenate([BATCHES, BATCHES])[: len(rates)]
    rates = jnp.asarray(rates, jnp.float32)
    _, found = jax.lax.scan(step, (PARAMS, tx.init(PARAMS)), (xs, rates))
    return jax.device_get(found)


@pytest.mark.parametrize(("times", "first"), [(20.0, 72), (1000.0, 70)])
def test_a_learning_rate_that_jumps_is_refused_and_then_scaled_down(times, first):
    refused, sizes = rated_run(np.where(np.arange(160) < 70, 1.0, times))
    assert np.flatnonzero(refused).tolist() == list(range(first, first + 32))
    usual = np.median(sizes[40:70])
    np.testing.assert_allclose(sizes[first + 32 :], usual, rtol=0.7)


@pytest.mark.parametrize(
    "rates",
    [
        np.repeat([0.01, 0.1, 1.0], 50),
        np.minimum(1.0, (1 + np.arange(150)) / 100),
        np.tile(np.cos(np.pi / 2 * np.arange(50) / 50) ** 2 + 1e-4, 3),
        np.where(np.arange(150) % 40 == 39, 14.0, 1.0),
    ],
    ids=["stepwise warm-up", "warm-up", "restarts", "single steps"],
)
def test_a_schedule_of_the_learning_rate_is_no_fault(rates):
    refused, _ = rated_run(rates)
    assert not refused.any()


def test_state_that_is_no_parameter_is_kept_on_a_refused_step():
    tx = host.guarded(optax.sgd(0.1))
    _, params, state = calm_run(tx)

    @jax.jit
    def step(params, state, mean, x):
        loss, gradient = jax.value_and_grad(loss_of)(params, x)
        _, state = tx.update(gradient, state, params, loss=loss)
        return host.unless_refused(state, new=0.9 * mean + 0.1 * x.mean(0), old=mean)

    mean = jnp.ones(4, jnp.float32)
    assert_same_bits(step(params, state, mean, BATCHES[CALM] * jnp.nan), mean)
    assert not np.array_equal(step(params, state, mean, BATCHES[CALM]), mean)


def test_the_whole_run_can_be_one_scan_and_a_batch_of_runs_one_vmap():
    tx = host.guarded(optax.adam(1e-2))
    spoilt = BATCHES.at[CALM].multiply(jnp.nan).at[CALM + 5, 0].multiply(1e6)

    def run(batches):
        def step(carry, x):
            params, state = train_step(tx)(*carry, x)
            return (params, state), host.statistics(state).refusals.refused

        return jax.lax.scan(step, (PARAMS, tx.init(PARAMS)), batches)

    (params, _), refused = jax.jit(jax.vmap(run))(jnp.stack([BATCHES, spoilt]))
    assert np.flatnonzero(refused[0]).tolist() == []
    assert np.flatnonzero(refused[1]).tolist() == [CALM, CALM + 5]
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params))


def test_around_multisteps_a_ruinous_batch_is_left_out_of_the_accumulated_gradient():
    def last(tx, batches):
        step, params, state = train_step(tx), PARAMS, tx.init(PARAMS)
        for x in batches:
            params, state = step(params, state, x)
        return params, state

    tx = host.guarded(optax.MultiSteps(optax.adam(1e-2), 4).gradient_transformation())
    without = last(tx, [*BATCHES[:CALM], *BATCHES[CALM + 1 :]])
    bad = last(tx, [*BATCHES[:CALM], BATCHES[CALM] * jnp.nan, *BATCHES[CALM + 1 :]])
    assert_same_bits(bad[0], without[0])
    assert int(host.statistics(bad[1]).refusals.by_cause.sum()) == 1


def test_within_multisteps_the_accumulated_step_is_refused():
    tx = optax.MultiSteps(host.guarded(optax.adam(1e-2)), 2)
    state, params = tx.init(PARAMS), PARAMS

    @jax.jit
    def step(params, state, x):
        loss, gradient = jax.value_and_grad(loss_of)(params, x)
        updates, state = tx.update(gradient, state, params, loss=loss)
        return optax.apply_updates(params, updates), state

    for x in BATCHES[:2]:
        params, state = step(params, state, x)
    before = params
    for x in BATCHES[2:4] * jnp.nan:
        params, state = step(params, state, x)
    assert_same_bits(params, before)
    assert bool(host.statistics(state).refusals.refused)


def test_the_infinite_gradients_of_loss_scaling_are_refused_and_counted():
    _, params, state = calm_run(host.guarded(optax.adam(1e-2)))
    scale = jnp.float32(3e38)
    tx = host.guarded(optax.adam(1e-2))

    @jax.jit
    def scaled_step(params, state, x):
        loss, gradient = jax.value_and_grad(lambda p: loss_of(p, x) * scale)(params)
        gradient = jax.tree.map(lambda g: g * 1e9 / scale, gradient)
        updates, state = tx.update(gradient, state, params, loss=loss / scale)
        return optax.apply_updates(params, updates), state

    after, state = scaled_step(params, state, 100 * BATCHES[CALM])
    assert_same_bits(after, params)
    assert int(host.statistics(state).refusals.by_cause[0]) == 1


def test_a_donated_state_is_updated_in_place():
    tx = host.guarded(optax.adam(1e-2))

    def step(params, state, x):
        loss, gradient = jax.value_and_grad(loss_of)(params, x)
        updates, state = tx.update(gradient, state, params, loss=loss)
        return optax.apply_updates(params, updates), state

    donated = jax.jit(step, donate_argnums=(0, 1))
    params = jax.tree.map(jnp.copy, PARAMS)
    state = tx.init(PARAMS)
    for x in [*BATCHES[:CALM], BATCHES[CALM] * jnp.nan]:
        old = params["a"]["w"]
        params, state = donated(params, state, x)
        assert old.is_deleted()
    _, plain, _ = calm_run(tx)
    assert_same_bits(params, plain)


def sharded() -> None:
    """Runs in a process with four devices: a good step, then a ruinous one."""
    mesh = jax.make_mesh((4,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("d"))
    params = {"l": {"w": jax.device_put(jnp.ones((8, 3), jnp.float32), sharding)}}
    tx = host.guarded(optax.adam(1e-2))

    @jax.jit
    def step(params, state, x):
        loss, gradient = jax.value_and_grad(lambda p: jnp.mean((x @ p["l"]["w"]) ** 2))(params)
        updates, state = tx.update(gradient, state, params, loss=loss)
        return optax.apply_updates(params, updates), state

    x = jnp.ones((2, 8), jnp.float32)
    moved, state = step(params, tx.init(params), x)
    same, state = step(moved, state, x * jnp.nan)
    assert_same_bits(same, moved)
    for array in (moved["l"]["w"], same["l"]["w"], state.inner[0].mu["l"]["w"]):
        assert array.sharding.is_equivalent_to(sharding, 2)
    assert len(jax.devices()) == 4
    assert bool(host.statistics(state).refusals.refused)


@pytest.mark.slow
def test_sharded_parameters_keep_their_sharding_on_good_and_refused_steps():
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=4",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    child = subprocess.run(
        [sys.executable, __file__],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert child.returncode == 0, child.stderr


@functools.cache
def metric_step():
    """A guarded optimiser that watches a metric, and its jitted step."""
    tx = host.guarded(optax.adam(1e-2), metrics={"approx_kl": 0.01})

    @jax.jit
    def step(params, state, x, metric):
        loss, gradient = jax.value_and_grad(loss_of)(params, x)
        metrics = {"approx_kl": metric}
        updates, state = tx.update(gradient, state, params, loss=loss, metrics=metrics)
        return optax.apply_updates(params, updates), state

    return tx, step


def metric_run(metrics: list[float]) -> tuple[Any, Any, Any, Any]:
    """Calm steps with the metric 0, then one step for each given value."""
    tx, step = metric_step()
    params, state = PARAMS, tx.init(PARAMS)
    for x in BATCHES[:CALM]:
        params, state = step(params, state, x, 0.0)
    before = params, state
    for x, metric in zip(BATCHES[CALM:], metrics, strict=False):
        params, state = step(params, state, x, metric)
    return *before, params, state


def test_a_step_with_a_metric_out_of_the_ordinary_is_refused():
    params, state, after, refused = metric_run([0.5])
    assert_same_bits(after, params)
    assert_same_bits(refused.inner, state.inner)
    seen = host.statistics(refused)
    assert seen.refusals.by_cause.tolist() == [0, 0, 0, 0, 1]
    np.testing.assert_allclose(seen.signals.metric_z, 50, rtol=1e-5)


@pytest.mark.parametrize("metric", [0.08, np.nan, -5.0])
def test_a_metric_that_is_small_or_says_nothing_refuses_no_step(metric):
    params, _, after, state = metric_run([metric, 0.0])
    assert int(host.statistics(state).refusals.by_cause.sum()) == 0
    assert not np.array_equal(after["a"]["w"], params["a"]["w"])


def test_metrics_that_were_not_named_or_have_no_spread_are_refused():
    tx = host.guarded(optax.adam(1e-2), metrics={"approx_kl": 0.01})
    state = tx.init(PARAMS)
    for given in ({}, {"approx_kl": 0.0, "clip_fraction": 0.1}):
        with pytest.raises(ConfigurationError, match="approx_kl") as raised:
            tx.update(PARAMS, state, PARAMS, metrics=given)
        assert raised.value.field == "metrics"
    with pytest.raises(ConfigurationError, match="above 0"):
        host.monitor(optax.adam(1e-2), metrics={"approx_kl": 0.0})


if __name__ == "__main__":
    sharded()
