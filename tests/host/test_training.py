"""Host and seeds train side by side, and a seed that never blended was never there."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from host.tiny_host import SEED_ID, batch, loss, make_host, make_state, operate

from tamiyo_jax import growth, host
from tamiyo_jax.contracts import SeedOperation, SeedStage
from tamiyo_jax.errors import ConfigurationError

OP = SeedOperation
UP_TO_FOSSIL = (OP.GERMINATE, OP.START_TRAINING, OP.START_GRAFTING, OP.STABILIZE, OP.FOSSILIZE)
MADE = make_host()
STEP = jax.jit(lambda state, batch: host.train_step(MADE, state, batch))


def grown(stage: SeedStage, blueprint: int = 1) -> host.HostState:
    state = make_state(MADE)
    for operation in UP_TO_FOSSIL:
        if int(state.slots[SEED_ID].state.stage) == stage:
            return state
        state = operate(state, operation, blueprint)
    return state


def assert_identical(left, right) -> None:
    jax.tree.map(
        lambda a, b: np.testing.assert_array_equal(
            np.frombuffer(np.asarray(a).tobytes(), np.uint8),
            np.frombuffer(np.asarray(b).tobytes(), np.uint8),
        ),
        left,
        right,
    )


def test_a_key_of_either_kind_makes_the_same_run_and_its_checkpoint_comes_back(tmp_path):
    params = make_state(MADE).params
    old, new = (
        host.init_host(MADE, params, make(7)) for make in (jax.random.PRNGKey, jax.random.key)
    )
    jax.tree.map(np.testing.assert_array_equal, STEP(new, batch(0)), STEP(old, batch(0)))
    assert (new.rng.shape, new.rng.dtype) == ((2,), jnp.uint32)
    checkpoints = host.HostCheckpoints(tmp_path)
    checkpoints.save("good", new)
    jax.tree.map(np.testing.assert_array_equal, checkpoints.restore("good", new), old)


def test_a_key_of_another_generator_is_refused_and_named():
    key = jax.random.key(0, impl="rbg")
    with pytest.raises(ConfigurationError, match=r"rbg.*threefry2x32"):
        host.init_host(MADE, make_state(MADE).params, key)


def test_a_seed_culled_before_it_blends_leaves_the_host_bit_for_bit_as_without_it():
    with_seed, without = make_state(MADE), make_state(MADE)
    schedule = {2: OP.GERMINATE, 4: OP.START_TRAINING, 12: OP.CULL}
    for index in range(20):
        if index in schedule:
            with_seed = operate(with_seed, schedule[index], 1)
        with_seed, seen = STEP(with_seed, batch(index))
        without, expected = STEP(without, batch(index))
        assert_identical(seen.loss, expected.loss)
    assert_identical(with_seed.params, without.params)
    assert_identical(with_seed.opt_state, without.opt_state)


def test_a_training_seed_lowers_its_own_loss_while_the_output_stays_untouched():
    state = grown(SeedStage.TRAINING)
    validation = batch(1000)
    early = host.contribution(loss, state.params, state.slots, validation)[SEED_ID]
    for index in range(60):
        state, metrics = STEP(state, batch(index))
    late = host.contribution(loss, state.params, state.slots, validation)[SEED_ID]
    assert metrics.seed_gradient_norms[SEED_ID] > 0
    assert float(state.slots[SEED_ID].state.alpha) == 0
    assert late > early


def test_only_the_chosen_candidate_of_a_learning_seed_moves():
    state = grown(SeedStage.TRAINING, blueprint=1)
    before = state.slots[SEED_ID].params
    after = STEP(state, batch(0))[0].slots[SEED_ID].params
    assert_identical(after["gentle"], before["gentle"])
    assert not np.array_equal(after["steep"]["W"], before["steep"]["W"])


@pytest.mark.parametrize(
    "stage", [SeedStage.DORMANT, SeedStage.GERMINATED], ids=lambda stage: stage.name
)
def test_weight_decay_and_momentum_do_not_act_on_a_seed_that_does_not_learn(stage):
    state = grown(stage)
    before = state.slots[SEED_ID]
    after = STEP(state, batch(0))[0].slots[SEED_ID]
    assert_identical(after.params, before.params)
    assert_identical(after.opt_state, before.opt_state)


@pytest.mark.parametrize("field", ["paused", "breaker_open"])
def test_a_pause_or_an_open_breaker_freezes_the_seed_while_the_host_trains_on(field):
    state = grown(SeedStage.BLENDING)
    state, _ = STEP(state, batch(0))
    frozen = state._replace(**{field: jnp.bool_(True)})
    after, _ = STEP(frozen, batch(1))
    assert_identical(after.slots, frozen.slots)
    assert not np.array_equal(after.params["second"]["w"], frozen.params["second"]["w"])


def test_inf_in_a_dormant_seed_reaches_neither_loss_nor_gradients():
    state = make_state(MADE)
    slot = state.slots[SEED_ID]
    bad = slot._replace(params=jax.tree.map(lambda w: jnp.full_like(w, jnp.inf), slot.params))
    clean, clean_metrics = STEP(state, batch(0))
    after, metrics = STEP(state._replace(slots={SEED_ID: bad}), batch(0))
    assert_identical(metrics.loss, clean_metrics.loss)
    assert_identical(after.params, clean.params)


def test_a_culled_seed_comes_back_with_fresh_parameters_and_a_fresh_optimiser():
    state = grown(SeedStage.TRAINING)
    for index in range(3):
        state, _ = STEP(state, batch(index))
    learned = state.slots[SEED_ID].params["steep"]["W"]
    state = operate(state, OP.CULL)
    for index in range(MADE.timing.embargo_steps + 2):
        assert int(state.slots[SEED_ID].state.stage) != SeedStage.DORMANT
        state, _ = STEP(state, batch(index))
    slot = state.slots[SEED_ID]
    assert int(slot.state.stage) == SeedStage.DORMANT
    assert not np.array_equal(slot.params["steep"]["W"], learned)
    assert_identical(slot.opt_state, MADE.seed_optimizer.init(slot.params))


def test_growing_and_culling_never_recompile_the_train_step(count_compilations):
    state = make_state(MADE)
    step = jax.jit(lambda state, batch: host.train_step(MADE, state, batch))
    state, _ = step(state, batch(0))
    for operation in (*UP_TO_FOSSIL[:4], OP.CULL):
        state, _ = step(operate(state, operation, 1), batch(1))
    data = batch(2)
    with count_compilations() as compiled:
        for _ in range(12):
            state, _ = step(state, data)
    assert compiled.count == 0
    assert step._cache_size() == 1


def test_contribution_is_the_loss_without_the_seed_minus_the_loss_with_it():
    state = grown(SeedStage.FOSSILIZED)
    seeds = {SEED_ID: state.slots[SEED_ID].params}
    at = lambda alpha: loss(  # noqa: E731
        state.params, seeds, {SEED_ID: growth.Gate(jnp.float32(alpha), jnp.int32(1))}, batch(5)
    )
    measured = host.contribution(loss, state.params, state.slots, batch(5))[SEED_ID]
    np.testing.assert_allclose(measured, at(0.0) - at(1.0), rtol=1e-5)
